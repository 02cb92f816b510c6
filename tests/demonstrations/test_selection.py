"""Which records are scored, calibrated on and shown: never the same one twice, and drawn by seed."""

from __future__ import annotations

import pytest

from valueadapter import ConfigError
from valueadapter.demonstrations.selection import draw, split, without

RECORDS = [{"prompt": f"question {i}", "completion": f" {i}"} for i in range(10)]


@pytest.mark.parametrize("limit", [None, 1, 6])
@pytest.mark.parametrize("calibrate", [0, 3])
def test_scored_and_calibration_examples_are_others(limit: int | None, calibrate: int) -> None:
    """Scored ones come first, as many as asked for; those to calibrate on come after."""
    parts = split(RECORDS, limit=limit, calibrate=calibrate)
    assert parts.held_out == RECORDS[: limit or 10 - calibrate]
    assert len(parts.calibration) == calibrate
    assert not [record for record in parts.calibration if record in parts.held_out]


@pytest.mark.parametrize("others", [None, RECORDS])
def test_duplicates_do_not_cross_over(others: list[dict[str, str]] | None) -> None:
    """A record that is there twice, or in both files, is not calibrated on if it is scored."""
    parts = split([*RECORDS[:4], *RECORDS], limit=4, calibrate=6, others=others)
    assert parts.calibration == RECORDS[4:]


@pytest.mark.parametrize(("limit", "calibrate"), [(10, 1), (8, 3), (None, 10), (None, 11)])
def test_too_few_records_are_an_error(limit: int | None, calibrate: int) -> None:
    """It says what to lower."""
    with pytest.raises(ConfigError, match="lower --limit or --calibrate"):
        split(RECORDS, limit=limit, calibrate=calibrate)


def test_demonstrations_are_drawn_by_seed() -> None:
    """Without repetition, the same ones for the same seed."""
    assert draw(RECORDS, 4, seed=1) == draw(RECORDS, 4, seed=1) != draw(RECORDS, 4, seed=2)
    assert len({one["prompt"] for one in draw(RECORDS, 10)}) == 10
    with pytest.raises(ConfigError, match="11 demonstrations were asked for"):
        draw(RECORDS, 11)


def test_records_are_compared_by_what_is_learnt() -> None:
    """Columns that a data set has besides do not make a record another one."""
    turn = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]
    plain = [{key: value for key, value in message.items() if key != "name"} for message in turn]
    assert without([{"messages": turn, "id": 1}], [{"messages": plain}]) == []
    assert without([{"text": "a", "id": 1}, {"text": "b"}], [{"text": "a"}]) == [{"text": "b"}]
    assert without([{**RECORDS[0], "choices": ["x"]}, RECORDS[1]], [RECORDS[0]]) == [RECORDS[1]]
