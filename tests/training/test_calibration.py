"""Weights of base, networks and end on a base: found, believed or not, recorded, and used when attached again."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from vocabularies import tokenizer_of

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, Weights, calibrate
from valueadapter.demonstrations.responses import response_bytes, scored
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.forward.stops import end_tokens
from valueadapter.training import calibration, expert_logits

EXAMPLES = [{"prompt": "The readers", "completion": " read again."}, {"prompt": "It is", "completion": " what it is"}]
MORE = [
    {"prompt": f"The {noun} is", "completion": f" {what}."}
    for noun in ("book", "tree", "line", "word")
    for what in ("new", "an old one", "right")
]


def other_vocabulary() -> ValueAdapterForCausalLM:
    theirs, mine = tokenizer_of("coarse bytes"), tokenizer_of("bytes")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    network = tiny_model("gpt2", seed=2, width=len(mine))
    model.add_adapter(ValueAdapter.from_networks([network], mine, base_model_name_or_path="a/b"), "default", scale=0.7)
    return model.eval()


def same_vocabulary(names: tuple[str, ...] = ("default",), **config: Any) -> ValueAdapterForCausalLM:
    """A base and adapters of two networks each, that know something of it: their bodies are its own, disturbed."""
    tokenizer = tokenizer_of("bytes")
    base = tiny_model("llama", seed=1, width=len(tokenizer))
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    for index, name in enumerate(names):
        networks = [tiny_model("llama", seed=2 + 2 * index + n, width=len(tokenizer)) for n in range(2)]
        adapter = ValueAdapter.from_networks(
            networks, tokenizer, base_model_name_or_path="a/b", coefficients=[0.6, -0.3], base_weight=0.7, **config
        )
        model.add_adapter(adapter, name)
    model.set_adapter(names)
    return model.eval()


@torch.no_grad()
def nats(model: ValueAdapterForCausalLM, examples: list[dict[str, str]], stop_strings: tuple[str, ...] = ()) -> float:
    """What responses and their ends cost, from the whole logits of one example at a time; any end is right."""
    ends = end_tokens(model.base, model.base_tokenizer, stop_strings, width=model.base.config.vocab_size)
    total = 0.0
    for example in examples:
        found = scored([example], model.base_tokenizer, model.device)
        read = {key: value for key, value in found.inputs.items() if key != "logits_to_keep"}
        log_p = model(**read).logits.double().log_softmax(-1)[0, -found.labels.shape[1] - 1 : -1]
        for place, label in enumerate(found.labels[0].tolist()):
            if label == IGNORED:
                continue
            right = ends if found.ends[0, place] else [label]
            total -= float(log_p[place, right].logsumexp(-1))
    return total


@pytest.mark.parametrize("stop_strings", [(), ("e",)], ids=["one end", "two ends"])
@pytest.mark.parametrize("prefix", [None, "It is so\n"])
@pytest.mark.parametrize("make", [other_vocabulary, same_vocabulary])
def test_every_point_of_the_curve_is_what_the_model_says(
    make: Any, prefix: str | None, stop_strings: tuple[str, ...]
) -> None:
    """Of the base alone and at other scales, ends counted. The model is left as it was."""
    model = make()
    model.attached.by_name["default"].adapter = model.adapters["default"].with_config(stop_strings=stop_strings)
    model.set_base_prefix(prefix)
    before = model.scales, model.weights
    found = calibrate(model, EXAMPLES, batch_size=1)
    assert (model.scales, model.weights) == before
    model.set_weights("default", found.weights["default"])
    size = math.log(2) * response_bytes(EXAMPLES)
    for scale, bits in found.curve.items():
        model.set_scale("default", scale)
        assert bits == pytest.approx(nats(model, EXAMPLES, stop_strings) / size, rel=1e-4)
    assert (found.base_bits_per_byte, found.bits_per_byte) == (found.curve[0.0], found.curve[1.0])
    model.set_scale("default", 1.0)
    tokens = [scored([one], model.base_tokenizer, model.device).labels for one in EXAMPLES]
    count = sum(int((labels != IGNORED).sum()) for labels in tokens)
    assert found.loss == pytest.approx(nats(model, EXAMPLES, stop_strings) / count, rel=1e-4)


@pytest.mark.parametrize("stop_strings", [(), ("e",)], ids=["one end", "two ends"])
def test_nothing_near_the_fitted_weights_is_better(stop_strings: tuple[str, ...], monkeypatch: Any) -> None:
    """The least point of loss and prior: no weight that is moved a little lowers their sum. And what the default ones
    cost."""
    monkeypatch.setattr(calibration, "_believed", lambda gains: True)
    model = same_vocabulary()
    model.attached.by_name["default"].adapter = model.adapters["default"].with_config(stop_strings=stop_strings)
    found = calibrate(model, MORE)
    assert found.fitted
    default = model.adapters["default"].config.default_weights

    def objective(weights: Weights) -> float:
        model.set_weights("default", weights)
        moved = [
            a - b for a, b in zip((weights.base, *weights.networks), (default.base, *default.networks), strict=True)
        ]
        prior = sum((one / calibration.DEVIATION) ** 2 for one in moved)
        prior += ((weights.end - default.end) / calibration.END_DEVIATION) ** 2
        return nats(model, MORE, stop_strings) + prior / 2

    best = found.weights["default"]
    here = objective(best)
    assert here < objective(default)
    bits = nats(model, MORE, stop_strings) / (math.log(2) * response_bytes(MORE))
    assert found.bits_per_byte < found.default_bits_per_byte == pytest.approx(bits, rel=1e-4)
    for step in (-0.02, 0.02):
        first, second = best.networks
        assert objective(Weights(best.base + step, best.networks, best.end)) > here
        assert objective(Weights(best.base, (first + step, second), best.end)) > here
        assert objective(Weights(best.base, (first, second + step), best.end)) > here
        assert objective(Weights(best.base, best.networks, best.end + 5 * step)) > here


@pytest.mark.parametrize("why", ["they are too many", "the disk is nearly full"])
def test_what_is_not_kept_is_read_again(monkeypatch: Any, why: str) -> None:
    """The same weights, and the models run once for each step instead of once."""
    model, read = same_vocabulary(), []
    kept = calibrate(model, MORE, on_progress=read.append)
    assert sum(read) == len(MORE)
    if why == "they are too many":
        monkeypatch.setattr(expert_logits, "ON_DISK", 0)
    else:
        monkeypatch.setattr(expert_logits.shutil, "disk_usage", lambda place: SimpleNamespace(free=3))
    again = calibrate(model, MORE, on_progress=read.append)
    assert sum(read) >= 4 * len(MORE)
    assert again == kept


def test_what_is_not_believed_leaves_the_default(monkeypatch: Any) -> None:
    """One example tells nothing of others; nor do weights that examples left out do not gain by."""
    model = same_vocabulary()
    default = model.adapters["default"].config.default_weights
    one = calibrate(model, EXAMPLES[:1])
    assert (one.fitted, one.expected_gain, one.weights) == (False, None, {"default": default})
    monkeypatch.setattr(calibration, "_believed", lambda gains: False)
    several = calibrate(model, MORE)
    assert (several.fitted, several.weights) == (False, {"default": default})
    assert several.bits_per_byte == several.default_bits_per_byte
    assert several.expected_gain is not None


@pytest.mark.parametrize("seed", range(4))
def test_five_examples_do_no_harm(seed: int) -> None:
    """Weights from five examples of noise cost others hardly more than the default ones do."""
    draw = torch.Generator().manual_seed(seed)
    letters = "abcdefghij klmnop"

    def text(count: int) -> str:
        return "".join(letters[i] for i in torch.randint(len(letters), (count,), generator=draw).tolist())

    noise = [{"prompt": text(6), "completion": f" {text(5)}"} for _ in range(65)]
    model = same_vocabulary()
    found = calibrate(model, noise[:5])
    before = nats(model, noise[5:])
    model.set_weights("default", found.weights["default"])
    assert nats(model, noise[5:]) < 1.02 * before


def test_several_are_fitted_together() -> None:
    """No worse than the better one alone; what base and end count for is theirs in equal shares."""
    model = same_vocabulary(("one", "two"))
    both = calibrate(model, MORE, adapter_name=["one", "two"])
    alone = [calibrate(model, MORE, adapter_name=name) for name in ("one", "two")]
    assert both.bits_per_byte <= min(one.bits_per_byte for one in alone) + 1e-9
    acting = [one for one in both.weights.values() if any(one.networks)]
    assert len({one.base for one in acting}) == 1
    for name, weights in both.weights.items():
        model.set_weights(name, weights)
    size = math.log(2) * response_bytes(MORE)
    assert nats(model, MORE) / size == pytest.approx(both.bits_per_byte, rel=1e-4)


def test_other_adapters_stay_out_of_it() -> None:
    """Calibrating one of two gives what it gives alone."""
    model = other_vocabulary()
    alone = calibrate(model, EXAMPLES)
    second = ValueAdapter.from_networks(
        [tiny_model("llama", seed=9, width=model.base.config.vocab_size)],
        model.base_tokenizer,
        base_model_name_or_path="a/b",
    )
    model.add_adapter(second, "second")
    model.set_adapter(["default", "second"])
    assert calibrate(model, EXAMPLES, adapter_name="default") == alone
    assert model.active_adapters == ["default", "second"]


def test_recorded_weights_are_used(tmp_path: Path) -> None:
    """On bases of the vocabulary they were fitted on, and not on others; a scale that is asked for holds besides."""
    model = other_vocabulary()
    record = calibrate(model, EXAMPLES).recommended(model, base="acme/base", data="two examples")
    record = type(record)(**{**vars(record), "weights": Weights(0.8, (0.5,), 1.0)})
    adapter = model.adapters["default"].with_config(weights=(record,))
    adapter.save_pretrained(tmp_path / "adapter")
    loaded = ValueAdapter.from_pretrained(tmp_path / "adapter")
    assert loaded.config.weights == (record,)
    base = tiny_model("llama", seed=1, width=len(tokenizer_of("coarse bytes")))
    again = ValueAdapterForCausalLM(base, tokenizer=tokenizer_of("coarse bytes"))
    again.add_adapter(loaded, "default")
    assert (again.weights["default"], again.scales["default"]) == (record.weights, 1.0)
    assert again.get_adapter_status()[0].weights == record.weights
    again.delete_adapter("default")
    again.add_adapter(loaded, "default", scale=1.5)
    assert (again.weights["default"], again.scales["default"]) == (record.weights, 1.5)
    elsewhere = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    elsewhere.add_adapter(loaded.copy(), "default")
    assert elsewhere.weights["default"] == loaded.config.default_weights


def test_whose_record_is_taken() -> None:
    """The base's own, also where it lies in a directory; then one for its vocabulary, never the training base's."""
    model = other_vocabulary()
    found = calibrate(model, EXAMPLES)
    names = "a/b", "acme/small", "acme/large"  # the first is what the adapter was trained on
    records = tuple(found.recommended(model, base=name, data="x") for name in names)
    assert [one.for_vocabulary for one in records] == [False, True, True]
    config, own = model.adapters["default"].with_config(weights=records).config, model.base_fingerprint()
    chosen = [config.weights_for(own, name) for name in ("acme/large", "/models/large", "acme/other", "a/b", "/x/b")]
    assert chosen == [records[2], records[2], records[1], records[0], records[0]]
    assert config.weights_for("0" * 64, "acme/large") is None


def test_bad_input_is_refused() -> None:
    """No examples, no such adapter, and weights for other networks than there are."""
    model = other_vocabulary()
    with pytest.raises(ConfigError, match="no examples"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="no adapter 'x'"):
        calibrate(model, EXAMPLES, adapter_name=["default", "x"])
    with pytest.raises(ConfigError, match="one weight for each of 1 networks"):
        model.set_weights("default", Weights(1.0, (1.0, -1.0)))
    with pytest.raises(ConfigError, match="finite"):
        Weights(math.nan, (1.0,))


def test_one_demonstration_again_and_again_tells_nothing_of_others() -> None:
    """What is left out must not be what was fitted on."""
    found = calibrate(same_vocabulary(), [MORE[0]] * 5)
    assert (found.fitted, found.expected_gain) == (False, None)
    assert calibration._folds([MORE[0], MORE[1], MORE[0]]).tolist() == [0, 1, 0]


def test_what_is_recorded_for_the_base_is_what_others_must_beat() -> None:
    """Weights that are not believed never take the place of those that are in force."""
    model = same_vocabulary()
    record = calibrate(model, MORE).recommended(model, base=model.base.name_or_path or "x", data="d")
    model.base.name_or_path = model.base.config.name_or_path = record.base
    adapter = model.adapters["default"].with_config(weights=(record,))
    model.delete_adapter("default")
    model.add_adapter(adapter, "default")
    again = calibrate(model, MORE[:1])
    assert (again.fitted, again.weights["default"]) == (False, record.weights)


def test_weights_act_at_once_where_the_scale_was_another() -> None:
    """As an adapter of format version 1 has it; what `calibrate` promises is then what the model says."""
    model = same_vocabulary(scale=0.25)
    found = calibrate(model, MORE)
    model.set_weights("default", found.weights["default"])
    assert model.scales["default"] == 1.0
    assert nats(model, MORE) / math.log(2) / response_bytes(MORE) == pytest.approx(found.bits_per_byte, rel=1e-4)


def test_bad_input_is_refused_before_anything_runs() -> None:
    """No text, one adapter twice, none, a batch of nothing, weights that are none."""
    model = same_vocabulary()
    for how, message in (
        ({"examples": [{"prompt": "a", "completion": ""}]}, "any text"),
        ({"adapter_name": ["default", "default"]}, "each named once"),
        ({"adapter_name": []}, "each named once"),
        ({"default": {"x": Weights(1.0, (1.0, 1.0))}}, "no adapter 'x'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(model, **{"examples": MORE, **how})
    with pytest.raises(ConfigError, match="expected Weights"):
        model.set_weights("default", (1, (1, 1)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be a tuple"):
        Weights(1.0, [1.0])  # type: ignore[arg-type]


def test_nothing_drops_out_meanwhile_and_modules_stay_in_their_modes() -> None:
    """In the middle of a training the same is found as outside of one."""
    model = other_vocabulary()
    expected = calibrate(model, EXAMPLES)
    for network in model.adapters["default"].networks:
        network.transformer.drop.p = 0.5
        network.train()
    modes = {name: module.training for name, module in model.named_modules()}
    assert calibrate(model, EXAMPLES) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
