"""Replaces the adapter in a directory as a whole: its readers see the old one, the new one, or an error.

Never a mixture, and what is not an adapter's stays. Two ways: the new directory is put together beside the old one and
the two are exchanged in one step; or, where a directory must stay (a mount point, a parent that may not be written, the
current directory, folders that are not the adapter's), inside it, and its entries are put in place one by one, with no
`config.json` until all are there. What was killed in between, the next save brings to its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from valueadapter.artifact import card, file_names
from valueadapter.artifact.save_target import (
    MOVING,
    NEW,
    alone,
    check_target,
    interrupted,
    is_adapters,
    networks_at,
    networks_in,
    resolved,
    tops,
    tree,
)
from valueadapter.errors import ArtifactError

__all__ = ["check_target", "copy_adapter", "replace_directory", "staged"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MUST_STAY = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
"""How a system says that a directory cannot be renamed, though what is in it may be."""
_IN_USE = (".nfs", ".fuse_hidden")
"""Names that a file system gives to a removed file that is still open; they vanish by themselves."""
_SINCE = "since"
"""In the folder of a save: what another process put in the adapter's place while it was moved in."""
_LOOKS = 10


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields a new directory, whose adapter takes the place of that in `target` when the block ends without an error.

    What is not an adapter's stays in `target`: a person's own files at the root (a licence, a hand-written card),
    hidden files and folders, and what a Trainer keeps in its output directory; also what another process writes there
    meanwhile. Of two processes that save an adapter there, the last wins. The yielded directory has a copy of the card.

    Raises:
        ArtifactError: see `check_target`, which says so before the work.
    """
    target = resolved(target)
    with alone(target):  # so that nothing is looked at while another process puts an adapter there
        networks = networks_at(target)
        _bring_to_its_end(target)
        work, beside = _work_folder(target)
        new = work / NEW
        try:
            new.mkdir()
            if target.is_dir():
                _copy_others(target, new, only_card=not beside)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    try:
        yield new
        if target.is_dir():
            shutil.copymode(target, new)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if not (beside and _put_beside(new, target, networks)):
        _put_inside(new, target, networks)


def copy_adapter(source: Path, target: Path) -> None:
    """Copies an adapter and the documents at its root into what `staged` gave; what a person has there already stays.

    Args:
        source: a verified adapter.
        target: what `staged` gave, or an empty directory.
    """
    networks = networks_in(source) or frozenset()
    if _is_generated(target / file_names.CARD):
        (target / file_names.CARD).unlink()
    files = [path for path in tree(source) if is_adapters(path.relative_to(source).as_posix(), networks)]
    files += [path for path in _documents(source) if not (target / path.name).exists()]
    for path in files:
        if path.is_file() and not file_names.is_hidden(path.name) and path.parent.name != "__pycache__":
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)  # not its mode: the Hub client's blobs may not be written


def _documents(directory: Path) -> list[Path]:
    """The files at the root that a person put there; the card is taken for one here."""
    named = [path for path in sorted(directory.iterdir()) if not file_names.is_training_state(path.name)]
    return [path for path in named if path.is_file() and not file_names.is_part(path.name, ())]


def _copy_others(target: Path, new: Path, *, only_card: bool) -> None:
    """Puts a person's files into `new`, so that they are there in the moment of the exchange."""
    for path in _documents(target):
        if path.name == file_names.CARD:  # which the writer of the new adapter may change
            shutil.copy2(path, new)  # with its time of change, by which `_settle` goes
        elif not only_card:
            try:
                os.link(path, new / path.name)
            except OSError:  # no such links on this file system, or not to files of another user
                shutil.copy2(path, new)


def _work_folder(target: Path) -> tuple[Path, bool]:
    """A new folder to put the adapter together in, and whether it lies beside `target`, to be exchanged with it."""
    if not _must_stay(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=file_names.SAVING, dir=target.parent)), True
        except OSError as error:
            if error.errno not in _MUST_STAY or not target.is_dir():
                raise
    return Path(tempfile.mkdtemp(prefix=file_names.SAVING, dir=target)), False


