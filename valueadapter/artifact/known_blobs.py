"""Which files of the Hub's cache have been read in whole and had the checksum that they are named by; opens none.

The cache keeps a large file under its SHA-256 (`blobs/<sha256>`), and the files of an adapter are links to it. Once
such a file has been read and found right, that is noted beside the cache, with what tells the file from a later one; so
each byte of a download is hashed once, not at each load. Files anywhere else are hashed whenever they are read.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from huggingface_hub import constants

_BLOBS = "blobs"


def is_known(path: Path, sha256: str, opened: os.stat_result) -> bool:
    """Whether a file has been read before and had this checksum, and is still that file.

    Args:
        path: where it was opened.
        sha256: 64 hex digits.
        opened: of the opened file.
    """
    if not _is_blob(path, sha256):
        return False
    try:
        noted = json.loads(_note(sha256).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(noted == _state(opened))


def note(path: Path, sha256: str, opened: os.stat_result) -> None:
    """Notes that a file has been read and has this checksum; nothing where it is in no cache, or that fails."""
    if not _is_blob(path, sha256):
        return
    place = _note(sha256)
    with contextlib.suppress(OSError):  # a cache that others own is read all the same
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_suffix(f".{os.getpid()}")
        try:
            new.write_text(json.dumps(_state(opened)), "utf-8")
            new.replace(place)
        finally:
            new.unlink(missing_ok=True)


def _is_blob(path: Path, sha256: str) -> bool:
    real = path.resolve()
    return real.name == sha256 and real.parent.name == _BLOBS


def _note(sha256: str) -> Path:
    return Path(constants.HF_HOME, "valueadapter", "verified", sha256)


def _state(opened: os.stat_result) -> list[int]:
    return [opened.st_dev, opened.st_ino, opened.st_size, opened.st_mtime_ns, opened.st_ctime_ns]
