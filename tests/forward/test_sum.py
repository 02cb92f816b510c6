"""The sum in one graph: what `torch.compile` makes of base + adapters must not fall apart where they are added."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, Weights
from valueadapter.forward.sum import summed
from valueadapter.forward.value_logits import Inputs

WEIGHTS = Weights(0.7, (0.6,), 1.5)
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


def wrapped(names: tuple[str, ...], weights: Weights | None = None) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    for index, name in enumerate(names):
        networks = [tiny_model("llama", seed=2 + index)]
        adapter = ValueAdapter.from_networks(networks, byte_tokenizer(), base_model_name_or_path="a/b")
        model.add_adapter(adapter, name, scale=0.5 + index)
        if weights is not None:
            model.set_weights(name, weights, scale=None)
    model.set_adapter(names)
    return model.eval()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_the_sum_is_one_graph(names: tuple[str, ...], apart: bool, weights: Weights | None) -> None:
    """However many adapters act, whatever counts for how much, and whether what each adds is asked for."""
    model = wrapped(names, weights)
    terms = model.attached.terms()

    def total(base_logits: torch.Tensor) -> torch.Tensor:
        inputs = Inputs(IDS, None, None, 0, use_cache=False, cache=None, base_logits=base_logits.clone())
        logits, added = summed(terms, inputs, [None] * len(terms), apart=apart)
        return logits + sum(added.values())

    with torch.no_grad():
        base, both = model.base(IDS).logits, model(IDS).logits
        found = torch.compile(total, fullgraph=True, backend="eager")(base)
    torch.testing.assert_close(found, 2 * both - base if apart else both, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("base_weight", [0.7, 0.0, -0.5, 1.0])
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_every_summand_counts_for_its_weight(names: tuple[str, ...], base_weight: float) -> None:
    """Base, network and end, at each adapter's scale; 0 is the base bit for bit; with gradients the same."""
    model = wrapped(names, Weights(base_weight, (0.6,), 1.5))
    with torch.no_grad():
        base = model.base(IDS).logits
        said = [model.adapters[name].networks[0](IDS).logits for name in names]
        got = model(IDS, output_value_logits="each")
        networks = model(IDS, output_value_logits="networks")
    end = torch.zeros_like(base)
    end[..., model.base_tokenizer.eos_token_id] = 1.5
    brackets = {
        name: model.scales[name] * ((base_weight - 1) * base + 0.6 * one + end)
        for name, one in zip(names, said, strict=True)
    }
    torch.testing.assert_close(got.logits, base + sum(brackets.values()), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got.value_logits, sum(brackets.values()), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got.each, brackets, rtol=1e-5, atol=1e-4)
    expected = {"base": base, **{f"{name}.0": one for name, one in zip(names, said, strict=True)}}
    torch.testing.assert_close(networks.each, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(networks.value_logits, got.value_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(IDS).logits.detach(), got.logits, rtol=1e-5, atol=1e-4)
    for name in names:
        model.set_scale(name, 0.0)
    assert torch.equal(model(IDS).logits, base)


@pytest.mark.parametrize("base_weight", [0.7, 0.0, -0.5])
def test_what_the_base_rules_out_stays_ruled_out(base_weight: float) -> None:
    """-inf times any weight is no NaN, and no token comes back."""
    model = wrapped(("one",), Weights(base_weight, (0.6,), 1.5))
    model.set_scale("one", 1.0)
    model.base.lm_head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([5]), -math.inf))
    with torch.no_grad():
        out = model(IDS, output_value_logits=True)
    assert (out.logits[..., 5] == -math.inf).all()
    assert torch.isfinite(out.logits[..., 6:]).all()
    assert torch.isfinite(out.value_logits).all()


def test_one_head_says_the_same() -> None:
    """Trainers that multiply hidden states with one head of base and networks get the weighted sum, too."""
    model = wrapped(("one", "two"), WEIGHTS)
    head = model.get_output_embeddings()
    hidden = model.base_model(IDS).last_hidden_state
    with torch.no_grad():
        expected = model(IDS).logits
    torch.testing.assert_close(hidden @ head.weight.T + head.bias, expected, rtol=1e-5, atol=1e-4)


def test_several_ends_of_another_vocabulary() -> None:
    """The sum is the same whether each network's logits are asked for or not, where the map of an end is not linear."""
    theirs, mine = tokenizer_of("coarse bytes"), copy.deepcopy(tokenizer_of("bytes"))
    mine.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    networks = [tiny_model("llama", seed=seed, width=len(mine)) for seed in (2, 3)]
    adapter = ValueAdapter.from_networks(networks, mine, base_model_name_or_path="a/b", coefficients=[0.6, -0.3])
    model.add_adapter(adapter, "default")
    assert len(adapter.side.stops) > 1
    ids = torch.tensor([theirs("The readers read")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids, output_value_logits="networks").logits, model(ids).logits)


def test_weighted_adapters_count_for_what_they_count_for_here() -> None:
    """A mix of one is that one, whatever weights were set for it."""
    model = wrapped(("one",), WEIGHTS)
    model.set_scale("one", 1.0)
    with torch.no_grad():
        expected = model(IDS).logits
        model.add_weighted_adapter(["one"], [1.0], "mix")
        model.set_adapter("mix")
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-4)
