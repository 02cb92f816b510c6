"""The study scores the same numbers however little it may hold at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_study import BASES, EXAMPLES, silent
from test_study import adapter as adapter
from test_study import bases as bases

from studies import scoring
from studies.curves import Curve
from studies.scoring import curve_of, score_adapter
from studies.store import Store
from studies.targets import Target
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.forward import bounded_logits


@pytest.mark.parametrize("budget", [1, 60_000])
def test_a_small_budget_changes_no_curve(
    bases: dict[str, Target], adapter: ValueAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """A position at a time, and a few; by kept states and through the wrapper, for both relations of vocabularies."""
    store, few = Store(tmp_path), scoring.Examples(EXAMPLES.held_out[:4], EXAMPLES.calibration[:2])
    targets = [bases[name] for name in BASES]
    before = score_adapter(adapter, targets, few, store=store, say=silent)
    model = ValueAdapterForCausalLM.from_pretrained(
        bases["same"].load(), adapter.copy(), tokenizer=bases["same"].tokenizer, scale=1.0
    )
    whole = curve_of(model.eval(), bases["same"].tokenizer, few)
    monkeypatch.setattr(scoring, "BUDGET", budget)
    monkeypatch.setattr(bounded_logits, "BUDGET", budget)
    after = score_adapter(adapter, targets, few, store=store, say=silent)
    for name in BASES:
        one, other = before[name], after[name]
        assert isinstance(one, Curve)
        assert isinstance(other, Curve)
        assert one.nats.min() > 0
        torch.testing.assert_close(one.nats, other.nats, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(curve_of(model, bases["same"].tokenizer, few).nats, whole.nats, atol=2e-5, rtol=1e-5)


def test_labels_stand_behind_the_positions_that_predict_them() -> None:
    """Also where a chat has several answers, with questions between."""
    example = scoring.Encoded(0, [5, 6, 7, 8, 9, 10], [0, 3, 4], [6, 9, 10])
    assert scoring._labels(example) == [-100, 6, -100, -100, 9, 10]
