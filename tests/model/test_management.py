"""What PEFT's users expect besides attaching: status, weighted adapters, swapped weights, weights below zero."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bodies import as_trained
from tiny import byte_tokenizer, tiny_model
from torch._dynamo.testing import CompileCounter
from vocabularies import tokenizer_of

from valueadapter import AdapterNameError, ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM

Make = Callable[..., ValueAdapter]
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(tokenizer: Any) -> Make:
    def adapter(seed: int, kind: str = "qwen3", **changes: Any) -> ValueAdapter:
        theirs = changes.pop("tokenizer", tokenizer)
        networks = [tiny_model(kind, seed=seed + more, width=len(theirs)) for more in range(changes.pop("networks", 1))]
        return ValueAdapter.from_networks(networks, theirs, base_model_name_or_path="alice/base", **changes)

    return adapter


@pytest.fixture
def model(tokenizer: Any, make: Make) -> ValueAdapterForCausalLM:
    """Two adapters of one vocabulary and one of another."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    model.add_adapter(make(5, networks=2, coefficients=[1.0, -0.5]), "a", scale=0.5)
    model.add_adapter(make(8, "gpt2", base_prefix="Q:A "), "b", scale=2.0)
    model.add_adapter(make(9, tokenizer=tokenizer_of("sentencepiece")), "c")
    return model


def added(model: ValueAdapterForCausalLM, *names: str) -> torch.Tensor:
    model.set_adapter(names)
    values = model(IDS, output_value_logits=True).value_logits
    assert values is not None
    return values


# -- status ------------------------------------------------------------------------------------------------------------
def test_status_says_what_is_attached(model: ValueAdapterForCausalLM) -> None:
    """One entry each, in order."""
    a, b, c = model.get_adapter_status()
    assert [one.name for one in (a, b, c)] == ["a", "b", "c"]
    assert [one.active for one in (a, b, c)] == [True, False, False]
    assert [one.scale for one in (a, b, c)] == [0.5, 2.0, 1.0]
    assert [(one.vocabulary, one.mode) for one in (a, b, c)] == [("same", "same")] * 2 + [("another", "static")]
    assert (a.networks, a.trainable_parameters, a.dtypes, a.devices) == (2, 0, ("float32",), ("cpu",))
    assert a.parameters == sum(p.numel() for network in model.adapters["a"].networks for p in network.parameters())
    assert (a.prefix_tokens, b.prefix_tokens) == (0, 3)
    model.set_alignment_mode("c", "chain")
    with model.disable_adapter():
        assert [(one.active, one.mode) for one in model.get_adapter_status()][2] == (False, "chain")