def _must_stay(target: Path) -> bool:
    """Whether `target` is known not to be movable, or has in it what others may be using by its place."""
    if not target.is_dir():
        return False
    try:
        stands_in = Path.cwd().is_relative_to(target)
    except OSError:  # the current directory was removed
        stands_in = False
    own = {*tops(networks_in(target) or ()), file_names.CONFIG, *file_names.BESIDE_CONFIG}
    copied = {path for path in _documents(target) if not path.is_symlink() and os.access(path, os.R_OK)}
    theirs = {path for path in target.iterdir() if path.name not in own} - copied
    return stands_in or bool(theirs) or any(map(os.path.ismount, (target, *target.iterdir())))


# -- exchanging the directory ------------------------------------------------------------------------------------------
def _put_beside(new: Path, target: Path, networks: frozenset[str]) -> bool:
    """Exchanges the directories; False where `target` must stay, and then nothing was changed."""
    work = new.parent
    try:
        with alone(target):
            old = replace_directory(new, target)
    except OSError as error:
        if error.errno in _MUST_STAY:
            return False
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rmdir()
        raise
    if old is not None:
        _settle(old, target, networks)
    with contextlib.suppress(OSError):
        work.rmdir()
    return True


def replace_directory(new: Path, target: Path) -> Path | None:
    """Makes `new` the directory at `target`; where what was there is now, beside `new`, if there was something."""
    if not target.exists():
        try:
            new.rename(target)
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process made it meanwhile
                raise
    if _exchange(new, target):
        return new
    # no exchange in one step here: between two renames `target` is absent, and put back if the second fails
    old = new.with_name("replaced")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    return old


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


# -- putting its entries in place --------------------------------------------------------------------------------------
def _put_inside(new: Path, target: Path, networks: frozenset[str]) -> None:
    """Moves the adapter in `target` aside and the new one in; undone if that fails."""
    works = [new.parent]
    try:
        if works[0].parent != target:  # it turned out only now that `target` must stay
            target.mkdir(exist_ok=True)
            works.append(Path(tempfile.mkdtemp(prefix=file_names.SAVING, dir=target)))
            _bring_inside(new, target, works[1] / NEW)
        work = works[-1]
        with alone(target):
            _move_out(target, work)
            _move_in(work, target, networks)
            _settle(work / file_names.BEFORE, target, networks)
    finally:
        for work in works:
            shutil.rmtree(work / NEW, ignore_errors=True)
            with contextlib.suppress(OSError):  # what could not be settled stays there
                work.rmdir()


def _bring_inside(new: Path, target: Path, place: Path) -> None:
    """Moves what `target` is to get, and does not have, to a folder in it, copying if it lies elsewhere."""
    place.mkdir()
    own = {file_names.CONFIG, file_names.CARD, *file_names.BESIDE_CONFIG, *tops(networks_in(new) or ())}
    for path in sorted(new.iterdir()):
        if path.name in own or not os.path.lexists(target / path.name):
            shutil.move(path, place / path.name)


def _move_out(target: Path, work: Path) -> None:
    """Moves the adapter in `target` aside: config.json first, from when on there is no adapter. All or nothing."""
    moving = work / MOVING
    moving.mkdir()
    own = {file_names.CARD, *file_names.BESIDE_CONFIG, *tops(networks_in(target) or ())}
    try:
        for name in (file_names.CONFIG, *sorted(own)):
            if os.path.lexists(target / name):
                shutil.move(target / name, moving / name)
        moving.rename(work / file_names.BEFORE)
    except BaseException:
        _move_back(moving, target)
        raise


def _move_back(moving: Path, target: Path) -> None:
    """Undoes `_move_out`, as far as no other process took the places meanwhile."""
    for path in sorted(moving.iterdir(), key=_config_last):
        if not os.path.lexists(target / path.name):
            shutil.move(path, target / path.name)
    with contextlib.suppress(OSError):
        moving.rmdir()


