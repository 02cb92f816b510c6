"""Which files and links may lie in an adapter's directory; opens none of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from valueadapter.artifact import file_names
from valueadapter.errors import ArtifactError, MissingFileError

_SHARED_BLOBS = ".huggingface-shared-blobs"


def files(directory: Path) -> Iterator[Path]:
    """Every file, and every folder that is a link, but hidden folders and a Trainer's state, which nothing opens."""
    for root, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not file_names.is_hidden(name)]
        if Path(root) == directory:
            folders[:] = [name for name in folders if not file_names.is_training_state(name)]
            names = [name for name in names if not file_names.is_training_state(name)]
        # a folder that is a link could lead anywhere: show it to the check, do not walk it
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())
        yield from (Path(root, name) for name in names)


def check_inside(directory: Path, path: Path) -> None:
    """A link may stay inside the directory; in the Hub client's cache it may also lead to that cache's own blobs.

    Raises:
        ArtifactError: it leads elsewhere, or in a circle.
        MissingFileError: it leads to nothing.
    """
    root = directory.resolve()
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        raise MissingFileError(
            f"'{path}' is a link to '{os.path.realpath(path)}', which is not there. If '{directory}' is a copy of a "
            "folder in the Hub client's cache, copy what its links lead to (cp -RL); else download or save it again"
        ) from None
    except (OSError, RuntimeError) as error:  # a circle of links, by Python version
        raise ArtifactError(
            f"'{path}' is a link that cannot be followed ({error}). Download or save the adapter again"
        ) from None
    if not any(target.is_relative_to(home) for home in (root, *_blobs(root))):
        raise ArtifactError(
            f"'{path}' is a link that leaves the adapter's directory (to '{target}'); it was not followed. Links may "
            "lead to files in the directory or, in the Hub client's cache, to that cache's blobs: load a copy of the "
            "directory that holds the files themselves (cp -RL)"
        )


def _blobs(root: Path) -> Iterator[Path]:
    """Where the Hub client keeps the files that links in its cache lead to, if `root` lies in its cache.

    …/models--user--name/snapshots/<commit>/… links to …/models--user--name/blobs/…, and what came through Xet lies in
    …/blobs/…, which all repositories of the cache share and which a file marks as the client's.
    """
    for parent in (root, *root.parents):
        if parent.parent.name == "snapshots":
            repository = parent.parent.parent
            shared = repository.parent / "blobs"
            if (repository / "blobs").is_dir():
                yield (repository / "blobs").resolve()
            if (shared / _SHARED_BLOBS).is_file() and not shared.is_symlink():
                yield shared


def check_kind(directory: Path, path: Path) -> None:
    """A file is neither a pickle nor code, by its name.

    Raises:
        ArtifactError: it is, or may be.
    """
    shown = path.relative_to(directory).as_posix()
    if path.suffix.lower() in file_names.PICKLES:
        raise ArtifactError(
            f"'{shown}' may be a pickle, which can run code when opened; it was not opened. "
            f"A value adapter holds safetensors only: remove it from '{directory}'"
        )
    if path.suffix == ".py" and shown.split("/")[0] not in file_names.CODE_FOLDERS:
        raise ArtifactError(
            f"'{shown}' is code; a value adapter holds none but what `valueadapter export` writes, in "
            f"{' and '.join(file_names.CODE_FOLDERS)}. Remove it from '{directory}'"
        )
    folder, _, name = shown.partition("/")
    if folder == file_names.CHAT_TEMPLATES and not _is_template(name):
        raise ArtifactError(
            f"'{shown}' is no chat template; '{file_names.CHAT_TEMPLATES}' holds files that end with "
            f"{file_names.CHAT_TEMPLATE} and nothing else: remove it from '{directory}'"
        )


def _is_template(name: str) -> bool:
    """Whether a file among the chat templates is one, or hidden and not taken for one."""
    ends = name.endswith(file_names.CHAT_TEMPLATE)
    return not ends if file_names.is_hidden(name) else ends and "/" not in name
