"""Which demonstrations stand in a prompt, which records are scored and which a scale is found on; runs no model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from valueadapter.demonstrations.responses import Record, same_demonstration
from valueadapter.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """Two sets of records that share none."""

    held_out: list[Record]
    """What every arm is scored on."""
    calibration: list[Record]
    """What the scale is found on."""


def split(
    records: Sequence[Record], *, limit: int | None = None, calibrate: int = 0, others: Sequence[Record] | None = None
) -> Split:
    """Takes the first `limit` records to score on, and others to find the scale on.

    Args:
        records: held-out demonstrations.
        limit: how many to score on at most; all that calibration leaves by default.
        calibrate: how many to find the scale on.
        others: where to take these from; by default those of `records` that come after the scored ones.

    Raises:
        ConfigError: not enough records.
    """
    if limit is None:
        limit = len(records) - (calibrate if others is None else 0)
    held_out = list(records[: max(limit, 0)])
    rest = without(records[len(held_out) :] if others is None else others, held_out)
    if not held_out or len(rest) < calibrate:
        raise ConfigError(
            f"{len(records)} records are too few to score on {max(limit, 0)} and find the scale on {calibrate} others; "
            "lower --limit or --calibrate, or give others to calibrate on (--calibration-data)"
        )
    return Split(held_out, rest[:calibrate])


def without(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """The records that are not among others, in their order."""
    taken = {same_demonstration(record) for record in others}
    return [record for record in records if same_demonstration(record) not in taken]


def draw(records: Sequence[Record], shots: int, *, seed: int = 0) -> list[Record]:
    """Demonstrations for a few-shot prompt, drawn at random without repetition.

    Raises:
        ConfigError: there are fewer.
    """
    if len(records) < shots:
        raise ConfigError(f"{shots} demonstrations were asked for and there are {len(records)}")
    return random.Random(seed).sample(list(records), shots)
