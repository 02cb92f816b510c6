"""Pages beside the code: the messages that they quote are raised, words are explained, and the menu has every page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUOTED = re.findall(r"```text\n(.*?)\n```", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.S)


def texts_of_the_library() -> list[str]:
    """Every text in its code, what is filled in as `…`."""
    found = []
    for path in (ROOT / "valueadapter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "…", node.value))
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
    return found


TEXTS = [" ".join(text.split()) for text in texts_of_the_library()]


@pytest.mark.parametrize("message", QUOTED, ids=lambda message: " ".join(message.split()[:6]))
def test_a_quoted_message_stands_in_the_code(message: str) -> None:
    """Word for word, so that whoever searches for it finds the page."""
    assert message.replace("\\\\", "\\") in TEXTS


def test_enough_messages_are_quoted() -> None:
    """From installing to publishing."""
    assert len(QUOTED) >= 25


def test_the_menu_has_every_page() -> None:
    """And no other; the tutorials stand in it as the pages that they become."""

    class Loader(yaml.SafeLoader):
        """Reads `!ENV` as nothing."""

    Loader.add_constructor("!ENV", lambda loader, node: "")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.load(text, Loader)["nav"])))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    notebooks = {path.relative_to(DOCS).with_suffix(".md").as_posix() for path in DOCS.rglob("*.ipynb")}
    assert listed == pages | notebooks


@pytest.mark.parametrize("word", ["Arm", "Donor", "Draw", "Connection", "First, middle, last token", "same event"])
def test_words_of_ours_are_explained(word: str) -> None:
    """Those that readers asked for."""
    assert re.search(rf"^\*\*.*{word}.*\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M)
