"""The output directory of a run: what an earlier run has left there, and whether this one may begin or go on.

Knows names and JSON; what a checkpoint holds is the trainer's business, what is trained the recipe's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.atomic_directory import check_target
from valueadapter.errors import ArtifactError, CheckpointError, ConfigError

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_COMPLETE = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
"""What a checkpoint holds when it is whole; the first is written last."""
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its checkpoints, the record of how it began, and the finished adapter."""

    path: Path

    @property
    def adapter(self) -> Path:
        """Where the finished adapter goes."""
        return self.path / file_names.CHECKPOINT_ADAPTER

    @property
    def is_finished(self) -> bool:
        """Whether an adapter lies there."""
        return (self.adapter / file_names.CONFIG).exists()

    def checkpoints(self) -> list[Path]:
        """Checkpoints that were written to their end, the newest last."""
        found = [path for path in self.path.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
        whole = [path for path in found if all((path / name).exists() for name in _COMPLETE)]
        return sorted(whole, key=lambda path: int(path.name.split("-")[1]))

    def check(self, *, resume: bool, overwrite: bool) -> Path | None:
        """Whether a run may begin, or go on, in this directory; changes nothing.

        Args:
            resume: go on from the last checkpoint.
            overwrite: begin anew, whatever an earlier run has left.

        Returns:
            The checkpoint to go on from; None to begin.

        Raises:
            ConfigError: there is nothing to resume, or something that a new run would destroy.
            ArtifactError: the finished adapter could not be saved here.
        """
        if resume and overwrite:
            raise ConfigError("resume goes on with a run and overwrite begins anew; give one of them")
        check_target(self.adapter)
        last = next(reversed(self.checkpoints()), None)
        if resume and last is None:
            raise ConfigError(
                f"there is nothing to resume: no complete checkpoint in '{self.path}'. Begin without resume"
                f"{', with overwrite' if self.is_finished else ''}"
            )
        if not resume and not overwrite and (self.is_finished or last is not None):
            what = "a finished adapter" if self.is_finished else f"an unfinished run ({last.name if last else ''})"
            raise ConfigError(
                f"'{self.path}' holds {what}, which a new run would destroy. Go on with it (--resume, resume=True), "
                "begin anew (--overwrite, overwrite=True), or choose another output directory"
            )
        return last if resume else None

    def check_same_run(self, settings: Mapping[str, Any]) -> None:
        """Whether the run that is resumed began as this one would.

        Args:
            settings: what decides what is learned; JSON values.

        Raises:
            CheckpointError: it began otherwise; the message names the first difference.
        """
        record = self.path / file_names.RUN_RECORD
        if not record.exists():
            return  # begun by hand, with a trainer of the user's own
        try:
            began = dict(json.loads(record.read_bytes()))
        except ValueError as error:
            raise CheckpointError(f"'{record}' is damaged ({error}); begin anew with overwrite") from None
        now = json.loads(json.dumps(settings))
        for name in sorted({*began, *now}, key=lambda one: (one != "network", one)):  # from which others follow
            if began.get(name) != now.get(name):
                raise CheckpointError(
                    f"the run in '{self.path}' began with {name} {began.get(name)!r}, and is to go on with "
                    f"{now.get(name)!r}; resume it as it began, or begin anew with overwrite"
                )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Removes the checkpoints of an earlier run and records how this one begins; the adapter stays until the end.

        Raises:
            OSError: the directory cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.glob("checkpoint-*"):
            if _CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        record = self.path / file_names.RUN_RECORD
        new = record.with_name(f".{record.name}.{os.getpid()}")
        new.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(record)

    def save(self, adapter: ValueAdapter, *, say: Callable[[str], object]) -> Path:
        """Saves the finished adapter; where its place has become unusable meanwhile, beside it.

        Returns:
            Where it lies.
        """
        try:
            adapter.save_pretrained(self.adapter)
        except (OSError, ArtifactError) as error:
            beside = next(p for n in range(1, 10_000) if not (p := self.path / f"adapter-saved-{n}").exists())
            adapter.save_pretrained(beside)
            say(f"'{self.adapter}' could not be written ({error}); the adapter was saved to '{beside}'")
            return beside
        return self.adapter


def base_identity(base: str, commit: str | None) -> str:
    """What tells a base model from others: its commit on the Hub, or for a directory a digest of its files.

    Of each file of a directory its name, its size and its first and last MiB count, so that it costs little.
    """
    if commit is not None:
        return f"{base}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(base).glob("*") if path.suffix in (".json", ".safetensors", ".bin")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return f"sha256:{digest.hexdigest()}"
