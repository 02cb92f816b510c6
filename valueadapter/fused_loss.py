"""STUB, replaced at merge: the training loss of base + value logits, computed naively."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from valueadapter.config import Regularisation
from valueadapter.heads import LazyLogits
from valueadapter.losses import norm_penalty


class LossSums(NamedTuple):
    """Sums over the tokens."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    penalty: torch.Tensor


def summed_loss(
    base: LazyLogits,
    value: LazyLogits,
    *,
    labels: torch.Tensor,
    scale: float,
    penalty: Regularisation,
    label_smoothing: float = 0.0,
) -> LossSums:
    """The loss of `base + scale · value` over tokens."""
    weight = base.head.weight
    base_logits = nn.functional.linear(base.hidden.to(weight.dtype), weight, base.head.bias).detach()
    value_logits = scale * nn.functional.linear(value.hidden, value.head.weight, value.head.bias)
    missing = base_logits.shape[-1] - value_logits.shape[-1]
    value_logits = nn.functional.pad(value_logits, (0, missing)) if missing > 0 else value_logits
    value_logits = value_logits[:, : base_logits.shape[-1]]
    log_p = torch.log_softmax((base_logits + value_logits).float(), -1)
    plain = -log_p.gather(-1, labels[:, None]).sum()
    loss = (1 - label_smoothing) * plain + label_smoothing * -log_p.mean(-1).sum()
    mask = torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
    norm = norm_penalty(value_logits[None], mask, penalty.kind, centred=penalty.centred)
    return LossSums(loss + penalty.coefficient * norm, loss.detach(), norm.detach())
