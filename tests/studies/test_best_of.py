"""The arms of a comparison are what their names say, on the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer

from studies.material.best_of import compare_best_of
from valueadapter import ValueAdapterForCausalLM, best_of

Wrapped = Callable[..., ValueAdapterForCausalLM]
SAMPLING: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.5, "suppress_tokens": [0, 1]}


@dataclass
class Letters:
    """Right is what has one of these letters."""

    prompt: str
    letters: str

    def is_solved_by(self, text: str) -> bool:
        return any(letter in text for letter in self.letters)


ITEMS = [Letters("ABC", "abcdefghijklm"), Letters("DE", "ABCDEFGHIJKLMNO"), Letters("F", "0123456789!?")]


def test_sampled_best_and_any_are_of_the_same_answers(wrapped: Wrapped) -> None:
    """Those that `best_of` draws with that seed, from base and from base + adapter."""
    model = wrapped()
    arms = {arm.name: arm for arm in compare_best_of(model, ITEMS, n=5, seed=2, **SAMPLING)}
    for name, from_base in (("base", True), ("adapted", False)):
        for index, item in enumerate(ITEMS):
            found = best_of(model, item.prompt, 5, from_base=from_base, seed=2 + index, **SAMPLING)
            right = [item.is_solved_by(text) for text in found.responses]
            expected = (sum(right) / 5, right[found.best], any(right))
            assert tuple(arms[f"{name} {way}"].right[index] for way in ("sampled", "best", "any")) == expected


def test_greedy_is_what_generation_says_without_sampling(wrapped: Wrapped) -> None:
    """Of the base alone, and with the adapter; whatever temperature the samples have."""
    model: Any = wrapped()
    greedy: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [0, 1]}
    ids = [torch.tensor([byte_tokenizer()(item.prompt)["input_ids"]]) for item in ITEMS]
    answers = {"adapted": [model.generate(row, **greedy)[0, row.shape[1] :] for row in ids]}
    with model.disable_adapter():
        answers["base"] = [model.generate(row, **greedy)[0, row.shape[1] :] for row in ids]
    for name, said in answers.items():
        texts = byte_tokenizer().batch_decode(said, skip_special_tokens=True)
        exact = [_Exactly(item.prompt, text) for item, text in zip(ITEMS, texts, strict=True)]
        arms = {arm.name: arm.right for arm in compare_best_of(model, exact, n=1, **SAMPLING)}
        assert arms[f"{name} greedy"] == (1, 1, 1)


class _Exactly(Letters):
    def is_solved_by(self, text: str) -> bool:
        return text == self.letters


def test_accuracy_is_the_mean_and_progress_is_told(wrapped: Wrapped) -> None:
    """One step for each question."""
    steps: list[int] = []
    arms = compare_best_of(wrapped(), ITEMS, n=2, on_progress=steps.append, **SAMPLING)
    assert steps == [1, 1, 1]
    assert [arm.accuracy for arm in arms] == [pytest.approx(sum(arm.right) / 3) for arm in arms]
    assert len(arms) == 8


def test_no_questions_are_refused(wrapped: Wrapped) -> None:
    """There would be nothing to divide by."""
    with pytest.raises(ValueError, match="no questions"):
        compare_best_of(wrapped(), [])
