"""The records of a file as they stand in it: JSON Lines, JSON or CSV, packed or not.

Knows nothing of what a record must hold. No type is guessed, so texts stay texts, and a file's name is a name, never a
pattern.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from valueadapter.compat import require
from valueadapter.errors import ConfigError

FORMATS = {".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV"}
"""Ending -> what such a file is. Parquet, a table of Arrow's, is read in `demonstrations`."""
PARQUET = ".parquet"
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
READABLE = f"{', '.join((*FORMATS, PARQUET))}, each also packed ({', '.join(PACKED)})"
"""For messages: the endings that are read, in whatever case."""
_NO_TEXT = {
    b"\x1f\x8b": "is packed with gzip; give it an ending such as .jsonl.gz",
    b"PK\x03\x04": "is a zip file; give it an ending such as .jsonl.zip",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; give it an ending such as .jsonl.zst",
    b"PAR1": "is Parquet; give it the ending .parquet",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}
_NO_PACK = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)  # a password
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Found:
    """What stands in a file, in its order."""

    rows: Sequence[Any]
    """JSON values, which need not be records; None where `broken` says what is wrong."""
    numbers: Sequence[int]
    """Where each begins: the number of its line, from 1, unless `form` says otherwise."""
    form: str = "line {}"
    """How such a number is written in a message."""
    broken: Mapping[int, str] = field(default_factory=dict)
    """Index of a row -> why it cannot be read."""


def ending_of(name: str) -> tuple[str, str]:
    """The ending that says what a file is, and the one that says how it is packed, both in lower case or empty."""
    endings = [ending.lower() for ending in PurePath(name).suffixes]
    packed = endings.pop() if endings and endings[-1] in PACKED else ""
    return endings[-1] if endings else "", packed


def is_readable(name: str) -> bool:
    """Whether a file of this name would be read; of a zip file that holds one, what is inside decides."""
    ending, packed = ending_of(name)
    return ending in FORMATS or ending == PARQUET or packed == ".zip"


def unpacked(path: str) -> tuple[str, bytes]:
    """The ending that says what a file is, and its bytes without the packing.

    Raises:
        ConfigError: nothing that is read has such an ending, or the packing is damaged.
    """
    ending, packed = ending_of(path)
    if not is_readable(path):
        raise ConfigError(_unread(path, ending))
    with open(path, "rb") as file:
        data = file.read()
    if data.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{path}: is a pointer of Git LFS and not the data; run `git lfs pull` where it comes from")
    try:
        if packed == ".zip":
            ending, data = _only_member(path, data)
        else:
            data = _unpack(data, packed)
    except ConfigError:
        raise
    except _NO_PACK as error:
        raise ConfigError(
            f"{path}: cannot be unpacked, it is damaged, cut off or locked ({error}); get it anew"
        ) from error
    if ending not in FORMATS and ending != PARQUET:
        raise ConfigError(_unread(path, ending))
    return ending, data


def _unread(path: str, ending: str) -> str:
    return f"{path}: files ending in '{ending}' are not read; expected {READABLE}"


def _unpack(data: bytes, packed: str) -> bytes:
    if packed == ".gz":
        return gzip.decompress(data)
    if packed == ".bz2":
        return bz2.decompress(data)
    if packed == ".xz":
        return lzma.decompress(data)
    if packed == ".zst":
        require("train", "pyarrow")
        import pyarrow  # comes with datasets; the standard library has no zstd before Python 3.14

        with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
            return bytes(stream.read())
    return data


