"""The demonstrations are the same everywhere, and no question is in two parts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from testkit.demonstrations import (
    Demonstration,
    JeopardySplit,
    jeopardy,
    question_of,
    read_requests,
    shuffled,
    write_jsonl,
)


def demonstration(question: str, answer: str = "x", category: str = "C") -> Demonstration:
    return {"prompt": f"Category: {category}\nQuestion: {question}\nAnswer:", "completion": f" {answer}"}


@pytest.fixture(scope="module")
def split() -> JeopardySplit:
    return jeopardy()


@pytest.mark.real
def test_parts_have_their_sizes_and_share_no_question(split: JeopardySplit) -> None:
    """Nothing that is reported was trained on or chosen by."""
    parts = [split.train, split.held_out, split.calibration]
    questions = [{question_of(record["prompt"]) for record in part} for part in parts]
    assert [len(part) for part in parts] == [len(found) for found in questions] == [800, 200, 100]
    assert len(set.union(*questions)) == 1100


@pytest.mark.real
def test_split_is_the_same_everywhere(split: JeopardySplit) -> None:
    """A number reported once can be compared with one reported elsewhere: every byte is pinned."""
    text = json.dumps([split.train, split.held_out, split.calibration])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "ae80430c43afa263baee0f80165adbd00d97f3dc33a08592ee0eb85d9992c781"
    assert jeopardy() == split


@pytest.mark.real
def test_completion_is_a_space_and_the_answer_alone(split: JeopardySplit) -> None:
    """Prompt and completion join into one text whose tokens are those of the whole."""
    for record in split.train + split.held_out + split.calibration:
        assert record["prompt"].startswith("Category: ")
        assert record["prompt"].endswith("\nAnswer:")
        assert record["completion"] == f" {record['completion'].strip()}"
        assert "\n" not in record["completion"]


def test_requests_are_read_zero_shot() -> None:
    """The examples in front of a request are left out; query and continuation are kept as they are."""
    line = {"doc": {"query": "Q"}, "request": {"context": "examples Q", "continuation": " A"}}
    assert list(read_requests([json.dumps(line)])) == [{"prompt": "Q", "completion": " A"}]


def test_one_demonstration_per_question() -> None:
    """The same question in other case, spacing or category is the same question; the first one stays."""
    first, again, other = demonstration("Who  is it?"), demonstration("who is\nIT?", "y", "D"), demonstration("Why?")
    assert sorted(map(str, shuffled([first, again, other]))) == sorted(map(str, [first, other]))


def test_order_does_not_depend_on_the_order_read() -> None:
    """The split follows from the questions, whatever the order of the file."""
    records = [demonstration(f"question {number}") for number in range(20)]
    assert shuffled(records) == shuffled(reversed(records)) != records


def test_another_form_of_prompt_is_refused() -> None:
    """A prompt without a question is an error, never an empty question."""
    with pytest.raises(ValueError, match=r"expected a prompt 'Category: .* got 'What is it"):
        question_of("What is it?")


def test_jsonl_is_one_object_per_line(tmp_path: Path) -> None:
    """Line breaks and letters beyond ASCII survive, and the folder is created."""
    records = [demonstration("Où?"), demonstration("two\nlines")]
    path = write_jsonl(records, tmp_path / "new" / "train.jsonl")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == records
    assert "Où" in path.read_text(encoding="utf-8")
