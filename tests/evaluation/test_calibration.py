"""The best scale on a base, found in one pass, recorded, and used when the adapter is attached again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_model
from vocabularies import tokenizer_of

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, calibrate_scale
from valueadapter.evaluation.metrics import evaluate

EXAMPLES = [{"prompt": "The readers", "completion": " read again."}, {"prompt": "It is", "completion": " what it is"}]


def other_vocabulary() -> ValueAdapterForCausalLM:
    theirs, mine = tokenizer_of("coarse bytes"), tokenizer_of("bytes")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    network = tiny_model("gpt2", seed=2, width=len(mine))
    model.add_adapter(ValueAdapter.from_networks([network], mine, base_model_name_or_path="a/b"), "default", scale=0.7)
    return model.eval()


@pytest.mark.parametrize("prefix", [None, "It is so\n"])
def test_every_point_of_the_curve_is_what_evaluation_measures(prefix: str | None) -> None:
    """Of the base alone and at other scales; and the best of them is the answer. The model is left as it was."""
    model = other_vocabulary()
    model.set_base_prefix(prefix)
    found = calibrate_scale(model, EXAMPLES, scales=(0.1, 0.5, 1.0), batch_size=1)
    assert model.scales == {"default": 0.7}
    for scale, bits in found.curve.items():
        model.set_scale("default", scale)
        measured = evaluate(model, model.base_tokenizer, EXAMPLES, generate=False).bits_per_byte
        assert bits == pytest.approx(measured, rel=1e-4)
    assert found.scale == min(found.curve, key=found.curve.__getitem__)
    assert found.bits_per_byte == found.curve[found.scale]


def test_other_adapters_stay_out_of_it() -> None:
    """Calibrating one of two gives what it gives alone."""
    model = other_vocabulary()
    alone = calibrate_scale(model, EXAMPLES, scales=(0.5,))
    second = ValueAdapter.from_networks(
        [tiny_model("llama", seed=9, width=model.base.config.vocab_size)],
        model.base_tokenizer,
        base_model_name_or_path="a/b",
    )
    model.add_adapter(second, "second")
    model.set_adapter(["default", "second"])
    assert calibrate_scale(model, EXAMPLES, scales=(0.5,), adapter_name="default") == alone
    assert model.active_adapters == ["default", "second"]


def test_a_recorded_scale_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On bases of the vocabulary it was measured on, unless another is asked for."""
    model = other_vocabulary()
    found = calibrate_scale(model, EXAMPLES, scales=(0.25, 0.3))
    record = found.recommended(model, base="acme/base", data="two examples")
    adapter = model.adapters["default"].with_config(scales=(record,))
    adapter.save_pretrained(tmp_path / "adapter")
    loaded = ValueAdapter.from_pretrained(tmp_path / "adapter")
    assert loaded.config.scales == (record,)
    base = tiny_model("llama", seed=1, width=len(tokenizer_of("coarse bytes")))
    again = ValueAdapterForCausalLM(base, tokenizer=tokenizer_of("coarse bytes"))
    again.add_adapter(loaded, "default")
    assert again.scales["default"] == found.scale
    assert "measured on 'acme/base'" in caplog.text
    again.delete_adapter("default")
    again.add_adapter(loaded, "default", scale=1.5)
    assert again.scales["default"] == 1.5
    elsewhere = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    elsewhere.add_adapter(loaded.copy(), "default")
    assert elsewhere.scales["default"] == 1.0


def test_the_bases_own_record_goes_before_its_familys() -> None:
    """Two bases share a vocabulary and have a scale each."""
    model = other_vocabulary()
    found = calibrate_scale(model, EXAMPLES, scales=(0.5,))
    records = tuple(found.recommended(model, base=name, data="x") for name in ("acme/small", "acme/large"))
    config = model.adapters["default"].with_config(scales=records).config
    assert config.scale_for(model.base_fingerprint(), "acme/large") == records[1]
    assert config.scale_for(model.base_fingerprint(), "acme/other") == records[0]
    assert config.scale_for("0" * 64, "acme/large") is None


def test_bad_input_is_refused() -> None:
    """No examples, and scales that are no numbers."""
    model = other_vocabulary()
    with pytest.raises(ConfigError, match="no examples"):
        calibrate_scale(model, [])
    with pytest.raises(ConfigError, match="finite"):
        calibrate_scale(model, EXAMPLES, scales=(float("nan"),))


def test_a_best_scale_at_the_edge_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The answer may then lie beyond what was tried."""
    model = other_vocabulary()
    calibrate_scale(model, EXAMPLES, scales=(-0.5, 0.0))
    curve = calibrate_scale(model, EXAMPLES, scales=(-0.5, 0.0)).curve
    assert ("largest that was tried" in caplog.text) == (curve[0.0] < curve[-0.5])
