"""Confidence intervals by resampling examples (Efron 1979); knows nothing of what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Pairs = Sequence[tuple[float, int] | None]
"""For each example, a total and its count; None where the example has none."""
Interval = tuple[float, float]


class Bootstrap:
    """Resamples of one set of examples, the same for every measure, so that differences between arms are paired.

    Args:
        num_examples: how many examples there are.
        draws: resamples.
        confidence: share of them within the interval, 0 to 1.
        seed: of the draws.
    """

    def __init__(self, num_examples: int, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0) -> None:
        self._picks = np.random.default_rng(seed).integers(0, num_examples, size=(draws, num_examples))
        self._tails = ((1 - confidence) / 2, (1 + confidence) / 2)

    def ratios(self, pairs: Pairs) -> np.ndarray:
        """The ratio of the sums of totals and counts in each resample: (draws); NaN where its count is 0."""
        table = np.array([pair or (0.0, 0) for pair in pairs], dtype=np.float64)
        totals, counts = (table[self._picks, column].sum(axis=1) for column in (0, 1))
        found: np.ndarray = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
        return found

    def interval(self, values: np.ndarray) -> Interval | None:
        """Between which of the resamples' values the confidence lies; None where no resample has a value.

        Args:
            values: (draws), as `ratios` gives them, or what was computed of several.
        """
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        low, high = np.quantile(finite, self._tails)
        return float(low), float(high)
