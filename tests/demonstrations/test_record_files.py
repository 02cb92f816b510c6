"""Files of demonstrations: whatever was written is read back, and what is no record is named by its line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from valueadapter import ConfigError
from valueadapter.demonstrations.tokenized import load_demonstrations

Record = dict[str, Any]
LINE = '{"prompt": "a", "completion": "b"}\n'
LIKE_OTHER_TYPES = st.sampled_from(
    [
        "2024-01-01",
        "2024-01-01T10:00:00Z",
        "10:30",
        "1",
        "-0",
        "1e5",
        "007",
        "1.0",
        "true",
        "null",
        "None",
        "NaN",
        "N/A",
    ]
)
TEXTS = LIKE_OTHER_TYPES | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(*columns: str) -> st.SearchStrategy[list[Record]]:
    """Records of one type of text each, since a type is guessed of a column."""
    like = st.lists(st.fixed_dictionaries(dict.fromkeys(columns, LIKE_OTHER_TYPES)), min_size=1, max_size=4)
    return like | st.lists(st.fixed_dictionaries(dict.fromkeys(columns, TEXTS)), min_size=1, max_size=4)


def as_lines(rows: list[Record]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows: list[Record]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_data(rows: list[Record]) -> bytes:
    return json.dumps({"version": "1", "data": rows}).encode()


def as_csv(rows: list[Record], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[Record]) -> bytes:
    out = io.BytesIO()
    schema = pyarrow.schema([(name, pyarrow.string()) for name in rows[0]])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), out)
    return out.getvalue()


def as_zip(data: bytes, name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("__MACOSX/._x", b"nothing")
        archive.writestr(name, data)
    return out.getvalue()


def as_zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, "zstd", asbytes=True))


FORMATS: dict[str, Callable[[list[Record]], bytes]] = {
    "a.jsonl": as_lines,
    "a.NDJSON": as_lines,
    "lines.json": as_lines,
    "array.JSON": as_array,
    "array.jsonl": as_array,
    "data.json": as_data,
    "a.csv": as_csv,
    "a.TSV": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
    "marked.jsonl": lambda rows: b"\xef\xbb\xbf" + as_lines(rows),
    "windows.jsonl": lambda rows: as_lines(rows).replace(b"\n", b"\r\n"),
    "blank.jsonl": lambda rows: b"\n  \n" + as_lines(rows).replace(b"\n", b"\n\n"),
    "a.jsonl.gz": lambda rows: gzip.compress(as_lines(rows)),
    "parts.jsonl.gz": lambda rows: b"".join(gzip.compress(as_lines([row])) for row in rows),
    "a.csv.bz2": lambda rows: bz2.compress(as_csv(rows)),
    "a.json.XZ": lambda rows: lzma.compress(as_array(rows)),
    "a.jsonl.zst": lambda rows: as_zstd(as_lines(rows)),
    "parts.jsonl.zst": lambda rows: b"".join(as_zstd(as_lines([row])) for row in rows),
    "a.parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
    "a.zip": lambda rows: as_zip(as_lines(rows), "inner/a.jsonl"),
    "b.csv.zip": lambda rows: as_zip(as_csv(rows), "b.csv"),
}


@pytest.mark.parametrize("name", FORMATS)
@FEW
@given(rows=rows_of("prompt", "completion"))
def test_what_was_written_is_read_back(tmp_path: Path, name: str, rows: list[Record]) -> None:
    """Texts of every kind, among them those that look like dates, numbers and nulls, in every format."""
    path = tmp_path / name
    path.write_bytes(FORMATS[name](rows))
    assert list(load_demonstrations(path)) == rows
    assert list(load_demonstrations(str(path))) == rows


@FEW
@given(
    rows=st.lists(st.tuples(rows_of("content"), TEXTS, st.booleans() | st.integers() | TEXTS), min_size=1, max_size=3)
)
def test_chats_are_read_back(tmp_path: Path, rows: list[Any]) -> None:
    """Dates in chats stay texts, and objects that stand beside others keep the keys they have."""
    records = [
        {
            "messages": [
                *({"role": "user", **turn} for turn in turns),
                {"role": "assistant", "content": text},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {text: value}}}]},
            ],
            "choices": [text],
            "answer": 0,
        }
        for turns, text, value in rows
    ]
    path = tmp_path / "chats.jsonl"
    path.write_bytes(as_lines(records))
    assert list(load_demonstrations(path)) == records


NAMES = ["data[12].jsonl", "run[v2]/a.jsonl", "a*.jsonl", "a?.jsonl", "a::b.jsonl", "a b.jsonl", "{a,b}.jsonl"]
NAMES += ["ä%20#.csv", "zip::a.jsonl", "!(a).jsonl", "**/a.jsonl", "up.JSONL", "a.jsonl.jsonl", "-a.json"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No character of a file's or directory's name is a pattern, a protocol or an archive; neighbours stay unread."""
    monkeypatch.chdir(tmp_path)
    for other in ("data1.jsonl", "run2/a.jsonl", "runv/a.jsonl", "aa.jsonl", "ab.jsonl", "a.jsonl", "b.jsonl"):
        Path(other).parent.mkdir(exist_ok=True)
        Path(other).write_text(LINE)
    rows = [{"prompt": name, "completion": "2024-01-01"}]
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(as_csv(rows) if name.endswith("csv") else as_lines(rows))
    assert list(load_demonstrations(name)) == rows
    assert list(load_demonstrations(tmp_path / name)) == rows


