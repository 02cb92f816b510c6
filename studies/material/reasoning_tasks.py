"""Questions whose answers a program checks: small tasks of reasoning-gym, made by seed and split by a fixed rule.

Knows how the tasks are generated, split and checked; knows nothing of tokenizers, models or training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from testkit.demonstrations import Demonstration

TASKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        "simple_equations": {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 20},
        "word_sorting": {"min_words": 3, "max_words": 4},
        "letter_counting": {"min_words": 3, "max_words": 6},
        "spell_backward": {"min_word_len": 3, "max_word_len": 5},
    }
)
"""Task -> how it is made easy enough for models of a few hundred million parameters."""

TRAIN, HELD_OUT, CALIBRATION = 800, 200, 100

_STREAM = 1_000_000
"""Question i of seed s is reasoning-gym's question of seed s · 1,000,000 + i: it draws question i of seed s with s + i,
so that neighbouring seeds would share all questions but one."""


@dataclass(frozen=True)
class ReasoningItem:
    """A question, an answer to it, and what checks any other answer."""

    prompt: str
    """`Question: …\\nAnswer:`."""
    completion: str
    """A space and the answer."""
    score: Callable[[str], float] = field(repr=False, compare=False)
    """reasoning-gym's own scorer: 1 for a right answer, part of it for a nearly right one or one in other words."""

    def is_solved_by(self, text: str) -> bool:
        """Whether the first line of what a model says after the prompt is a right answer and nothing else."""
        first, *_ = text.strip().split("\n")
        return self.score(first.strip()) == 1

    def demonstration(self) -> Demonstration:
        """What a model is trained on."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True)
class ReasoningSplit:
    """Questions of one task in three parts that share none."""

    train: list[ReasoningItem]
    """To train on."""
    held_out: list[ReasoningItem]
    """To report results on; nothing may be chosen by them."""
    calibration: list[ReasoningItem]
    """To choose a scale or a checkpoint by."""


def reasoning_task(
    name: str, *, seed: int = 0, train: int = TRAIN, held_out: int = HELD_OUT, calibration: int = CALIBRATION
) -> ReasoningSplit:
    """Returns questions of a task, always the same ones in the same parts.

    The rule of the split: generate questions until there are enough different ones, order them by the SHA-256 of their
    UTF-8 bytes, and take the first as `train`, the next as `held_out`, the next as `calibration`.

    Args:
        name: one of `TASKS`.
        seed: which stream of questions; 0 or more. Streams of two seeds are independent, and may share a question.
        train: how many to train on.
        held_out: how many to report on.
        calibration: how many to choose by.

    Raises:
        ValueError: no such task, a negative number, or the task has not as many different questions.
        ModuleNotFoundError: reasoning-gym is not installed.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; expected one of {', '.join(TASKS)}")
    if min(seed, train, held_out, calibration) < 0:
        raise ValueError(f"seed and sizes must be 0 or more; got {(seed, train, held_out, calibration)}")
    items = _different(name, seed, train + held_out + calibration)
    return ReasoningSplit(
        train=items[:train],
        held_out=items[train : train + held_out],
        calibration=items[train + held_out :],
    )


def _different(name: str, seed: int, count: int) -> list[ReasoningItem]:
    """So many questions without repetition, in the order of their SHA-256."""
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the task '{name}' is made by reasoning-gym, which is not installed: pip install 'valueadapter[study]'"
        ) from error
    tries = 10 * count + 100
    dataset = reasoning_gym.create_dataset(name, seed=seed * _STREAM, size=tries, **TASKS[name])
    items: dict[str, ReasoningItem] = {}
    for index in range(tries):
        if len(items) == count:
            break
        entry = dataset[index]
        items.setdefault(entry["question"], _item(dataset, entry))
    if len(items) < count:
        raise ValueError(f"the task '{name}' has {len(items)} different questions in {tries} draws; expected {count}")
    return [items[question] for question in sorted(items, key=_sha256)]


def _item(dataset: Any, entry: Mapping[str, Any]) -> ReasoningItem:
    def score(answer: str) -> float:
        return float(dataset.score_answer(answer, entry))

    return ReasoningItem(f"Question: {entry['question'].strip()}\nAnswer:", f" {entry['answer']}", score)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
