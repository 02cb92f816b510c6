"""Whether an adapter may be saved to a directory, and what in it is not an adapter's; changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType

from valueadapter.artifact import contents, file_names
from valueadapter.artifact.config import MODEL_TYPE
from valueadapter.errors import ArtifactError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no such locks here (Windows): processes that save inside one directory must not do so at once
    fcntl = None

NEW = "new"
"""In a directory whose name begins with `layout.SAVING`: the adapter that is being saved."""
MOVING = "moving"
"""There, too: the adapter before, as far as it was moved there; `layout.BEFORE` once it is there as a whole."""


def check_target(target: Path) -> None:
    """Raises at once what saving an adapter to `target` would raise once the work is done; cheap, and writes nothing.

    Args:
        target: the directory that will be saved to; need not exist. Links are followed.

    Raises:
        ArtifactError: it holds something that would be lost or that no adapter may hold, is a file, or may not be
            written.
    """
    target = resolved(target)
    with alone(target):
        networks_at(target)


def resolved(target: Path) -> Path:
    """The directory that a path leads to."""
    try:
        return target.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links, by Python version
        raise ArtifactError(f"'{target}' cannot be followed to a directory to save to ({error})") from None


def networks_at(target: Path) -> frozenset[str]:
    """The directories of the value networks in `target`, a resolved path; none where there is no adapter.

    Raises:
        ArtifactError: see `check_target`.
    """
    if not target.is_dir():
        place = next(path for path in (target, *target.parents) if os.path.lexists(path))
        if not place.is_dir():
            raise ArtifactError(f"'{place}' is a file; expected a directory to save the adapter to")
        _check_writable(place)
        return frozenset()
    _check_writable(target)
    networks = networks_in(target)
    _check_entries(target, sorted(target.iterdir()), networks)
    own = networks or frozenset()
    for path in contents.files(target):
        if not is_adapters(path.relative_to(target).as_posix(), own):
            contents.check_inside(target, path)
            contents.check_kind(target, path)
    return own


def _check_entries(target: Path, entries: list[Path], networks: frozenset[str] | None) -> None:
    """What lies at the root is an adapter's, a Trainer's, hidden, or a person's own file beside these."""
    names = {entry.name for entry in entries}
    rest = [
        entry for entry in entries if not (file_names.is_hidden(entry.name) or file_names.is_training_state(entry.name))
    ]
    strange = networks is None and (file_names.CONFIG in names or not any(map(file_names.is_training_state, names)))
    if rest and (strange or file_names.PEFT_CONFIG in names):
        listing = ", ".join(entry.name for entry in rest[:3])
        raise ArtifactError(f"'{target}' holds something else ({listing}); choose an empty or a new directory")
    for entry in rest:
        mode = entry.lstat().st_mode
        own = stat.S_ISDIR(mode) and entry.name in tops(networks or ())
        if not (stat.S_ISREG(mode) or own):
            raise ArtifactError(
                f"'{entry}' is not part of a value adapter and would be lost; move it or save elsewhere"
            )
        if own:
            _check_writable(entry)
    if file_names.CARD in names:
        try:
            (target / file_names.CARD).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"'{target / file_names.CARD}' is no model card ({error}); move it") from None


def _check_writable(place: Path) -> None:
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ArtifactError(
            f"'{place}' may not be written by this user, or lies on a read-only file system; nothing was saved. Give "
            "yourself the right to write there, or save elsewhere"
        )


def networks_in(directory: Path) -> frozenset[str] | None:
    """The directories of the value networks of the adapter in `directory`; None if there is no adapter in it.

    Where a save was interrupted, those of the adapter before and of the new one.
    """
    config = directory / file_names.CONFIG
    if os.path.lexists(config):
        return _networks(config)
    found: list[frozenset[str] | None] = []
    for work in interrupted(directory):
        found += [_networks(work / place / file_names.CONFIG) for place in (MOVING, file_names.BEFORE, NEW)]
    known = [networks for networks in found if networks is not None]
    return frozenset().union(*known) if known else None


def interrupted(directory: Path) -> list[Path]:
    """Where saves to `directory` put their files together that began to replace what was there, and did not end."""
    works = sorted(directory.glob(f"{file_names.SAVING}*"))
    return [work for work in works if (work / MOVING).is_dir() or (work / file_names.BEFORE).is_dir()]


def _networks(config: Path) -> frozenset[str] | None:
    try:
        data = json.loads(config.read_bytes())
        if data["model_type"] != MODEL_TYPE:
            return None
        return frozenset(str(network["path"]) for network in data["networks"] if network.get("path"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def tops(networks: Collection[str]) -> set[str]:
    """The names at the root of the directories that an adapter may have."""
    own = {file_names.ALIGNMENTS, file_names.CHAT_TEMPLATES, *file_names.CODE_FOLDERS}
    return {network.split("/")[0] for network in networks} | own


def is_adapters(path: str, networks: Collection[str]) -> bool:
    """Whether the file at `path` is replaced by a save; the model card, which may be a person's, aside."""
    return file_names.is_part(path, networks) or file_names.is_code(path)


def tree(directory: Path) -> Iterator[Path]:
    """Everything in a directory, however deep, that is not a directory itself."""
    for root, folders, names in os.walk(directory):
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())
        yield from (Path(root, name) for name in names)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Waits for other processes that put an adapter into `directory`; ends with the process, however that ends."""
    handle = _lock(directory)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(directory: Path) -> int | None:
    while fcntl is not None:
        try:
            handle = os.open(directory, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):  # nobody puts anything into it
            return None
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), directory.stat()):
                return handle
        os.close(handle)  # it was exchanged while this waited
    return None
