"""Results on disk: one JSON file for each finished cell, written whole or not at all; knows nothing of what is in them.

A cell that another process is at is locked, and a finished one is never computed again. What the repository publishes
(`PUBLISHED`) counts for the report and as finished for a run; what was computed here goes before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from studies.cell import RECIPE_VERSION, VERBS, AnySpec, from_settings, key_of, settings

PUBLISHED = Path(__file__).parent / "results.json"
"""Key -> result of every cell behind docs/transfer.md, without what each example cost."""

Result = dict[str, Any]
Compute = Callable[[], Result]


@dataclass(frozen=True)
class Store:
    """A folder of results."""

    root: Path = field(default=Path("build/study"))
    """Where everything that the study keeps lies."""
    published: Path | None = None
    """Results that need not be computed; none by default."""

    def path(self, spec: AnySpec) -> Path:
        """The file of a result."""
        return self.root / "cells" / f"{key_of(spec)}.json"

    def get(self, spec: AnySpec) -> Result | None:
        """The result of a finished cell, or None."""
        path = self.path(spec)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def known(self, spec: AnySpec) -> Result | None:
        """The result of a cell that is finished here, or else a published one."""
        return self.get(spec) or self._published().get(key_of(spec))

    def compute(self, spec: AnySpec, work: Compute, *, wait: bool = True) -> Result | None:
        """The result of a cell, computed if it is not there.

        Args:
            spec: the cell.
            work: computes its result, JSON values.
            wait: where another process is at this cell, wait for it; otherwise return None at once.
        """
        if (done := self.get(spec)) is not None:
            return done
        path = self.path(spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
                if (done := self.get(spec)) is not None:
                    return done
                begun = time.monotonic()
                result = {"kind": VERBS[type(spec)], "settings": settings(spec), **work()}
                result["seconds"] = round(time.monotonic() - begun, 1)
                write_json(path, result)
                return self.get(spec)
        except Timeout:
            return None

    def kept(self, kind: str, what: Any, work: Compute) -> Result:
        """What is the same in many cells, computed if it is not there.

        Args:
            kind: the folder.
            what: everything that decides it, JSON values.
            work: computes it, JSON values.
        """
        text = json.dumps([RECIPE_VERSION, what], sort_keys=True)
        path = self.root / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write_json(path, work())
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        return found

    def all(self) -> dict[str, Result]:
        """Key -> result, for every cell that is finished here or published."""
        here = {
            path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (self.root / "cells").glob("*.json")
        }
        return dict(sorted((self._published() | {key: one for key, one in here.items() if _is_of(key, one)}).items()))

    def publish(self) -> None:
        """Writes `published` anew, with what is finished here; a result is a line."""
        if self.published is not None:
            lines = [f"{json.dumps(key)}: {json.dumps(_published_part(one))}" for key, one in self.all().items()]
            _write(self.published, "{\n" + ",\n".join(lines) + "\n}\n")

    def _published(self) -> dict[str, Result]:
        if self.published is None or not self.published.exists():
            return {}
        found: dict[str, Result] = json.loads(self.published.read_text(encoding="utf-8"))
        return {key: one for key, one in found.items() if _is_of(key, one)}

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Within the block no other process is at what bears this name."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            yield


def _is_of(key: str, result: Result) -> bool:
    """Whether a result is one of today's recipe; of an older one its settings may not even be settings."""
    kind = next(kind for kind, verb in VERBS.items() if verb == result["kind"])
    try:
        spec: AnySpec = from_settings(kind, result["settings"])
        return key_of(spec) == key
    except TypeError:
        return False


def _published_part(result: Result) -> Result:
    """A result without what each example cost, which is kept of arms that have intervals: all those of cells that also
    answer, of others the adapter as it is loaded.
    """
    if "targets" not in result or result["settings"]["answered"]:
        return result
    targets = {
        name: {key: _without_examples(arm) if _has_no_interval(key, arm) else arm for key, arm in arms.items()}
        for name, arms in result["targets"].items()
    }
    return {**result, "targets": targets}


def _has_no_interval(name: str, arm: Any) -> bool:
    return isinstance(arm, dict) and name != "default"


def _without_examples(arm: Result) -> Result:
    return {key: value for key, value in arm.items() if key != "examples"}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that at every moment the old file or the new one is there."""
    _write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
