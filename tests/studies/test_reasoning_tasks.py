"""The questions are the same everywhere, no question is in two parts, and the checkers know right from wrong."""

from __future__ import annotations

import hashlib
import json

import pytest

from studies.material.reasoning_tasks import TASKS, reasoning_task

SIZES = {"train": 40, "held_out": 20, "calibration": 10}


@pytest.fixture(autouse=True)
def _needs_reasoning_gym(request: pytest.FixtureRequest) -> None:
    if "absent" not in request.node.name:
        pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", TASKS)
def test_parts_have_their_sizes_and_share_no_question(name: str) -> None:
    """Nothing that is reported was trained on or chosen by."""
    split = reasoning_task(name, **SIZES)
    parts = [split.train, split.held_out, split.calibration]
    assert [len({item.prompt for item in part}) for part in parts] == [40, 20, 10]
    assert len({item.prompt for part in parts for item in part}) == 70


@pytest.mark.parametrize("name", TASKS)
def test_the_checker_takes_the_answer_and_no_other(name: str) -> None:
    """With white space around it, or more lines behind it; not another answer, more words, or nothing."""
    for item in reasoning_task(name, **SIZES).train:
        answer = item.completion.strip()
        assert item.is_solved_by(item.completion)
        assert item.is_solved_by(f"\n {answer} \nQuestion: another")
        wrong = str(int(answer) + 1) if answer.lstrip("-").isdigit() else answer + "x"
        for text in (wrong, "", f"It is {answer}", f"{answer} or {wrong}"):
            assert not item.is_solved_by(text), (text, answer)


def test_a_seed_makes_the_same_questions_everywhere() -> None:
    """A number reported once can be compared with one reported elsewhere: every byte is pinned."""
    splits = {name: reasoning_task(name) for name in TASKS}
    text = json.dumps(
        {
            name: [item.demonstration() for part in (s.train, s.held_out, s.calibration) for item in part]
            for name, s in splits.items()
        }
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "bfa295f227713b7d10fc3b2c88a267d179a5fb66758fbcfe0ed0c6b289a71801"
    assert reasoning_task("chain_sum") == splits["chain_sum"]


def test_seeds_are_streams_of_their_own() -> None:
    """reasoning-gym's own neighbouring seeds share all questions but one; these share none of so many."""
    first, second = ({item.prompt for item in reasoning_task("word_sorting", seed=seed).train} for seed in (0, 1))
    assert not first & second


def test_prompt_and_completion_join_as_in_other_demonstrations() -> None:
    """A space and the answer follow `Answer:`."""
    for name in TASKS:
        for item in reasoning_task(name, **SIZES).train:
            assert item.prompt.startswith("Question: ")
            assert item.prompt.endswith("\nAnswer:")
            assert item.completion == f" {item.completion.strip()}"
            assert item.demonstration() == {"prompt": item.prompt, "completion": item.completion}


def test_what_cannot_be_made_is_refused() -> None:
    """An unknown task, sizes below 0, and more questions than there are."""
    with pytest.raises(ValueError, match="no task 'chess'"):
        reasoning_task("chess")
    with pytest.raises(ValueError, match="0 or more"):
        reasoning_task("products", train=-1)
    with pytest.raises(ValueError, match="different questions"):
        reasoning_task("products", train=100_000)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match=r"valueadapter\[study\]"):
        reasoning_task("products")