def test_trainable_parameters_are_counted_once(
    model: ValueAdapterForCausalLM, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of two adapters counts for one; printed as PEFT prints it."""
    before = model.get_nb_trainable_parameters()
    model.add_weighted_adapter(["a"], [1.0], "again")
    assert model.get_nb_trainable_parameters() == before
    adapter = make(21)
    model.add_adapter(adapter, "trained", is_trainable=True)
    more = sum(p.numel() for p in adapter.networks[0].parameters())
    assert model.get_nb_trainable_parameters() == (more, before[1] + more)
    model.print_trainable_parameters()
    share = 100 * more / (before[1] + more)
    assert capsys.readouterr().out == (
        f"trainable params: {more:,} || all params: {before[1] + more:,} || trainable%: {share:.4f}\n"
    )


# -- weighted adapters -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("combination", "factor"), [("linear", 1.0), ("average", 1 / 2.5)])
def test_a_weighted_adapter_is_the_weighted_sum(
    model: ValueAdapterForCausalLM, combination: str, factor: float, tmp_path: Path, tokenizer: Any
) -> None:
    """Weights take the place of scales; saved and loaded it says the same."""
    model.set_base_prefix(None)
    expected = factor * (3.0 * added(model, "a") / 0.5 - 0.5 * added(model, "b") / 2.0)
    model.add_weighted_adapter(["a", "b"], [3.0, -0.5], "both", combination)
    values = added(model, "both")
    torch.testing.assert_close(values, expected, rtol=0, atol=2e-5)
    assert model.adapters["both"].networks == (*model.adapters["a"].networks, *model.adapters["b"].networks)
    model.adapters["both"].save_pretrained(tmp_path / "both")
    again = ValueAdapterForCausalLM.from_pretrained(model.base, tmp_path / "both", tokenizer=tokenizer)
    again.set_base_prefix(None)
    torch.testing.assert_close(added(again, "default"), expected, rtol=0, atol=2e-5)
    model.delete_adapter(["a", "b"])
    torch.testing.assert_close(added(model, "both"), expected, rtol=0, atol=2e-5)


def test_a_weighted_adapter_brings_the_one_prefix(model: ValueAdapterForCausalLM, make: Make) -> None:
    """Of those that it is made of; two different ones need a choice."""
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both")
    assert model.adapters["both"].config.base_prefix == "Q:A "
    model.add_adapter(make(8, base_prefix="Z "), "d")
    with pytest.raises(UnsupportedModeError, match="different base prefixes"):
        model.add_weighted_adapter(["b", "d"], [1.0, 1.0], "three")
    model.add_weighted_adapter(["b", "d"], [1.0, 1.0], "three", base_prefix=None)
    assert model.adapters["three"].config.base_prefix is None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((["a", "c"], [1, 1], "new"), ConfigError, "different vocabulary cannot become one"),
        ((["a", "b"], [1, 1], "new", "svd"), UnsupportedModeError, "combine the matrices of LoRA"),
        ((["a", "b"], [1], "new"), ConfigError, "one weight for each adapter; got 1 for 2"),
        (([], [], "new"), ConfigError, "got 0 for 0"),
        ((["a", "b"], [1, -1], "new", "average"), ConfigError, "add up to 0"),
        ((["a", "b"], [1, 0], "new"), ConfigError, "'coefficient' must be finite and not 0"),
        ((["a", "x"], [1, 1], "new"), AdapterNameError, "no adapter 'x'"),
        ((["a", "b"], [1, 1], "a"), AdapterNameError, "attached already"),
    ],
)
def test_combinations_that_cannot_be(
    model: ValueAdapterForCausalLM, given: Any, error: type[Exception], message: str
) -> None:
    """With what to do; nothing is attached then."""
    with pytest.raises(error, match=message):
        model.add_weighted_adapter(*given)
    assert list(model.adapters) == ["a", "b", "c"]


# -- below zero --------------------------------------------------------------------------------------------------------
def test_weights_below_zero_are_warned_of(model: ValueAdapterForCausalLM, caplog: pytest.LogCaptureFixture) -> None:
    """They work, and the log says what they can do."""
    expected = -added(model, "a")
    with caplog.at_level(logging.WARNING, logger="valueadapter"):
        model.set_scale("a", -0.5)
        model.add_weighted_adapter(["a"], [-1.0], "less")
    assert sum("can undo safety training" in record.message for record in caplog.records) == 2
    torch.testing.assert_close(added(model, "a"), expected, rtol=0, atol=1e-6)


def test_strict_models_refuse_them(tokenizer: Any, make: Make, tmp_path: Path) -> None:
    """However they come, and the scale stays what it was."""
    make(5).save_pretrained(tmp_path / "adapter")
    base = tiny_model("llama", seed=1)
    model = ValueAdapterForCausalLM.from_pretrained(base, tmp_path / "adapter", tokenizer=tokenizer, strict=True)
    for attempt in (
        lambda: model.set_scale("default", -0.1),
        lambda: model.add_weighted_adapter(["default"], [-1.0], "less"),
        lambda: model.add_adapter(make(6), "other", scale=-1.0),
        lambda: model.only("default", scale=-1.0).__enter__(),
    ):
        with pytest.raises(ConfigError, match="this model is strict"):
            attempt()
    assert (model.scales, list(model.adapters)) == ({"default": 1.0}, ["default"])


# -- swapped weights ---------------------------------------------------------------------------------------------------
def test_swapped_weights_compile_nothing_again(tokenizer: Any, make: Make, tmp_path: Path) -> None:
    """The same compiled code gives the new adapter's logits."""
    make(6, scale=0.5).save_pretrained(tmp_path / "new")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    model.add_adapter(make(5), "a", scale=0.5)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    with torch.no_grad():
        before = compiled(IDS, use_cache=False).logits
        frames = counter.frame_count
        model.load_adapter(tmp_path / "new", "a", hotswap=True)
        after = compiled(IDS, use_cache=False).logits
    assert counter.frame_count == frames > 0
    fresh = ValueAdapterForCausalLM.from_pretrained(model.base, tmp_path / "new", tokenizer=tokenizer)
    torch.testing.assert_close(after, fresh(IDS).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(before, after)


def test_a_swap_takes_scale_and_prefix_with_it(model: ValueAdapterForCausalLM, make: Make) -> None:
    """The new adapter's own, unless others are given; the tensors stay the same objects."""
    weight = model.adapters["b"].networks[0].get_input_embeddings().weight
    new = make(30, "gpt2", base_prefix="Z ", scale=0.25)
    model.hotswap_adapter(new, "b")
    assert (model.scales["b"], model.adapters["b"].config.base_prefix) == (0.25, "Z ")
    assert model.adapters["b"].networks[0].get_input_embeddings().weight is weight
    values = added(model, "b")
    fresh = ValueAdapterForCausalLM(model.base, tokenizer=model.base_tokenizer)
    fresh.add_adapter(new, "b")
    assert torch.equal(values, added(fresh, "b"))
    model.hotswap_adapter(make(31, "gpt2", base_prefix="Z "), "b", scale=1.5, base_prefix=None)
    model.set_adapter("b")
    assert (model.scales["b"], model.base_prefix) == (1.5, None)


def test_after_a_swap_the_new_network_reads_the_prefix(tokenizer: Any, make: Make) -> None:
    """What the old weights computed of it is gone."""
    found = []
    for first, second in ((5, 8), (8, None)):
        model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
        model.add_adapter(make(first, base_prefix="Q:A ", reads_prefix=[True]), "a")
        values = added(model, "a")
        if second is not None:
            model.hotswap_adapter(make(second, base_prefix="Q:A ", reads_prefix=[True]), "a")
            values = added(model, "a")
        found.append(values)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("a", {}, "networks, not"),
        ("b", {"kind": "llama"}, "another architecture"),
        ("b", {"kind": "gpt2", "connection": "cascade"}, "its connection is cascade, not residual"),
        ("c", {"kind": "qwen3"}, "another vocabulary"),
    ],
)
def test_a_swap_that_does_not_fit_changes_nothing(
    model: ValueAdapterForCausalLM, make: Make, name: str, changes: dict[str, Any], message: str
) -> None:
    """The error says why, and to delete and load instead."""
    before = added(model, name)
    with pytest.raises(ConfigError, match=message):
        model.hotswap_adapter(make(30, **changes), name)
    assert torch.equal(added(model, name), before)


