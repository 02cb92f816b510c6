"""What the demo claims: only what intervals support, else it ends; and how much time it says is left."""

from __future__ import annotations

from typing import Any

import pytest
from clock import Clock
from measuring import TOTAL, check_claims, console, show

from valueadapter.evaluation.arms import Options
from valueadapter.evaluation.report import Arm, BaseResult, Report
from valueadapter.evaluation.score import Example, Score

BITS = {"base": 3.0, "fewshot": 0.5, "donor": 0.2, "adapted": 0.1}


def score(bits: float, *, spread: float = 0.0, count: int = 20) -> Score:
    """Records of ten bytes each, of which every second one has more bits, and every second one fewer."""
    each = [10 * (bits + (spread if index % 2 else -spread)) for index in range(count)]
    exact = {"exact_match": (float(bits < 1), 1), "ends": (1.0, 1)}
    return Score(
        examples=tuple(Example({TOTAL: (one, 10), **exact}, predicted=(), answer="books 7") for one in each),
    )


def result(bits: dict[str, float] = BITS, **spread: float) -> BaseResult:
    arms = {arm: Arm(score(one, spread=spread.get(arm, 0.0))) for arm, one in bits.items()}
    return BaseResult(
        base="alice/base",
        relation="",
        scale=1.0,
        calibrated_scale=None,
        donor_scale=1.0,
        num_fewshot=8,
        arms=arms | {"calibrated": Arm(), "finetuned": Arm()},
    )


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_what_intervals_support_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    check_claims(result(), fails=True)
    assert "better than the base alone (2.900; 2.900 to 2.900)" in said(capsys)


@pytest.mark.parametrize("other", ["base", "fewshot"])
def test_a_gain_within_chance_ends_the_demo(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    close = BITS | {other: 0.11}
    with pytest.raises(SystemExit, match="does not hold"):
        check_claims(result(close, adapted=0.09), fails=True)
    assert "not told apart from" in said(capsys)
    check_claims(result(close, adapted=0.09), fails=False)


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_worse_ends_the_demo(fails: bool) -> None:
    with pytest.raises(SystemExit, match="does not hold"):
        check_claims(result(BITS | {"fewshot": 0.05}), fails=fails)


def test_the_small_tuned_model_counts_where_the_base_is_stronger(capsys: pytest.CaptureFixture[str]) -> None:
    check_claims(result(BITS | {"donor": 0.05}), fails=True)
    assert "worse than the small tuned model (0.050" in said(capsys)
    with pytest.raises(SystemExit, match="does not hold"):
        check_claims(result(BITS | {"donor": 0.16, "fewshot": 0.15, "adapted": 0.17}), fails=True)


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 80)
    bases: list[Any] = [result()]
    show(Report(adapter="a", data="notes", results=tuple(bases), num_examples=20), 20, Options(data_name="notes"))
    out = capsys.readouterr().out
    assert "100% (84%-100%)" in out  # 20 of 20, by Wilson
    assert "0.100 (0.10-0.10)" in out
    assert "8 examples in its prompt" in out


def test_the_time_left_follows_how_fast_the_machine_was(capsys: pytest.CaptureFixture[str]) -> None:
    steps = {"train": 120.0, "measure": 240.0, "cost": 35.0}
    Clock(steps).begin("train", "Training")
    assert "Training (about 7 minutes left)" in said(capsys)
    slow = Clock(steps, spent=300.0, planned=120.0)  # with a minute at the measured pace, twice as long as planned
    slow.begin("measure", "Measuring")
    assert "Measuring (after 300 s, about 9 minutes left)" in said(capsys)
    spent, planned = slow.state()
    assert float(spent) >= 300
    assert float(planned) == 360
