"""Intervals over examples: around the value, narrower with more of them, the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from valueadapter.demonstrations.bootstrap import Bootstrap


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of many samples of a known ratio, about 95 % have it within their interval."""
    random = np.random.default_rng(1)
    covered = 0
    for sample in range(200):
        counts = random.integers(1, 20, size=80)
        pairs = [(float(random.normal(3.0 * count, count)), int(count)) for count in counts]
        bootstrap = Bootstrap(len(pairs), draws=400, seed=sample)
        low, high = bootstrap.interval(bootstrap.ratios(pairs)) or (0, 0)
        covered += low <= 3.0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_more_examples_make_it_narrower() -> None:
    """By about the root of their number."""
    widths = []
    for count in (50, 800):
        bootstrap = Bootstrap(count)
        low, high = bootstrap.interval(bootstrap.ratios([(float(i % 2), 1) for i in range(count)])) or (0, 0)
        assert low < 0.5 < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_draws_are_seeded_and_shared() -> None:
    """One seed gives one interval; two measures of the same examples are resampled alike, so differences are exact."""
    pairs = [(float(i * i % 7), 1 + i % 3) for i in range(30)]
    shifted = [(total + count, count) for total, count in pairs]
    one, same, other = Bootstrap(30, seed=1), Bootstrap(30, seed=1), Bootstrap(30, seed=2)
    assert one.interval(one.ratios(pairs)) == same.interval(same.ratios(pairs))
    assert one.interval(one.ratios(pairs)) != other.interval(other.ratios(pairs))
    assert np.allclose(one.ratios(shifted) - one.ratios(pairs), 1.0)


def test_examples_without_the_measure_do_not_count() -> None:
    """Not as zeros; and where none has it there is no interval."""
    bootstrap = Bootstrap(6)
    assert bootstrap.interval(bootstrap.ratios([(2.0, 1), None, (2.0, 1), None, None, (2.0, 1)])) == (2.0, 2.0)
    assert bootstrap.interval(bootstrap.ratios([None] * 6)) is None