CUT = '{"prompt": "a", "comp'
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "cut off": ("a.jsonl", (LINE * 2 + CUT).encode(), "a.jsonl, line 3: no complete JSON .it looks cut off"),
    "cut off within": ("a.jsonl", (LINE + CUT + "\n" + LINE).encode(), "line 2: no complete JSON"),
    "after blank lines": ("a.jsonl", ("\n\n" + LINE + "\n" + CUT).encode(), "line 5: no complete JSON"),
    "cut off array": ("a.json", ("[\n" + LINE + ",\n" + CUT).encode(), "a.json, line 4: no complete JSON"),
    "no comma": ("a.json", ("[\n" + LINE + LINE + "]").encode(), "a.json, line 3: no complete JSON"),
    "more": ("a.json", ("[\n" + LINE + "]\n]").encode(), "a.json, line 4: no complete JSON .extra data"),
    "several": ("a.jsonl", (LINE + "{\n{\n[]\n").encode(), r"line 2: .*\(3 of 4 records are wrong; this is the first"),
    "zeros": ("a.jsonl", LINE.encode() + b"\0" * 9, "line 2: no complete JSON"),
    "a list": ("a.jsonl", (LINE + '["a"]\n').encode(), "line 2: a record must be an object with keys; got .* .a list"),
    "a number": ("a.jsonl", (LINE + "7").encode(), "line 2: a record must be an object with keys; got 7 .a number"),
    "twice": ("a.jsonl", (LINE + '{"text": "a", "text": "b"}').encode(), "line 2: the key 'text' stands there twice"),
    "deep": ("a.jsonl", (LINE + '{"text": ' + "[" * 99999).encode(), "line 2: JSON nested too deep"),
    "deep array": ("a.json", ('[\n{"text": ' + "[" * 99999).encode(), "line 2: JSON nested too deep"),
    "long number": ("a.jsonl", (LINE + '{"text": ' + "1" * 5000 + "}").encode(), "line 2: .*5000 digits"),
    "Latin 1": ("a.jsonl", (LINE + '{"text": "é"}').encode("latin-1"), "line 2: the byte 0xe9 is not UTF-8"),
    "UTF-16": ("a.jsonl", LINE.encode("utf-16"), "a.jsonl: is UTF-16; save it as UTF-8"),
    "UTF-16 unmarked": ("a.csv", "text\na".encode("utf-16-le"), "a.csv: .*UTF-16 or UTF-32; save it as UTF-8"),
    "gzip": ("a.jsonl", gzip.compress(LINE.encode()), "a.jsonl: is packed with gzip"),
    "no gzip": ("a.jsonl.gz", LINE.encode(), "a.jsonl.gz: cannot be unpacked, it is damaged"),
    "half gzip": ("a.jsonl.gz", gzip.compress(LINE.encode() * 99)[:30], "a.jsonl.gz: cannot be unpacked"),
    "half bzip2": ("a.jsonl.bz2", bz2.compress(LINE.encode())[:30], "a.jsonl.bz2: cannot be unpacked"),
    "half xz": ("a.jsonl.xz", lzma.compress(LINE.encode())[:30], "a.jsonl.xz: cannot be unpacked"),
    "half zstd": ("a.jsonl.zst", as_zstd(LINE.encode())[:20], "a.jsonl.zst: cannot be unpacked"),
    "no zip": ("a.zip", LINE.encode(), "a.zip: cannot be unpacked"),
    "two in a zip": ("a.zip", as_zip(as_zip(b"", "a"), "b.txt"), "a.zip: files ending in '.txt' are not read"),
    "half Parquet": ("a.parquet", as_parquet([{"text": "a"}])[:-9], "a.parquet: cannot be read as Parquet"),
    "pointer": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a.parquet: is a pointer of Git LFS"),
    "few cells": ("a.csv", b'prompt,completion\n"a\nb",c\nd\n', "a.csv, line 4: 1 cells, .* 2 columns"),
    "many cells": ("a.csv", b"prompt,completion\n\na,b,c\n", "a.csv, line 3: 3 cells, .* 2 columns"),
    "open quote": ("a.csv", b'text\na\n"b\n', "a.csv, line 3: no row of a CSV file"),
    "semicolons": ("a.csv", b"prompt;completion\na;b\n", "a.csv: the columns are parted by ';'"),
    "same column": ("a.csv", b"text,text\na,b\n", "a.csv: the first line names the column 'text' twice"),
    "chat in CSV": ("a.csv", b"messages\nhi\n", "a.csv, line 2: 'messages' must be a list .* write JSON Lines"),
    "empty": ("a.jsonl", b"", "a.jsonl: there are no demonstrations; expected at least one record"),
    "empty JSON": ("a.json", b" \n", "a.json: there are no demonstrations"),
    "only a header": ("a.csv", b"text\n", "a.csv: there are no demonstrations"),
    "other ending": (
        "a.txt",
        b"hi",
        "a.txt: files ending in '.txt' are not read; expected .jsonl, .ndjson, .json, .csv",
    ),
    "no ending": ("a", b"hi", "a: files ending in '' are not read; expected .jsonl"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_by_its_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours with file, line where there is one, and what is wrong; never another library's."""
    monkeypatch.chdir(tmp_path)
    name, data, message = BROKEN[case]
    Path(name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_demonstrations(name)


def test_a_zip_file_holds_one(tmp_path: Path) -> None:
    """Which of two files is meant is not guessed."""
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.jsonl", LINE)
        archive.writestr("b.jsonl", LINE)
    with pytest.raises(ConfigError, match=r"two.zip: .* must hold one file; got 2 \(a.jsonl, b.jsonl\)"):
        load_demonstrations(tmp_path / "two.zip")


def test_a_directory_says_what_it_holds(tmp_path: Path) -> None:
    """It is not searched by patterns."""
    (tmp_path / "run[1]").mkdir()
    (tmp_path / "run[1]" / "a.jsonl").write_text(LINE)
    with pytest.raises(ConfigError, match=r"is a directory; give one of its files \(that can be read: a.jsonl\)"):
        load_demonstrations(str(tmp_path / "run[1]"))


@pytest.mark.parametrize(
    "name", ["none.jsonl", "none.CSV", "none.parquet", "n.jsonl.gz", "n.zip", "./n", "/n/n", "a b", "a/b/c"]
)
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    """Nobody is asked on the Hub for what can only be a file."""
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_demonstrations(name)


@pytest.mark.parametrize("text", ["a" * 200_000, "é" * 150_000, 'x"y\n' * 70_000])
def test_long_cells_are_read(tmp_path: Path, text: str) -> None:
    """Longer than the standard library's limit for a cell, which is as it was afterwards."""
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_bytes(as_csv([{"text": text}]))
    assert list(load_demonstrations(tmp_path / "a.csv")) == [{"text": text}]
    assert csv.field_size_limit() == before
