"""Heads: found where logits are hidden state times head, refused everywhere else, whatever the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import KINDS, tiny_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from valueadapter import build_network
from valueadapter.adapter.heads import Head, LazyLogits, head_of, joined, last_hidden_state
from valueadapter.compat import cache_in

IDS = torch.tensor([[5, 8, 13, 21, 34], [1, 2, 3, 5, 7]])
_SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "soft-capped": lambda: Gemma2ForCausalLM(Gemma2Config(**_SMALL, head_dim=8, final_logit_softcapping=30.0)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**_SMALL, logits_scaling=8.0)),
    "multiplied": lambda: CohereForCausalLM(CohereConfig(**_SMALL, logit_scale=0.0625)),
}


def assert_head_gives_logits(model: PreTrainedModel) -> None:
    head = head_of(model)
    assert head is not None
    with torch.no_grad():
        hidden = last_hidden_state(model, input_ids=IDS)
        logits = LazyLogits(hidden.flatten(0, 1), head).rows(slice(None))
        torch.testing.assert_close(logits.view(*IDS.shape, -1), model(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_head_times_last_hidden_state_is_the_logits(kind: str) -> None:
    """Every tiny architecture, with tied weights or not."""
    assert_head_gives_logits(tiny_model(kind, seed=1))


def test_a_bias_belongs_to_the_head() -> None:
    """It is added to the logits too."""
    model = tiny_model("llama", seed=1)
    model.lm_head = nn.Linear(16, 97)
    assert_head_gives_logits(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_lora_network_is_found_unless_its_head_is_lora_too(kind: str) -> None:
    """LoRA in the body changes the hidden states, which are read with it; on the head it changes the product."""
    inner = (
        {"target_modules": ["q_proj"]} if kind == "llama" else {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    )
    model = get_peft_model(tiny_model(kind, seed=1), LoraConfig(**inner, init_lora_weights=False))
    assert_head_gives_logits(model.eval())
    on_head = get_peft_model(tiny_model("qwen3", seed=1), LoraConfig(target_modules=["lm_head"]))
    assert head_of(on_head) is None


@pytest.mark.parametrize("weights", ["random", "zero head"])
@pytest.mark.parametrize("name", OTHERS)
def test_logits_that_come_about_in_another_way_have_no_head(name: str, weights: str) -> None:
    """Soft caps and scales are seen even where the head is zero and all logits are equal either way."""
    model = OTHERS[name]()
    assert head_of(build_network(model) if weights == "zero head" else model) is None


def test_without_its_cap_the_same_architecture_has_a_head() -> None:
    """The probe decides, not the architecture."""
    assert_head_gives_logits(Gemma2ForCausalLM(Gemma2Config(**_SMALL, head_dim=8, final_logit_softcapping=None)).eval())


def test_a_step_between_body_and_head_is_seen() -> None:
    """What the head reads must be what the body returns."""
    model = tiny_model("llama", seed=1)
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    assert head_of(model) is None


def test_the_probe_leaves_no_trace() -> None:
    """Mixed modes, hooks and gradients are as before; dropout does not disturb it."""
    model = tiny_model("gpt2", seed=1)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert head_of(model) is not None
    assert [module.training for module in model.modules()] == modes
    assert not model.lm_head._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_last_hidden_state_passes_masks_positions_and_embeddings_on() -> None:
    """Left padding, own positions and embeddings in place of ids give what the whole model would."""
    model = tiny_model("llama", seed=1)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        expected = model(IDS, **given, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(last_hidden_state(model, input_ids=IDS, **given), expected)
        embedded = model.get_input_embeddings()(IDS)
        torch.testing.assert_close(last_hidden_state(model, inputs_embeds=embedded, **given), expected)
        alone = last_hidden_state(model, input_ids=IDS[:1, 2:])
        torch.testing.assert_close(expected[:1, 2:], alone)


def test_last_hidden_state_continues_a_cache() -> None:
    """The rest after a cached beginning is the rest of the whole."""
    model = tiny_model("llama", seed=1)
    with torch.no_grad():
        cache = cache_in(model(IDS[:, :3], use_cache=True))
        rest = last_hidden_state(model, input_ids=IDS[:, 3:], cache=cache)
        torch.testing.assert_close(rest, last_hidden_state(model, input_ids=IDS)[:, 3:])


def test_joined_heads_are_the_weighted_sum() -> None:
    """Of weighted hidden states side by side: biases are weighted alike, and a head without one has none."""
    generator = torch.Generator().manual_seed(0)
    sizes, coefficients = (3, 5, 4), (1.0, -0.5, 2.0)
    hidden, weights = ([torch.randn(n, size, generator=generator) for size in sizes] for n in (2, 7))
    biases = [torch.randn(7, generator=generator), None, torch.randn(7, generator=generator)]
    heads = [Head(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    for count in (1, 3):
        each = list(zip(heads, hidden, coefficients, strict=True))[-count:]
        expected = sum(c * nn.functional.linear(h, head.weight, head.bias) for head, h, c in each)
        one = joined([head for head, _, _ in each], [c for _, _, c in each])
        found = nn.functional.linear(torch.cat([c * h for _, h, c in each], dim=-1), one.weight, one.bias)
        torch.testing.assert_close(found, expected)