def test_a_swap_that_would_do_harm_changes_nothing(model: ValueAdapterForCausalLM, make: Make) -> None:
    """Value logits that are not finite, or a scale that cannot be: before anything is copied."""
    before = added(model, "b")
    broken = make(30, "gpt2")
    broken.networks[0].get_output_embeddings().weight.data[0] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        model.hotswap_adapter(broken, "b")
    model.strict = True
    with pytest.raises(ConfigError, match="this model is strict"):
        model.hotswap_adapter(make(30, "gpt2"), "b", scale=-1.0)
    assert torch.equal(added(model, "b"), before)


def test_a_weighted_adapter_leaves_training_alone(model: ValueAdapterForCausalLM, make: Make) -> None:
    """Its networks are another adapter's, which may be learning."""
    adapter = make(21)
    model.add_adapter(adapter, "trained", is_trainable=True)
    model.add_weighted_adapter(["trained"], [0.5], "half-of-it")
    assert all(p.requires_grad for p in adapter.networks[0].parameters())


def test_a_shared_network_is_not_swapped(model: ValueAdapterForCausalLM, make: Make) -> None:
    """The other adapter's logits would change with it."""
    model.add_weighted_adapter(["b"], [1.0], "twin")
    with pytest.raises(ConfigError, match="another adapter shares a network with 'b'"):
        model.hotswap_adapter(make(30, "gpt2"), "b")


def test_what_shares_its_body_alone_is_swapped() -> None:
    """The best checkpoint of an adapter that is trained, beside a frozen one of its body, which keeps what it says."""
    tokenizer, body, ids = byte_tokenizer(), tiny_model("llama", seed=2), torch.tensor([[5, 6, 7]])
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    for name, seed in (("a", 0), ("b", 3)):
        adapter = as_trained(body, tokenizer, seed=seed, prefix=None)
        model.add_adapter(adapter, name, scale=1.0, is_trainable=name == "a")
    model.set_adapter("b")
    before = model(ids).logits
    new = as_trained(body, tokenizer, seed=8, prefix=None)
    model.hotswap_adapter(new.copy(), "a", scale=1.0)
    assert torch.equal(model(ids).logits, before)
    model.set_adapter("a")
    found = model(ids).logits
    alone = ValueAdapterForCausalLM(model.base, tokenizer=tokenizer)
    alone.add_adapter(new, "a", scale=1.0)
    torch.testing.assert_close(found, alone(ids).logits)


