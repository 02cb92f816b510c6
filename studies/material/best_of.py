"""Compares ways to answer questions that a program checks: greedy, sampled, and the best of n by the adapter's score.

Knows answers, checkers and counts; knows neither how questions are made nor how a score comes about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from valueadapter.evaluation.judge import best_of
from valueadapter.model.modeling import ValueAdapterForCausalLM


class Checked(Protocol):
    """A question with a checker of answers."""

    @property
    def prompt(self) -> str:
        """What the model reads."""
        ...

    def is_solved_by(self, text: str) -> bool:
        """Whether what it says is right."""
        ...


@dataclass(frozen=True)
class Arm:
    """One way to answer, and how it did on each question."""

    name: str
    """`<model> <way>`: `base` or `adapted`; `greedy`, `sampled`, `best` (by score) or `any` (as a perfect judge)."""
    right: tuple[float, ...]
    """For each question 1 if it was right, 0 if not; for `sampled` the share of right samples."""

    @property
    def accuracy(self) -> float:
        """The mean over questions, 0 to 1."""
        return sum(self.right) / len(self.right)


def compare_best_of(
    model: ValueAdapterForCausalLM,
    items: Sequence[Checked],
    *,
    n: int = 8,
    per_token: bool = False,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
    **generation: Any,
) -> list[Arm]:
    """Answers every question greedily and n times by sampling, with the active adapters and from the base alone.

    Question i is sampled with the seed `seed` + i, from both models. The `sampled`, `best` and `any` of a model are of
    the same answers, so that their differences are the judge's.

    Args:
        model: a base with an active adapter.
        items: held-out questions.
        n: how many answers are sampled to each.
        per_token: judge by the mean over tokens.
        seed: of the first question.
        on_progress: called with the number of questions done since the last call.
        generation: for `generate`: `max_new_tokens`, `temperature`, …; a base that does not know where to stop can be
            stopped at the end of the line with `eos_token_id`.

    Returns:
        The arms `base greedy`, `base sampled`, `base best`, `base any`, and the same of `adapted`.

    Raises:
        ValueError: no questions.
        AdapterNameError: no adapter is active.
    """
    if not items:
        raise ValueError("there are no questions to answer; expected at least one")
    right: dict[str, list[float]] = {}
    for index, item in enumerate(items):
        for name, from_base in (("base", True), ("adapted", False)):
            found = best_of(
                model, item.prompt, n, per_token=per_token, from_base=from_base, seed=seed + index, **generation
            )
            solved = [item.is_solved_by(text) for text in found.responses]
            greedy = item.is_solved_by(_greedy(model, item.prompt, from_base=from_base, generation=generation))
            results = {"greedy": greedy, "sampled": sum(solved) / n, "best": solved[found.best], "any": any(solved)}
            for way, result in results.items():
                right.setdefault(f"{name} {way}", []).append(float(result))
        if on_progress is not None:
            on_progress(1)
    return [Arm(name, tuple(each)) for name, each in right.items()]


def _greedy(model: ValueAdapterForCausalLM, prompt: str, *, from_base: bool, generation: dict[str, Any]) -> str:
    """Sampling among the likeliest token alone, so that all arms stop and end by the same rules."""
    only_likeliest = {**generation, "top_k": 1, "temperature": 1.0}
    return best_of(model, prompt, 1, from_base=from_base, seed=0, **only_likeliest).text
