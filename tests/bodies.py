"""Adapters of one body: LoRAs on a tiny model, each less that model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.lora import build_lora_network


def lora_on(
    body: Any, seed: int, rank: int = 3, *, name: str = "alice/body", revision: str | None = None, size: float = 0.3
) -> Any:
    """A LoRA network whose LoRA does something."""
    torch.manual_seed(seed)
    network = build_lora_network(body, rank=rank, name=name, revision=revision)
    generator = torch.Generator().manual_seed(seed)
    for own, parameter in network.named_parameters():
        if "lora_B" in own:
            parameter.data = torch.randn(parameter.shape, generator=generator) * size
    return network


def as_trained(
    body: Any,
    tokenizer: Any,
    *,
    seed: int,
    prefix: str | None,
    name: str = "alice/body",
    revision: str | None = None,
    coefficients: Sequence[float] = (1.0, -1.0),
    size: float = 0.3,
) -> ValueAdapter:
    """An adapter as `train` makes them: a LoRA of a body, less that body, and what both read before the prompt."""
    lora = lora_on(body, seed, name=name, revision=revision, size=size)
    reading: dict[str, Any] = {} if prefix is None else {"base_prefix": prefix, "reads_prefix": [True, True]}
    named: dict[str, Any] = {"base_model_name_or_path": name, "base_model_revision": revision, **reading}
    return ValueAdapter.from_networks([lora, copy.deepcopy(body)], tokenizer, coefficients=coefficients, **named)


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
