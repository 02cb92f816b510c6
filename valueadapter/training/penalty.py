"""The penalty that keeps value logits small; knows nothing of where logits come from.

The paper's released code adds the mean absolute value logit. A raw norm changes when a constant is added to all logits
of a position, although the distribution does not: so by default the mean over the vocabulary is subtracted first.
"""

from __future__ import annotations

import math

import torch

from valueadapter.artifact.config import PenaltyKind


def norm_penalty(
    value_logits: torch.Tensor, mask: torch.Tensor, kind: PenaltyKind, *, centred: bool = True
) -> torch.Tensor:
    """The sum of a penalty over the positions of `mask`.

    Args:
        value_logits: (batch, seq, vocab).
        mask: (batch, seq), True at the positions that count.
        kind: `l1` mean over the vocabulary of |v|, `l2` of v², `entropy` how far the entropy of softmax(v) lies below
            its maximum log(vocab), in nats; `none` is 0.
        centred: subtract the mean over the vocabulary first, so that adding a constant to all logits of a position
            costs nothing. The entropy is invariant to that anyway.

    Returns:
        A scalar, 0 or more. Divide by the number of positions for the mean.
    """
    values = value_logits[mask]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if kind == "none" or not len(values):
        return value_logits.new_zeros(())
    if kind == "entropy":
        log_p = torch.log_softmax(values, dim=-1)
        return (math.log(values.shape[-1]) + (log_p.exp() * log_p).sum(-1)).sum()
    if centred:
        values = values - values.mean(dim=-1, keepdim=True)
    return (values.abs() if kind == "l1" else values.square()).mean(dim=-1).sum()
