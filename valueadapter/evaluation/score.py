"""What was measured of one model: totals per example, and the ratios that they add up to; measures nothing itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

METRICS = (
    "bits_per_byte",
    "total_bits_per_byte",
    "exact_match",
    "ends",
    "choice_accuracy",
    "first_token_bits",
    "middle_token_bits",
    "last_token_bits",
)
"""What is measured of every arm. Fewer bits are better, more matches are."""


@dataclass(frozen=True)
class Example:
    """What was measured of a model on one demonstration.

    Each metric is a total and what to divide it by, so that the value over many examples is one ratio of sums.
    """

    totals: dict[str, tuple[float, int]]
    """Metric -> total and count: bits and bytes, bits and tokens, hits and examples."""
    predicted: tuple[int, ...]
    """The likeliest token at each position of the response, its end included."""
    answer: str | None = None
    """What the model said; None where it was not asked."""


@dataclass(frozen=True)
class Score:
    """What was measured of one model."""

    examples: tuple[Example, ...]
    """In the order of the records."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the responses; lower is better. Control tokens (the end of sequence) do not count."""
        return self.value("bits_per_byte") or 0.0

    @property
    def exact_match(self) -> float | None:
        """Share of responses, 0 to 1, that match after normalisation; None where not asked for."""
        return self.value("exact_match")

    @property
    def answers(self) -> tuple[str, ...]:
        """What the model said to each prompt; empty where exact match was not asked for."""
        return tuple(example.answer for example in self.examples if example.answer is not None)

    def value(self, metric: str) -> float | None:
        """A metric over all examples; None where no example has it."""
        return ratio(self.pairs(metric))

    def pairs(self, metric: str) -> list[tuple[float, int] | None]:
        """Total and count of a metric for each example; None for those that do not have it."""
        return [example.totals.get(metric) for example in self.examples]

    def changed_from(self, other: Score) -> list[tuple[float, int]]:
        """For each example, how many of its tokens this model predicts otherwise than another, and of how many."""
        return [
            (float(sum(a != b for a, b in zip(one.predicted, two.predicted, strict=True))), len(one.predicted))
            for one, two in zip(self.examples, other.examples, strict=True)
        ]


def ratio(pairs: Sequence[tuple[float, int] | None]) -> float | None:
    """Sum of totals over sum of counts; None where nothing was counted."""
    there = [pair for pair in pairs if pair is not None]
    count = sum(count for _, count in there)
    return math.fsum(total for total, _ in there) / count if count else None
