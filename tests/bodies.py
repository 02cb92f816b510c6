"""Adapters of one body: LoRAs on a tiny model, each less that model."""

from __future__ import annotations

import copy
from typing import Any

import torch

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.lora import build_lora_network


def lora_on(body: Any, seed: int, rank: int = 3) -> Any:
    """A LoRA network whose LoRA does something."""
    torch.manual_seed(seed)
    network = build_lora_network(body, rank=rank, name="alice/body")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network


def pair_of(base: Any, tokenizer: Any, theirs: Any, body: Any, prefix: str | None) -> ValueAdapterForCausalLM:
    """Two adapters of one body: a LoRA less the body, and another LoRA less the body."""
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer).eval()
    for name, seed in (("a", 5), ("b", 6)):
        adapter = ValueAdapter.from_networks(
            [lora_on(body, seed), copy.deepcopy(body)],
            theirs,
            base_model_name_or_path="alice/base",
            coefficients=[1.0, -0.5],
            base_prefix=prefix,
            reads_prefix=[False, prefix is not None],
        )
        model.add_adapter(adapter, name, scale=0.7)
    model.set_adapter(["a", "b"])
    return model
