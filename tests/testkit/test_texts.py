"""Texts and records are the same everywhere, have the size and form promised, and repeat no prompt."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from testkit.demonstrations import Demonstration
from testkit.texts import (
    RECORD_DOMAINS,
    TEXT_LENGTH,
    first_records,
    halves,
    joined,
    reply,
    sample_records,
    sample_texts,
    solution_of,
)

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
MOST = {"english": 803, "gsm8k": 1319, "python": 499, "chinese": 368}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def records(*prompts: str) -> list[Demonstration]:
    return [{"prompt": prompt, "completion": f"{number}"} for number, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return sample_texts()


@needs_npm
@pytest.mark.real
def test_texts_are_the_same_everywhere(texts: dict[str, str]) -> None:
    """A number measured on them can be compared with one measured elsewhere: every character is pinned."""
    assert list(texts) == ["english", "gsm8k", "python", "chinese", "french", "markdown"]
    assert digest(texts) == "4553bc9e8eb983a341ed9b54d82be328961705ef3352e4d2f355b65b28d7677c"


@needs_npm
@pytest.mark.real
def test_texts_are_long_enough_to_measure_on(texts: dict[str, str]) -> None:
    """Each has thousands of tokens and none dwarfs the others."""
    for name, text in texts.items():
        assert 17_000 <= len(text) <= TEXT_LENGTH, name
        assert text == text.strip()
        assert "\r" not in text


@needs_npm
@pytest.mark.real
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # MBPP's, in regular expressions
def test_texts_are_what_their_names_say(texts: dict[str, str]) -> None:
    """Chinese is written in Han characters, French with accents, Python compiles, Markdown has code blocks."""
    assert sum("\u4e00" <= letter <= "\u9fff" for letter in texts["chinese"]) > 0.7 * len(texts["chinese"])
    assert sum(letter in "éèàêçô" for letter in texts["french"]) > 300
    assert len([node for node in ast.walk(ast.parse(texts["python"])) if isinstance(node, ast.FunctionDef)]) > 100
    assert texts["markdown"].count("```") >= 10
    assert texts["gsm8k"].count("Question: ") == texts["gsm8k"].count("\nAnswer: ") > 50


@pytest.mark.real
@pytest.mark.parametrize("domain", RECORD_DOMAINS)
def test_records_are_distinct_and_whole(domain: str) -> None:
    """The number promised is there, no prompt comes twice, and no completion is empty."""
    most = MOST[domain]
    found = sample_records(domain, count=most)
    assert len({record["prompt"] for record in found}) == most
    assert all(record["completion"].strip() for record in found)
    with pytest.raises(ValueError, match=rf"cannot return {most + 1} records: ask for 1 to {most},"):
        sample_records(domain, count=most + 1)


@pytest.mark.real
@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("english", "b9a69e6d4d64522234d32917fe9c7303990a11ff557993350b689badcc684bd9"),
        ("gsm8k", "61721df6abbf53337bf8f925abfda1b253f85bff2b0abd78cfec394be82ccb6f"),
        ("python", "e73fdbea6fac3d3d41122cf34d8e0bb42420972c2a6f82ea824727bbeb9c56f4"),
        ("chinese", "ee3bb30bbf825718f19d00e08251ea721ae730beb78fff7cfa394eedd2a2fc8d"),
    ],
)
def test_records_are_the_same_everywhere(domain: str, expected: str) -> None:
    """A loss measured on them can be compared with one measured elsewhere."""
    assert digest(sample_records(domain, count=100)) == expected


@pytest.mark.real
def test_records_need_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has Python alone can train on them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(sample_records("chinese", count=100, cache_dir=tmp_path)) == 100


def test_unknown_domain_is_told_the_known_ones() -> None:
    """A typing error costs no download."""
    with pytest.raises(ValueError, match=r"domain 'french'; expected one of english, gsm8k, python, chinese$"):
        sample_records("french", count=1)


def test_order_does_not_depend_on_the_order_read() -> None:
    """Fewer records are the beginning of more, and the order of the files shows in neither."""
    some = records(*map(str, range(20)))
    assert first_records(some, 20) == first_records(reversed(some), 20) != some
    assert first_records(some, 5) == first_records(some, 20)[:5]


def test_first_of_equal_prompts_counts() -> None:
    """A prompt has one completion."""
    assert first_records(records("again", "again"), 1) == records("again")


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_impossible_counts_are_refused(count: int) -> None:
    """A list shorter than asked for is never returned."""
    with pytest.raises(ValueError, match=rf"cannot return {count} records: ask for 1 to 2"):
        first_records(records("a", "b"), count)


def test_text_ends_before_the_part_that_does_not_fit() -> None:
    """Parts are whole, and the separator counts."""
    part = "x" * (TEXT_LENGTH // 2)
    assert joined([part, part, "y"]) == part
    assert joined([part, part[2:], "y"]) == f"{part}\n\n{part[2:]}"
    assert joined(["a", "b"], separator="-") == "a-b"


@pytest.mark.parametrize(("passage", "prompt"), [("one two three", "one two"), ("one two", "one"), ("a  b", "a ")])
def test_halves_make_the_whole(passage: str, prompt: str) -> None:
    """The completion begins with the space, as tokens do."""
    record = halves(passage)
    assert record["prompt"] == prompt
    assert record["completion"] == passage.removeprefix(prompt)
    assert record["completion"].startswith(" ")


def test_passage_without_a_space_is_refused() -> None:
    """No completion is empty or begins within a word."""
    with pytest.raises(ValueError, match=r"space in its second half, got 'a longword'"):
        halves("a longword")


def test_reply_is_the_second_turn() -> None:
    """Braces in a question are text, and later turns are left out."""
    assert reply(["{x}", "y", "z"]) == {"prompt": "问：{x}\n答：", "completion": "y"}  # noqa: RUF001


def test_solution_lacks_its_fence() -> None:
    """The text of Python is Python alone."""
    assert solution_of({"prompt": "task", "completion": "def f():\n    pass\n```"}) == "def f():\n    pass"
