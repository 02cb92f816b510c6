"""What lies in the packages is read as it was written: nothing lost, nothing of the wrapping kept."""

from __future__ import annotations

from typing import Any

import pytest

from testkit.text_sources import (
    DECLARATIONS,
    DIALOGUES,
    EVALUATIONS,
    README,
    arithmetic,
    code,
    passage_of,
    read_declaration,
    read_description,
    read_dialogues,
)


def request(continuation: str, **doc: str) -> dict[str, Any]:
    return {"doc": doc, "request": {"context": "examples", "continuation": continuation}}


def test_passage_is_taken_out_of_its_query() -> None:
    """A passage of several paragraphs stays whole, whatever it quotes."""
    query = "Title: T\nBackground: first\nQuestion: no\nsecond \nQuestion: Why?\nAnswer:"
    assert passage_of(query) == "first\nQuestion: no\nsecond"


def test_another_form_of_query_is_refused() -> None:
    """A query without a passage is an error, never an empty passage."""
    with pytest.raises(ValueError, match=r"expected 'Title: .* got 'Question: Why"):
        passage_of("Question: Why?\nAnswer:")


def test_arithmetic_is_read_zero_shot() -> None:
    """The examples in front of a request are left out; one space leads to the answer."""
    assert arithmetic(request("  4 ", question="2 + 2?")) == {"prompt": "Question: 2 + 2?\nAnswer:", "completion": " 4"}


def test_code_is_read_zero_shot_and_without_trailing_space() -> None:
    """Indentation and fence stay; invisible space at the ends of lines goes."""
    expected = {"prompt": "Add.\n```python\n", "completion": "def f():\n\treturn 1\n```"}
    assert code(request("def f():   \n\treturn 1 \n```", text="Add.")) == expected


def test_dialogues_are_read_turn_by_turn() -> None:
    """A turn that YAML takes for a number or a list of lines is still text."""
    text = "categories:\n- x\nconversations:\n- - Quand ?\n  - 1963\n- - 你好\n  - >\n    嗨\n  - c\n"
    assert read_dialogues(text) == [["Quand ?", "1963"], ["你好", "嗨", "c"]]


def test_declaration_is_read_line_by_line() -> None:
    """Headings, paragraphs and items are lines; the title in the head is not the Declaration's."""
    head, body = (
        "<head><title>French</title></head>",
        "<h1>Droits</h1>\n <ol><li><p>L&rsquo;un &amp; tous</p></li></ol>",
    )
    assert read_declaration(f"{head}\n<body>\n {body}\n</body>") == "Droits\nL\u2019un & tous"


def test_description_follows_the_headers() -> None:
    """Blank lines within the README stay, the metadata goes."""
    assert read_description("Name: x\nLicense: MIT\n\n# X\n\nText: é\n") == "# X\n\nText: é"


def test_every_file_is_pinned() -> None:
    """Each file has its checksum, and no two are pinned as one."""
    pins = [pin.member_sha256 for pin in (*EVALUATIONS.values(), README)]
    checksums = [*pins, *DIALOGUES.values(), *DECLARATIONS.values()]
    assert {len(checksum) for checksum in checksums} == {64}
    assert len(set(checksums)) == len(checksums)