def _move_in(work: Path, target: Path, networks: frozenset[str]) -> None:
    """Moves the new adapter in: config.json last, from when on there is an adapter. All or nothing."""
    new, since, done = work / NEW, work / _SINCE, []
    own = {file_names.CONFIG, file_names.CARD, *file_names.BESIDE_CONFIG, *tops(networks_in(new) or ())}
    since.mkdir(exist_ok=True)
    try:
        for path in sorted(new.iterdir(), key=_config_last):
            if os.path.lexists(target / path.name):
                if path.name not in own:
                    continue  # a person's own there, before one that the adapter was copied with
                shutil.move(target / path.name, since)  # another process put it there a moment ago
            shutil.move(path, target / path.name)
            done.append(path)
    except BaseException:
        for path in reversed(done):
            shutil.move(target / path.name, path)
        _move_back(since, target)
        (work / file_names.BEFORE).rename(work / MOVING)
        _move_back(work / MOVING, target)
        raise
    _settle(since, target, networks)


def _config_last(path: Path) -> tuple[bool, str]:
    return path.name == file_names.CONFIG, path.name


def _bring_to_its_end(target: Path) -> None:
    """Ends what was killed while it put an adapter into `target`: as if it had not begun, or with the new adapter."""
    for work in interrupted(target) if target.is_dir() else ():
        moving, before = work / MOVING, work / file_names.BEFORE
        if not os.path.lexists(target / file_names.CONFIG):
            if moving.is_dir():
                _move_back(moving, target)
            elif (work / NEW / file_names.CONFIG).exists():
                _move_in(work, target, frozenset())
        for old in (moving, before, work / _SINCE):
            if old.is_dir():
                _settle(old, target, frozenset())
        shutil.rmtree(work / NEW, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rmdir()


# -- what is not the adapter's -----------------------------------------------------------------------------------------
def _settle(old: Path, new: Path, networks: frozenset[str]) -> None:
    """Moves what is not an adapter's, and what was written to `old` meanwhile, to `new`, and removes `old`.

    A person's file is moved, not left as the copy that `new` has: whoever has it open goes on writing to it.

    Raises:
        ArtifactError: other processes go on writing to `old`.
    """
    networks = (networks_in(old) or frozenset()) | networks
    left: list[Path] = []
    for _ in range(_LOOKS):
        left = [path for path in tree(old) if not path.name.startswith(_IN_USE)]
        for path in left:
            name = path.relative_to(old).as_posix()
            own = is_adapters(name, networks) or (name == file_names.CARD and _is_generated(path))
            try:
                if own or _is_at(new / name, path):
                    path.unlink()
                else:
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    path.replace(new / name)
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                error.add_note(f"The adapter was saved to '{new}'; what else was there lies in '{old}' now.")
                raise
        if _remove_folders(old, new, tops(networks)):
            return
    if left:
        raise ArtifactError(
            f"the adapter was saved to '{new}', but other processes go on writing to what was there before; it lies in "
            f"'{old}' now, and nothing of theirs was removed"
        )


def _is_at(place: Path, path: Path) -> bool:
    """Whether a file is at `place` already: the same, or one that another process wrote there since."""
    if not os.path.lexists(place):
        return False
    there, here = place.lstat(), path.lstat()
    return os.path.samestat(there, here) or there.st_mtime_ns > here.st_mtime_ns


def _is_generated(path: Path) -> bool:
    try:
        return card.is_generated(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False


def _remove_folders(old: Path, new: Path, own: set[str]) -> bool:
    """Removes empty folders, after making those that are not the adapter's in `new`; False if some were not empty."""
    emptied = True
    for root, _, _ in os.walk(old, topdown=False):
        name = Path(root).relative_to(old)
        if name.parts and name.parts[0] not in own:
            (new / name).mkdir(parents=True, exist_ok=True)
        try:
            os.rmdir(root)
        except OSError:
            emptied = False
    return emptied
