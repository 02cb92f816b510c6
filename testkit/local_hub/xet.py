"""Reads the directory into which the `hf_xet` client writes for a `local://` address; writes nothing itself.

Such a directory holds *shards* (which files exist, and of which pieces of which xorbs they consist) and *xorbs* (the
pieces, each compressed or not, as the client found better).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from testkit.local_hub.messages import HubError

_RECORD = 48
"""Bytes of a shard's header and of each record in it."""
_END = b"\xff" * 32
"""Where a file's hash would stand after the last file."""
_HAS_VERIFICATION, _HAS_METADATA = 1 << 31, 1 << 30
_CHUNK_HEADER = 8
_PLAIN, _LZ4, _GROUPED_LZ4 = 0, 1, 2
"""How a chunk is stored: as it is, as an LZ4 frame, or so after all first bytes of four, then all second ones, …"""


class Segment(NamedTuple):
    """Chunks `first` (included) to `last` (excluded) of a xorb."""

    xorb: str
    first: int
    last: int
    size: int
    """Bytes of them as they were before they were stored."""


class XetFile(NamedTuple):
    """A file as a shard describes it."""

    hash: str
    sha256: str | None
    segments: list[Segment]

    @property
    def size(self) -> int:
        """Bytes of its content."""
        return sum(segment.size for segment in self.segments)


class XetStorage:
    """What clients have uploaded to the directory `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, sha256: str) -> XetFile | None:
        """The file whose content has this SHA-256, if a client uploaded it."""
        for shard in self.folder.rglob("shards/*.mdb"):
            for file in _files(shard.read_bytes()):
                if file.sha256 == sha256:
                    return file
        return None

    def read(self, file: XetFile) -> bytes:
        """The content of a file.

        Raises:
            HubError: it is not stored, or in a way that is not known here (500).
        """
        pieces: list[bytes] = []
        for segment in file.segments:
            xorb = next(self.folder.rglob(f"default.{segment.xorb}"), None)
            if xorb is None:
                raise HubError(500, f"a client named the xorb {segment.xorb}, and has not stored it")
            pieces += list(_chunks(xorb.read_bytes(), segment.last))[segment.first :]
        return b"".join(pieces)


def _files(shard: bytes) -> Iterator[XetFile]:
    """The files of a shard; each is a header, its segments, as many verifications, and its SHA-256."""
    offset = _RECORD
    while shard[offset : offset + 32] != _END:
        file_hash = _hash(shard, offset)
        flags, count = struct.unpack_from("<II", shard, offset + 32)
        first = offset + _RECORD
        segments = [_segment(shard, first + _RECORD * index) for index in range(count)]
        offset = first + _RECORD * count * (2 if flags & _HAS_VERIFICATION else 1)
        sha256 = _hash(shard, offset) if flags & _HAS_METADATA else None
        offset += _RECORD if flags & _HAS_METADATA else 0
        yield XetFile(file_hash, sha256, segments)


def _segment(shard: bytes, offset: int) -> Segment:
    size, first, last = struct.unpack_from("<III", shard, offset + 36)
    return Segment(_hash(shard, offset), first, last, size)


def _hash(data: bytes, offset: int) -> str:
    """Xet writes a hash as four little-endian numbers and prints each as hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data, offset))


def _chunks(xorb: bytes, count: int) -> Iterator[bytes]:
    """The first `count` chunks of a xorb; each is a header (version, stored length, scheme, length) and data."""
    offset = 0
    for _ in range(count):
        stored, scheme = int.from_bytes(xorb[offset + 1 : offset + 4], "little"), xorb[offset + 4]
        length = int.from_bytes(xorb[offset + 5 : offset + 8], "little")
        offset += _CHUNK_HEADER
        yield _unpacked(xorb[offset : offset + stored], scheme, length)
        offset += stored


def _unpacked(data: bytes, scheme: int, length: int) -> bytes:
    """A chunk as it was before it was stored, `length` bytes."""
    if scheme == _PLAIN:
        return data
    if scheme not in (_LZ4, _GROUPED_LZ4):
        raise HubError(500, f"a client stored a chunk by scheme {scheme}; this hub knows 0 to 2")
    import pyarrow  # comes with datasets

    plain = pyarrow.Codec("lz4").decompress(data, length, asbytes=True)
    if scheme == _LZ4:
        return bytes(plain)
    grouped, ungrouped = np.frombuffer(plain, np.uint8), np.empty(length, np.uint8)
    begin = 0
    for first in range(4):
        part = ungrouped[first::4]
        part[:] = grouped[begin : begin + len(part)]
        begin += len(part)
    return ungrouped.tobytes()
