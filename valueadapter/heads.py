"""STUB, replaced at merge: where a causal language model's logits come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """An output head: logits = hidden @ weight.T + bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class LazyLogits:
    """Logits that nobody has computed yet."""

    hidden: torch.Tensor
    head: Head


def head_of(model: PreTrainedModel) -> Head | None:
    """The head, or None where the logits come about in another way."""
    linear = model.get_output_embeddings()
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias) if type(linear) is nn.Linear and capped is None else None


def last_hidden_state(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """What the output head would read, (batch, seq, hidden)."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return cast(torch.Tensor, plain.base_model(**inputs, return_dict=True).last_hidden_state)
