"""A training ends with weights for its own base, fitted on what it did not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, Weights
from valueadapter.artifact import verification
from valueadapter.demonstrations.selection import draw
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.training.recipe import Recipe, run
from valueadapter.training.recipe_settings import DEFAULT_WEIGHTS

DATA = [{"prompt": f"Q{i:02d}", "completion": "ABC"[i % 3] * 2} for i in range(62)]
QUICK = {"use_cpu": True, "max_steps": 3, "learning_rate": 1e-2}


@pytest.fixture
def base(tmp_path: Path) -> str:
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was trained on and what was fitted on, as the run hands it over."""
    from valueadapter.training import fitted_weights, recipe

    found: dict[str, Any] = {}
    tokenize, calibrate = recipe.tokenize, fitted_weights.calibrate
    monkeypatch.setattr(recipe, "tokenize", lambda data, *a, **k: tokenize(found.setdefault("trained", data), *a, **k))
    monkeypatch.setattr(fitted_weights, "calibrate", lambda m, d, **k: calibrate(m, found.setdefault("fitted", d), **k))
    return found


@pytest.mark.parametrize("network", ["lora", "full"])
def test_some_are_held_out_and_the_weights_fitted_on_them(
    base: str, tmp_path: Path, seen: dict[str, Any], network: Any
) -> None:
    """One in twelve, none of them trained on or in the prefix; recorded for the training base and for no other."""
    recipe = Recipe(base=base, data=DATA, output_dir=tmp_path / "out", network=network, arguments=QUICK)
    summary = run(recipe, say=lambda line: None)
    trained, fitted = ({one["prompt"] for one in seen[name]} for name in ("trained", "fitted"))
    shown = {one["prompt"] for one in draw(DATA, 8)}
    assert (len(fitted), len(trained)) == (4, 50)
    assert fitted | trained | shown == {one["prompt"] for one in DATA}
    config = verification.verify(tmp_path / "out" / "adapter")
    (record,) = config.weights
    assert (record.num_examples, record.for_vocabulary, summary["held_out_demonstrations"]) == (4, False, 4)
    assert config.default_weights == DEFAULT_WEIGHTS[network]
    model = ValueAdapterForCausalLM.from_pretrained(base, tmp_path / "out" / "adapter")
    assert model.weights["default"] == record.weights
    elsewhere = ValueAdapterForCausalLM(tiny_model("gpt2", seed=7), tokenizer=byte_tokenizer())
    elsewhere.add_adapter(ValueAdapter.from_pretrained(tmp_path / "out" / "adapter"), "default")
    assert elsewhere.weights["default"] == DEFAULT_WEIGHTS[network]


def test_given_ones_are_fitted_on_and_all_others_trained_on(base: str, tmp_path: Path, seen: dict[str, Any]) -> None:
    """With eval_data nothing is held out."""
    recipe = Recipe(base=base, data=DATA[:50], eval_data=DATA[50:], output_dir=tmp_path / "out", arguments=QUICK)
    run(recipe, score=lambda model, records: {"scored": len(records)}, say=lambda line: None)
    assert (len(seen["trained"]), len(seen["fitted"])) == (42, 12)


def test_of_few_none_is_held_out(base: str, tmp_path: Path, seen: dict[str, Any]) -> None:
    """The weights on the training base are then those of the training, and it says the tuned base's tokens."""
    recipe = Recipe(base=base, data=DATA[:20], output_dir=tmp_path / "out", arguments=QUICK)
    summary = run(recipe, say=lambda line: None)
    assert "fitted" not in seen
    assert "as in training" in str(summary["weights"])
    model = ValueAdapterForCausalLM.from_pretrained(base, tmp_path / "out" / "adapter")
    assert model.weights["default"] == Weights(1.0, (1.0, -1.0))
    ids = torch.tensor([[5, 6, 7]])
    before = torch.tensor([prefix_ids(model.base_prefix, model.base_tokenizer)])
    tuned = model.adapters["default"].networks[0](torch.cat([before, ids], dim=1)).logits[:, before.shape[1] :]
    torch.testing.assert_close(model(ids).logits, tuned, rtol=1e-5, atol=1e-5)


def test_what_is_learned_is_saved_before_anything_is_fitted(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in fitting loses nothing: the adapter lies there with the weights of the training."""
    from valueadapter.training import fitted_weights

    def broken(*args: Any, **how: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fitted_weights, "calibrate", broken)
    recipe = Recipe(base=base, data=DATA, output_dir=tmp_path / "out", arguments=QUICK)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(recipe, say=lambda line: None)
    (record,) = verification.verify(tmp_path / "out" / "adapter").weights
    assert (record.num_examples, record.weights) == (0, Weights(1.0, (1.0, -1.0)))


def test_what_occurs_twice_is_held_out_twice(base: str, tmp_path: Path, seen: dict[str, Any]) -> None:
    """None of what is fitted on is trained on under another number."""
    recipe = Recipe(base=base, data=DATA[:30] * 2, base_prefix_examples=0, output_dir=tmp_path / "out", arguments=QUICK)
    run(recipe, say=lambda line: None)
    trained, fitted = ({one["prompt"] for one in seen[name]} for name in ("trained", "fitted"))
    assert fitted
    assert not fitted & trained


def test_what_training_would_cut_is_not_fitted_on(base: str, tmp_path: Path, seen: dict[str, Any]) -> None:
    """And no response without text."""
    data = [{**one, "completion": one["completion"] * 60 if i % 2 else ""} for i, one in enumerate(DATA)]
    arguments = {**QUICK, "max_length": 40}
    recipe = Recipe(base=base, data=data, base_prefix_examples=0, output_dir=tmp_path / "out", arguments=arguments)
    assert "as in training" in str(run(recipe, say=lambda line: None)["weights"])
    assert "fitted" not in seen