def test_training_nothing_is_an_error(model: ValueAdapterForCausalLM) -> None:
    """What the adapter would train is another's, which is frozen; a copy is its own."""
    body = tiny_model("llama", seed=2)
    pair = as_trained(body, byte_tokenizer(), seed=0, prefix=None)
    lora = ValueAdapter.from_networks(pair.networks[:1], byte_tokenizer(), base_model_name_or_path="a/b")
    model.add_adapter(lora, "frozen")
    with pytest.raises(ConfigError, match="would train nothing of 'new'"):
        model.add_adapter(pair, "new", is_trainable=True)
    assert "new" not in model.adapters
    model.add_adapter(pair.copy(), "new", is_trainable=True)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained
    assert all("lora_" in name and ".new." in name for name in trained)


# -- several at once ---------------------------------------------------------------------------------------------------
def test_several_are_deleted_or_none(model: ValueAdapterForCausalLM) -> None:
    """As in PEFT; an unknown name leaves all."""
    with pytest.raises(AdapterNameError, match="no adapter 'x'"):
        model.delete_adapter(["a", "x"])
    assert list(model.adapters) == ["a", "b", "c"]
    model.delete_adapter(["a", "c", "a"])
    assert list(model.adapters) == ["b"]


# -- adapters that do nothing ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("connection", ["residual", "cascade", "cascade_with_text"])
def test_an_adapter_that_changes_nothing_is_reported(
    tokenizer: Any, make: Make, caplog: pytest.LogCaptureFixture, connection: str
) -> None:
    """All value logits 0, also where two networks cancel; one that is to be trained may begin so."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    zero = make(5, connection=connection)
    zero.networks[0].get_output_embeddings().weight.data.zero_()
    twins = ValueAdapter.from_networks(
        [tiny_model("qwen3", seed=7), tiny_model("qwen3", seed=7)],
        tokenizer,
        base_model_name_or_path="alice/base",
        coefficients=[1.0, -1.0],
        connection=connection,
    )
    with caplog.at_level(logging.WARNING, logger="valueadapter"):
        model.add_adapter(make(6, connection=connection), "works")
        model.add_adapter(zero.copy(), "young", is_trainable=True)
        assert not caplog.records
        model.add_adapter(zero, "zero")
        model.add_adapter(twins, "twins")
    told = [record.message for record in caplog.records if "it changes nothing" in record.message]
    assert [name for name in ("works", "young", "zero", "twins") if any(f"'{name}'" in line for line in told)] == [
        "zero",
        "twins",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(model: ValueAdapterForCausalLM, make: Make, value: float) -> None:
    """And not attached; the error says what may be wrong."""
    broken = make(30)
    broken.networks[0].base_model.norm.weight.data[0] = value
    with pytest.raises(ConfigError, match="value logits of 'broken' are not finite"):
        model.add_adapter(broken, "broken")
    assert "broken" not in model.adapters


# -- the rest of PEFT's names ------------------------------------------------------------------------------------------
def test_all_adapters_can_be_switched_off_and_on(model: ValueAdapterForCausalLM) -> None:
    """For every thread, until they are switched on; the choice stays."""
    before = model(IDS).logits
    model.disable_adapters()
    assert torch.equal(model(IDS).logits, model.base(IDS).logits)
    assert model.active_adapters == []
    model.enable_adapters()
    assert torch.equal(model(IDS).logits, before)


def test_an_adapters_weights_by_name(model: ValueAdapterForCausalLM) -> None:
    """The tensors of its networks, the first of them under 0."""
    state = model.get_adapter_state_dict("a")
    own = model.adapters["a"].networks[1].state_dict()
    assert {name.removeprefix("1.") for name in state if name.startswith("1.")} == set(own)
    with pytest.raises(AdapterNameError, match="name the adapter"):
        model.get_adapter_state_dict()


def test_preparing_a_swap_is_not_needed(model: ValueAdapterForCausalLM) -> None:
    """The error names what does it."""
    with pytest.raises(UnsupportedModeError, match="hotswap=True"):
        model.enable_peft_hotswap()
