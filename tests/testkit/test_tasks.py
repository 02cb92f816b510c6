"""Each task is split once, the same everywhere, and what stands in a prompt is never scored."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from testkit.demonstrations import Demonstration, jeopardy, question_of
from testkit.tasks import (
    TASKS,
    TaskSplit,
    _Rule,
    natural_question,
    normalised_prompt,
    prefix_text,
    task,
    wording,
)
from valueadapter.errors import ConfigError

SIZES = {
    "jeopardy": (1807, 200, 100),
    "natural_questions": (700, 200, 100),
    "mbpp": (349, 100, 50),
    "gsm8k": (1019, 200, 100),
}
DIGESTS = {
    "jeopardy": "71a0ce4a265e1546ec3c8b63421574eb3dcdea8a0e3065a64529bc8867c278c2",
    "natural_questions": "2f9e2255a93425e7b8a1340129b212171a420ab8aeb8f086923ee5b4df210558",
    "mbpp": "e7eb41a7ae867f59ba3b940fca15a24d82b0839dbbd0f29e200eb457a34494a5",
    "gsm8k": "f81294ba8cf9ee457b4ba87938896bd7bd855fe37335a27c1d4ce2ea7de14611",
}
every_task = pytest.mark.parametrize("name", TASKS)


def parts(split: TaskSplit) -> list[list[Demonstration]]:
    return [split.train, split.held_out, split.calibration]


def record(number: int) -> dict[str, Any]:
    return {"doc": {"question": f"q {number}"}, "request": {"continuation": f" {number}"}}


def made_split(count: int = 20, first: int = 0) -> TaskSplit:
    rule = _Rule(natural_question, normalised_prompt, held_out=4, calibration=2, first=first)
    return rule.split([record(number) for number in range(count)])


@pytest.mark.real
@every_task
def test_parts_have_their_sizes_and_share_no_question(name: str) -> None:
    """Nothing that is reported was trained on or chosen by."""
    split, question = task(name), question_of if name == "jeopardy" else normalised_prompt
    questions = [{question(record["prompt"]) for record in part} for part in parts(split)]
    assert tuple(map(len, parts(split))) == tuple(map(len, questions)) == SIZES[name]
    assert len(set.union(*questions)) == sum(SIZES[name])
    words = [{wording(text) for text in part} for part in questions]
    assert not words[0] & (words[1] | words[2])


@pytest.mark.real
@every_task
def test_split_is_the_same_everywhere(name: str) -> None:
    """A number reported once can be compared with one reported elsewhere: every byte is pinned."""
    assert hashlib.sha256(json.dumps(parts(task(name))).encode()).hexdigest() == DIGESTS[name]


@pytest.mark.real
def test_jeopardy_goes_on_where_it_ended() -> None:
    """Results on its first 800 stay comparable, and what is added was never held out."""
    split, known = task("jeopardy"), jeopardy()
    assert split.train[:800] == known.train
    assert (split.held_out, split.calibration) == (known.held_out, known.calibration)


@pytest.mark.real
@every_task
def test_prompts_are_zero_shot(name: str) -> None:
    """A prompt asks one thing, and its completion answers it."""
    for part in parts(task(name)):
        for demonstration in part:
            prompt, completion = demonstration["prompt"], demonstration["completion"]
            assert prompt.count("\nAnswer:") + prompt.count("\n```python\n") == 1
            assert prompt.endswith("```python\n" if name == "mbpp" else "\nAnswer:")
            assert completion.endswith("\n```") if name == "mbpp" else completion == f" {completion.strip()}"


def test_what_is_trained_on_lies_around_what_is_scored() -> None:
    """The rule: so many to train on, held out, calibration, then the others to train on."""
    ordered = made_split().held_out + made_split().calibration + made_split().train
    split = made_split(first=3)
    assert split.train == ordered[:3] + ordered[9:]
    assert (split.held_out, split.calibration) == (ordered[3:7], ordered[7:9])


def test_question_with_another_comma_is_not_trained_on() -> None:
    """A scored question printed twice, with punctuation apart, is in no part but its own."""
    scored = made_split().held_out[0]["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
    twins = [{"doc": {"question": f"{scored}{mark}"}, "request": {"continuation": " x"}} for mark in "?!;,."]
    rule = _Rule(natural_question, normalised_prompt, held_out=4, calibration=2)
    split = rule.split([*twins, *(record(number) for number in range(20))])
    outside = {wording(entry["prompt"]) for entry in split.held_out + split.calibration}
    assert not outside & {wording(entry["prompt"]) for entry in split.train}


def test_examples_come_from_the_training_part_alone() -> None:
    """An example is never scored, is drawn once, and fewer are the beginning of more."""
    split = made_split()
    examples = split.prefix_examples(6)
    assert examples[:4] == split.prefix_examples(4)
    assert len({record["prompt"] for record in examples}) == 6
    assert all(example in split.train for seed in range(3) for example in split.prefix_examples(14, seed=seed))


def test_examples_follow_the_seed() -> None:
    """Another seed draws others, the same one the same, whatever was drawn before."""
    split = made_split()
    assert split.prefix_examples(4, seed=1) == split.prefix_examples(4, seed=1) != split.prefix_examples(4, seed=2)


def test_examples_are_not_trained_on() -> None:
    """`without` takes them out of the training part and leaves everything else in its order."""
    split = made_split()
    examples = split.prefix_examples(4)
    rest = split.without(examples)
    assert rest.train == [record for record in split.train if record not in examples]
    assert len(rest.train) == len(split.train) - 4
    assert (rest.held_out, rest.calibration) == (split.held_out, split.calibration)


@pytest.mark.parametrize("k", [-1, 15])
def test_more_examples_than_there_are_is_an_error(k: int) -> None:
    """Never fewer than asked for in silence."""
    with pytest.raises(ConfigError, match=f"cannot draw {k} examples: expected 0 to 14"):
        made_split().prefix_examples(k)


def test_unknown_task_is_an_error() -> None:
    """The message lists what there is, before anything is downloaded."""
    with pytest.raises(ConfigError, match="no task is named 'trivia'; expected one of jeopardy, natural_questions"):
        task("trivia")


def test_prefix_text_continues_in_the_form_of_a_prompt() -> None:
    """Each example ends where the next prompt begins."""
    examples: list[Demonstration] = [
        {"prompt": "Q: a\nA:", "completion": " b"},
        {"prompt": "Q: c\nA:", "completion": " d"},
    ]
    assert prefix_text(examples) == "Q: a\nA: b\n\nQ: c\nA: d\n\n"
    assert prefix_text([]) == ""
