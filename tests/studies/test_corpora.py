"""Text to pre-train on reads as ordinary text, is the same everywhere, and is measured on what was not trained on."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from studies.material.corpora import Corpus, divided, documents, english, read_brown, shakespeare, untagged

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
DIGESTS = {
    "english": "60c35f1d70ee1bfa6e135e8ee6109a941e121db0f6045fa5ab6b396510083b41",
    "shakespeare": "993dddebd26bf3cf7baab259ab630045a7e0cba7bc27e6b6a7bc713f92e34864",
}


@pytest.mark.real
@pytest.mark.parametrize("corpus", [pytest.param(english, marks=needs_npm), shakespeare])
def test_corpus_is_the_same_everywhere(corpus: object) -> None:
    """A model made from it can be made again: every character is pinned, and no document is in both parts."""
    found = english() if corpus is english else shakespeare()
    assert found.digest == DIGESTS["english" if corpus is english else "shakespeare"]
    assert not set(found.train) & set(found.held_out)


def test_one_in_twenty_is_held_out() -> None:
    """The parts share nothing and follow from the texts, whatever their order."""
    texts = [f"text {number}" for number in range(40)]
    corpus = divided(texts)
    assert len(corpus.held_out) == 2
    assert sorted([*corpus.train, *corpus.held_out]) == sorted(texts)
    assert divided(texts[::-1]) == corpus


def test_digest_tells_the_parts_apart() -> None:
    """Text moved from one part to the other makes another corpus."""
    assert Corpus(["a", "b"], ["c"]).digest != Corpus(["a"], ["b", "c"]).digest


def test_documents_end_with_a_paragraph() -> None:
    """Nothing is cut or lost, and a short rest is a document too."""
    made = documents(["aaa", "bb", "cccccc", "d"], length=5)
    assert made == ["aaa\n\nbb", "cccccc", "d"]


def test_tags_go_and_punctuation_is_set_close() -> None:
    """A tagged sample becomes what was printed; a word with a stroke keeps it."""
    tagged = (
        "\n\tThe/at jury/nn said/vbd ,/, ``/`` no/at 1/2/cd (/( or/cc so/rb )/) ''/'' ./.\n"
        "Why/wrb ?/. ?/.\n\n\n\tYes/rb ;/. ;/.\n"
    )
    assert untagged(tagged) == 'The jury said, "no 1/2 (or so)". Why?\nYes;'


def test_brown_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Only the samples are text, and the order of the archive does not matter."""
    archive = tmp_path / "brown.tgz"
    with tarfile.open(archive, "w:gz") as tarball:
        for name, text in {"cb01": "second/jj", "package.json": "{}", "ca01": "first/od", "cats.txt": "x/y"}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            tarball.addfile(member, io.BytesIO(text.encode()))
    assert read_brown(archive) == ["first", "second"]