def _only_member(path: str, data: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ConfigError(
                f"{path}: a zip file with demonstrations must hold one file; got {len(names)} "
                f"({', '.join(names[:3])}{' …' if len(names) > 3 else ''}). Unpack it and give one of them"
            )
        return ending_of(names[0])[0], archive.read(names[0])


def read(path: str, data: bytes, ending: str) -> Found:
    """The records of a text file.

    Args:
        path: for messages.
        data: the file's bytes, not packed.
        ending: one of FORMATS.

    Raises:
        ConfigError: this is no text, no JSON, or no table; with the line.
    """
    text = _text(path, data)
    try:
        if FORMATS[ending] == "CSV":
            return _csv(text, "\t" if ending == ".tsv" else ",")
        begin = _skip(text, 0)
        if text[begin : begin + 1] == "[":
            return _json_array(text, begin)
        return _json_lines(text) if FORMATS[ending] == "JSON Lines" else _json_object(text, begin)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {_no_json(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {_no_json(error)}") from error


def _text(path: str, data: bytes) -> str:
    for begin, problem in _NO_TEXT.items():
        if data.startswith(begin):
            raise ConfigError(f"{path}: {problem}")
    if b"\0" in data[:4]:
        raise ConfigError(f"{path}: is no text, or text as UTF-16 or UTF-32; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


# -- JSON -------------------------------------------------------------------------------------------------------------
def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice, and one of its values would be lost")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _no_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        at_end = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated")
        cut = "it looks cut off: " if at_end else ""
        why = f"{error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')} at column {error.colno}"
        return f"no complete JSON ({cut}{why}); each line must be one record, a whole JSON object"
    return "JSON nested too deep" if isinstance(error, RecursionError) else str(error)


def _skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _json_lines(text: str) -> Found:
    rows: list[Any] = []
    numbers: list[int] = []
    broken: dict[int, str] = {}
    for number, line in enumerate(text.split("\n"), 1):  # no other character ends a line of JSON
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            value = None
            broken[len(rows)] = _no_json(error)
        rows.append(value)
        numbers.append(number)
    return Found(rows, numbers, broken=broken)


def _json_array(text: str, at: int) -> Found:
    """Each element, and the line that it begins in; `at` is where the array opens."""
    rows: list[Any] = []
    numbers: list[int] = []
    line, counted = 1, 0
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        if rows:
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1)
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                raise
            return Found([*rows, None], [*numbers, line], broken={len(rows): _no_json(error)})
        rows.append(value)
        numbers.append(line)
        at = _skip(text, at)
    end = _skip(text, at + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data after the array", text, end)
    return Found(rows, numbers)


def _json_object(text: str, at: int) -> Found:
    """One record, a table under `data`, or, in spite of the name, JSON Lines."""
    if at == len(text):
        return Found([], [])
    value, end = _DECODER.raw_decode(text, at)
    if _skip(text, end) < len(text):
        return _json_lines(text)
    shaped = isinstance(value, dict) and {"prompt", "messages", "text"} & set(value)
    if isinstance(value, dict) and not shaped and isinstance(rows := value.get("data"), list):
        return Found(rows, range(len(rows)), "record {} of 'data' (the first is 0)")
    return Found([value], [text.count("\n", 0, at) + 1])


# -- CSV --------------------------------------------------------------------------------------------------------------
def _csv(text: str, delimiter: str) -> Found:
    """Rows as objects, each value a text."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Any] = []
    numbers: list[int] = []
    broken: dict[int, str] = {}
    header: list[str] | None = None
    begun, limit = 1, csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        for cells in reader:
            number, begun = begun, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                _check_header(header, delimiter)
                continue
            if len(cells) != len(header):
                broken[len(rows)] = f"{len(cells)} cells, and the first line names {len(header)} columns"
            rows.append(dict(zip(header, cells, strict=False)))
            numbers.append(number)
    except csv.Error as error:
        broken[len(rows)] = f"no row of a CSV file ({error}); a quote within quotes is written twice"
        rows.append(None)
        numbers.append(begun)
    finally:
        csv.field_size_limit(limit)
    return Found(rows, numbers, broken=broken)


def _check_header(header: Sequence[str], delimiter: str) -> None:
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"the first line names the column {twice!r} twice")
    other = next((sign for sign in ";\t," if sign != delimiter and sign in header[0]), None)
    if len(header) == 1 and other is not None:
        raise ValueError(
            f"the columns are parted by {other!r} (got {header[0]!r} as the first line); expected {delimiter!r}"
            + (". Give the file the ending .tsv" if other == "\t" else "")
        )


def listing(folder: str) -> str:
    """For messages: the files in a directory that could be read."""
    names = sorted(name for name in os.listdir(folder) if is_readable(name))
    return f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
