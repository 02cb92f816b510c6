"""A network that several adapters have is held once and run once per step, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM

Pair = Callable[..., ValueAdapterForCausalLM]
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "uncached": {"use_cache": False},
}


@pytest.fixture
def pair(tokenizer: Any) -> Pair:
    """Two adapters, each a network of its own less one that both have; `apart` keeps the second's from being shared."""

    def make(base: str = "llama", *, other: bool = False, apart: bool = False, prefix: str | None = None) -> Any:
        theirs = tokenizer_of("sentencepiece") if other else tokenizer
        model = ValueAdapterForCausalLM(tiny_model(base, seed=1), tokenizer=tokenizer).eval()
        for name, seed in (("a", 5), ("b", 6)):
            networks = [tiny_model("qwen3", seed=s, width=len(theirs)) for s in (seed, 9)]
            adapter = ValueAdapter.from_networks(
                networks,
                theirs,
                base_model_name_or_path="alice/base",
                coefficients=[1.0, -0.5],
                base_prefix=prefix,
                reads_prefix=[False, prefix is not None],
            )
            model.add_adapter(adapter, name, scale=0.7, is_trainable=apart and name == "b")
        model.requires_grad_(False)
        model.set_adapter(["a", "b"])
        return model

    return make


def networks(model: ValueAdapterForCausalLM, index: int) -> list[Any]:
    return [model.adapters[name].networks[index] for name in ("a", "b")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("base", ["llama", "gemma3"])
@pytest.mark.parametrize("changes", [{}, {"other": True}, {"prefix": "Q:A "}, {"prefix": "Q:A ", "other": True}])
def test_sharing_changes_no_token(pair: Pair, base: str, mode: str, changes: dict[str, Any]) -> None:
    """Cached or not, in either vocabulary, behind a prefix or not."""
    shared, apart = pair(base, **changes), pair(base, apart=True, **changes)
    assert networks(shared, 1)[0] is networks(shared, 1)[1]
    assert networks(apart, 1)[0] is not networks(apart, 1)[1]
    assert torch.equal(
        shared.generate(IDS, **GREEDY, **MODES[mode]),
        apart.generate(IDS, **GREEDY, **MODES[mode]),
    )
    torch.testing.assert_close(shared(IDS).logits, apart(IDS).logits, rtol=0, atol=2e-6)


def test_it_runs_once_for_each_step(pair: Pair) -> None:
    """For one adapter as for two, and not at all for none."""
    model, ran = pair(), []
    networks(model, 1)[0].register_forward_pre_hook(lambda *_: ran.append(1))
    for names, times in ((["a", "b"], 3), ("b", 3), ([], 0)):
        ran.clear()
        model.set_adapter(names)
        model.generate(IDS, **{**GREEDY, "max_new_tokens": 3})
        assert len(ran) == times


def test_other_weights_or_settings_are_not_shared(pair: Pair, tokenizer: Any) -> None:
    """Networks that differ stay apart, and so do those that train; deleting one adapter leaves the other whole."""
    model = pair()
    assert networks(model, 0)[0] is not networks(model, 0)[1]
    before = model.base(IDS).logits
    with model.only("b", scale=1.0):
        expected = model(IDS).logits
    model.delete_adapter("a")
    with model.only("b", scale=1.0):
        assert torch.equal(model(IDS).logits, expected)
    model.set_adapter([])
    assert torch.equal(model(IDS).logits, before)
    twin = tiny_model("qwen3", seed=9)
    twin.config.rms_norm_eps = 0.1
    model.add_adapter(ValueAdapter.from_networks([twin], tokenizer, base_model_name_or_path="alice/base"), "c")
    assert model.adapters["c"].networks[0] is twin


def test_one_network_twice_in_one_adapter(tokenizer: Any) -> None:
    """Runs once and counts twice."""
    network = tiny_model("gpt2", seed=3)
    adapter = ValueAdapter.from_networks(
        [network, network], tokenizer, base_model_name_or_path="alice/base", coefficients=[1.0, 0.5]
    )
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    model.add_adapter(adapter, "a", scale=1.0)
    expected = model.base(IDS).logits + 1.5 * network(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=2e-6)
    cached = model.generate(IDS, **GREEDY)
    assert torch.equal(cached, model.generate(IDS, **GREEDY, use_cache=False))


def test_a_network_that_is_read_in_two_ways_runs_twice(tokenizer: Any) -> None:
    """Behind the prefix in one adapter and without it in the other, in one sum."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    alone = {}
    for name, reads in (("a", True), ("b", False)):
        adapter = ValueAdapter.from_networks(
            [tiny_model("qwen3", seed=9)],
            tokenizer,
            base_model_name_or_path="alice/base",
            base_prefix="Q:A ",
            reads_prefix=[reads],
        )
        model.add_adapter(adapter, name, scale=1.0)
        model.set_adapter(name)
        alone[name] = model(IDS, output_value_logits=True).value_logits
    assert networks(model, 0)[0] is networks(model, 0)[1]
    model.set_adapter(["a", "b"])
    together = model(IDS, output_value_logits=True).value_logits
    torch.testing.assert_close(together, alone["a"] + alone["b"], rtol=0, atol=2e-5)
    assert not torch.allclose(alone["a"], alone["b"])
