"""Replaces a directory as a whole: its readers see the old content or the new, never a mixture.

Knows nothing of what the directory holds beyond the names that belong to an adapter.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from valueadapter import layout
from valueadapter.config import MODEL_TYPE
from valueadapter.errors import ArtifactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside `target`, which takes its place when the block ends without an error.

    Files of the user's own at the root of an earlier adapter in `target` (a licence, a hand-written note) are kept, and
    so is what a Trainer has in its output directory (checkpoints, its state, its model card).

    Raises:
        ArtifactError: `target` holds something that is not a value adapter and would be lost.
    """
    kept = _files_to_keep(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.saving-", dir=target.parent))
    try:
        for path in kept:
            if path.is_dir():
                shutil.copytree(path, staging / path.name, symlinks=True, copy_function=_link)
            else:
                shutil.copy2(path, staging / path.name)
        yield staging
        staging.chmod(0o777 & ~_umask())
        _replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path) -> None:
    """Whether an adapter could be saved in `target`, asked before any work.

    Raises:
        ArtifactError: as `staged`.
    """
    _files_to_keep(target)


def _files_to_keep(target: Path) -> list[Path]:
    """What is not the earlier adapter's, but a user's or a Trainer's; raises if anything else would be lost."""
    if target.is_file():
        raise ArtifactError(f"'{target}' is a file; expected a directory to save the adapter to")
    if target == Path.cwd():
        raise ArtifactError(f"'{target}' is the current directory, which cannot be replaced; save to one inside it")
    entries = sorted(target.iterdir()) if target.is_dir() else []
    if not entries:
        return []
    folders = _folders_of_adapter(target)
    training = [entry for entry in entries if layout.is_training_state(entry.name) and not entry.is_symlink()]
    if folders is None and not _is_output_of_training(entries):
        names = ", ".join(entry.name for entry in entries[:3])
        raise ArtifactError(f"'{target}' holds something else ({names}); choose an empty or a new directory")
    others = [entry for entry in entries if entry not in training]
    for entry in others:
        if entry.is_symlink() or (entry.is_dir() and entry.name not in (folders or ())):
            raise ArtifactError(
                f"'{entry}' is not part of a value adapter and would be lost; move it or save elsewhere"
            )
    own = {layout.CONFIG, *layout.TOKENIZER_FILES}
    return training + [entry for entry in others if entry.is_file() and entry.name not in own]


def _is_output_of_training(entries: list[Path]) -> bool:
    """Whether a directory without an adapter holds nothing but a Trainer's state, tokenizer and model card."""
    known = {layout.CARD, *layout.TOKENIZER_FILES}
    return any(layout.is_training_state(entry.name) for entry in entries) and all(
        layout.is_training_state(entry.name) or entry.name in known for entry in entries
    )


def _link(source: str, target: str) -> None:
    """A second name for a file in place of a copy, where the file system has such; checkpoints may be large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _folders_of_adapter(target: Path) -> set[str] | None:
    """The directories that the adapter in `target` consists of; None if there is no adapter in it."""
    try:
        config = json.loads((target / layout.CONFIG).read_bytes())
        paths = [network.get("path") for network in config["networks"]] if config["model_type"] == MODEL_TYPE else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    own = {layout.ALIGNMENTS, *layout.CODE_FOLDERS}
    return None if paths is None else {str(path).split("/")[0] for path in paths if path} | own


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace(staging: Path, target: Path) -> None:
    """Moves `staging` to `target`; what was at `target` ends up at `staging`."""
    if not target.exists() or not any(target.iterdir()):
        staging.rename(target)  # POSIX lets a directory replace an empty one
        return
    if _exchange(staging, target):
        return
    # No atomic exchange here: between these two renames `target` is absent, and put back if the second fails.
    old = target.with_name(f"{staging.name}.old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two directories in one step (Linux renameat2); False where the system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))
