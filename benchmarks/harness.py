"""Times variants side by side on a machine that others use too; knows nothing of what they compute."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

Variants = Mapping[str, Callable[[], object]]


def rounds(variants: Variants, *, number: int) -> list[dict[str, float]]:
    """CPU seconds of each variant in each round; the order rotates, so that drift falls on all alike."""
    names = list(variants)
    for name in names:
        variants[name]()
    results = []
    for turn in range(number):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        seconds = {}
        for name in order:
            begun = time.process_time()
            variants[name]()
            seconds[name] = time.process_time() - begun
        results.append(seconds)
    return results


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 90 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), medians[50], medians[949]
