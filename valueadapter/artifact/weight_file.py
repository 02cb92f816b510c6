"""A safetensors file that is opened once: what is hashed is what is read. Knows bytes and shapes, no torch, no meaning.

A file at the same path may be another one a moment later, where another process saves; an opened file stays the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from valueadapter.artifact import known_blobs
from valueadapter.errors import ArtifactError

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Size of one element of each dtype, as safetensors names them."""
_LONGEST_HEADER = 100_000_000
"""As in safetensors itself."""
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    name: str
    dtype: str
    """As safetensors names it: F32, BF16, …"""
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin, from the end of the header."""
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class WeightFile:
    """An opened safetensors file.

    Attributes:
        path: where it was opened, for messages.
        tensors: name -> what is stored, in the order of the file.

    Raises:
        ArtifactError: truncated or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb")
        try:
            self._header = self._read_header()
            self.tensors = self._parse(self._header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; its header stays known."""
        self._file.close()

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's own notes."""
        found: Mapping[str, str] = json.loads(self._header[8:]).get("__metadata__") or {}
        return found

    @property
    def table(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (dtype, shape)."""
        return {name: (one.dtype, one.shape) for name, one in self.tensors.items()}

    def read(self, place: Callable[[Stored], memoryview] | None, expected: str | None) -> None:
        """Reads every tensor, once, and only then compares the checksum of what was read, unless that is known.

        Args:
            place: where the bytes of a tensor go, as many as it has; called in the order of the file. None keeps none.
            expected: SHA-256 of the whole file, 64 hex digits; None compares nothing.

        Raises:
            ArtifactError: the file has another checksum, or has become shorter.
        """
        opened = os.fstat(self._file.fileno())
        known = expected is not None and known_blobs.is_known(self.path, expected, opened)
        digest = hashlib.sha256(self._header)
        self._file.seek(len(self._header))
        with ThreadPoolExecutor(1) as hasher:  # one part is hashed while the next is read
            hashed: Future[None] | None = None
            for part in self._parts(place):
                if self._file.readinto(part) != len(part):  # type: ignore[attr-defined]  # a buffered reader's
                    raise self._damaged("it has become shorter while it was read")
                if hashed is not None:
                    hashed.result()
                hashed = None if known else hasher.submit(digest.update, part)
        if known:
            if not self.is_known(str(expected)):  # it was touched meanwhile, perhaps by another reader
                self.read(place, expected)
            return
        if self._file.read(1):
            raise self._damaged("it has become longer while it was read")
        if expected is not None and (got := digest.hexdigest()) != expected:
            raise ArtifactError(
                f"'{self.path}' has changed since it was saved: SHA-256 is {got}, config.json says {expected}. "
                "Download or save the adapter again"
            )
        if expected is not None:
            known_blobs.note(self.path, expected, opened)

    def _parts(self, place: Callable[[Stored], memoryview] | None) -> Iterator[memoryview]:
        """Where the bytes go, part by part; two buffers in turn where none are kept."""
        spare = [memoryview(bytearray(_CHUNK if place is None else 0)) for _ in range(2)]
        turn = 0
        for one in self.tensors.values():
            size, into = one.end - one.begin, None if place is None else place(one)
            for begin in range(0, size, _CHUNK):
                turn = 1 - turn
                yield spare[turn][: size - begin] if into is None else into[begin : begin + _CHUNK]

    def is_known(self, expected: str) -> bool:
        """Whether it has been read before and had this checksum; only of what the Hub's cache holds."""
        return known_blobs.is_known(self.path, expected, os.fstat(self._file.fileno()))

    def check(self, expected: str) -> None:
        """Reads the file for its checksum only, unless that is known.

        Raises:
            ArtifactError: see `read`.
        """
        if not self.is_known(expected):
            self.read(None, expected)

    def copy(self, target: Path, expected: str) -> None:
        """Writes what is read to another file, and only then compares the checksum.

        Raises:
            ArtifactError: see `read`.
        """
        content = memoryview(bytearray(max((one.end for one in self.tensors.values()), default=0)))
        self.read(lambda one: content[one.begin : one.end], expected)
        with target.open("wb") as file:
            file.writelines((self._header, content))

    def _read_header(self) -> bytes:
        length = self._file.read(8)
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > _LONGEST_HEADER:
            raise self._damaged("it has no header" if len(length) < 8 else f"its header would be {size:,} bytes")
        header = self._file.read(size)
        if len(header) < size:
            raise self._damaged(f"its header ends after {len(header):,} of {size:,} bytes")
        return length + header

    def _parse(self, header: bytes) -> dict[str, Stored]:
        try:
            entries = json.loads(header[8:])
            notes = entries.pop("__metadata__", None) or {}
            if not all(isinstance(note, str) for note in notes.values()):
                raise self._damaged("its metadata are no strings")
            found = sorted(
                (self._stored(name, entry) for name, entry in entries.items()), key=lambda one: (one.begin, one.end)
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header cannot be read: {type(error).__name__}: {error}") from None
        ends = [0, *(one.end for one in found)]
        if any(one.begin != end for one, end in zip(found, ends, strict=False)):
            raise self._damaged("its tensors overlap or leave holes")
        held = self._file.seek(0, 2) - len(header)
        if held != ends[-1]:
            raise self._damaged(f"its tensors take {ends[-1]:,} bytes, and it holds {held:,}")
        return {one.name: one for one in found}

    def _stored(self, name: str, entry: Any) -> Stored:
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        if set(entry) != {"dtype", "shape", "data_offsets"} or any(type(n) is not int or n < 0 for n in numbers):
            raise self._damaged(f"the entry of tensor '{name}' is {str(entry)[:120]}")
        if entry["dtype"] not in BYTES or math.prod(shape) * BYTES[entry["dtype"]] != end - begin:
            raise self._damaged(f"tensor '{name}' of {entry['dtype']} {shape} cannot take {end - begin:,} bytes")
        return Stored(name, entry["dtype"], shape, begin, end)

    def _damaged(self, what: str) -> ArtifactError:
        size = self.path.stat().st_size if self.path.exists() else 0
        return ArtifactError(
            f"'{self.path}' is truncated or corrupt ({size:,} bytes; {what}). Download or save the adapter again"
        )
