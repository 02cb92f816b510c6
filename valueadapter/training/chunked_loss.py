"""The training loss of base + value logits whose `(tokens, vocabulary)` matrices never exist.

    Σ cross-entropy(z_b + s z_v, label) + coefficient · penalty(s z_v),  z_b = h_b W_bᵀ,  z_v = h_v W_vᵀ

Chunks of tokens are turned into loss and gradient at once, in forward; backward only multiplies. Means the same as
`penalty.norm_penalty` and the cross-entropy over `sum.add_value_logits`. Knows nothing of models or batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from valueadapter.adapter.causal_lm import fit_width
from valueadapter.adapter.heads import Head, LazyLogits
from valueadapter.artifact.config import Regularisation
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.training import liger_loss
from valueadapter.training.penalty import norm_penalty

CHUNK = 256
"""Tokens at a time: enough that the head's gradient is not walked through too often, few enough to stay small."""


class LossSums(NamedTuple):
    """Sums over the tokens; divide by their number for the mean."""

    total: torch.Tensor
    """cross_entropy + coefficient · penalty: the one that carries gradients."""
    cross_entropy: torch.Tensor
    """In nats."""
    penalty: torch.Tensor
    """In the penalty's unit, without its coefficient."""


def summed_loss(
    base: LazyLogits,
    value: LazyLogits,
    *,
    labels: torch.Tensor,
    scale: float,
    penalty: Regularisation,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> LossSums:
    """The loss of `base + scale · value`, without ever holding the logits of more than `chunk` tokens.

    As in the sum that the model computes, value logits beyond the base's width are dropped, and base logits beyond the
    value logits' width get the mean of the row, in the penalty too. Logits are computed in their head's dtype (under
    autocast in its), everything after that in at least float32.

    Args:
        base: never receives gradients; its hidden states may come from a cache in another dtype.
        value: as many tokens; gradients go to its hidden states, and to its head where that requires them.
        labels: (tokens,) ids in the base's vocabulary, none of them ignored.
        scale: weight of the value logits, in cross-entropy and penalty.
        penalty: of the scaled value logits.
        label_smoothing: ε from 0 to 1: (1 - ε) · -log p(label) + ε · mean over the vocabulary of -log p.
        chunk: tokens at a time; changes rounding, memory and speed only.

    Returns:
        Three scalars in at least float32, on the device of the value's hidden states.

    Raises:
        ConfigError: the numbers of tokens differ, or `chunk` is not positive.
    """
    if not len(base.hidden) == len(value.hidden) == len(labels):
        raise ConfigError(
            f"base, value and labels must be of as many tokens; got {len(base.hidden)}, {len(value.hidden)} and "
            f"{len(labels)}. Select the positions that predict a label in all three"
        )
    if chunk < 1:
        raise ConfigError(f"chunk must be at least 1 token; got {chunk}")
    if penalty.kind == "none" and liger_loss.usable(base, value):
        loss = liger_loss.cross_entropy(base, value, labels=labels, scale=scale, label_smoothing=label_smoothing)
        return LossSums(loss, loss.detach(), torch.zeros_like(loss))
    task = _Task(_detached(base), labels.to(value.hidden.device), scale, penalty, label_smoothing, chunk)
    if torch.is_grad_enabled():
        sums = _SummedLoss.apply(value.hidden, value.head.weight, value.head.bias, task)  # type: ignore[no-untyped-call]
        return LossSums(*sums)
    return LossSums(*_over_chunks(task, value, None))


@dataclass(frozen=True)
class _Task:
    """What is not differentiated."""

    base: LazyLogits
    labels: torch.Tensor
    scale: float
    penalty: Regularisation
    label_smoothing: float
    chunk: int


class _SummedLoss(torch.autograd.Function):
    """total, cross-entropy and penalty of a `_Task`; the gradient of the first is made in forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, task: _Task
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradients = _Gradients(hidden, weight, bias, wanted=ctx.needs_input_grad)
        sums = _over_chunks(task, LazyLogits(hidden, Head(weight, bias)), gradients)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; torch's once_differentiable lets a constant upstream pass
            raise UnsupportedModeError(
                "the fused loss has no second derivatives, since its gradients are made in forward; call backward "
                "without create_graph=True, or take the cross-entropy of the model's logits"
            )
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if made is None else (made * upstream).to(dtype) for made, dtype in found), None


class _Gradients:
    """Sums of gradients, of those tensors that want one."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, wanted: tuple[bool, ...]
    ) -> None:
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=_exact(weight)) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=_exact(bias)) if bias is not None and wanted[2] else None

    def add(self, of_logits: torch.Tensor, value: LazyLogits, rows: slice) -> None:
        """Takes up the gradient of some tokens' value logits, (chunk, at most value_vocab)."""
        width = of_logits.shape[1]
        narrow = of_logits.to(value.head.weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = narrow @ value.head.weight[:width]
        if self.weight is not None:
            hidden = value.hidden[rows].to(narrow.dtype)
            if narrow.dtype == self.weight.dtype:
                self.weight[:width].addmm_(narrow.T, hidden)
            else:
                self.weight[:width] += narrow.T @ hidden
        if self.bias is not None:
            self.bias[:width] += of_logits.sum(0)


def _over_chunks(
    task: _Task, value: LazyLogits, gradients: _Gradients | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Total, cross-entropy and penalty; adds to the gradients of the first, if they are given."""
    # casts happen once, here: within a chunk autocast would cast the whole head again for each product
    task, value = replace(task, base=_as_autocast(task.base)), _as_autocast(value)
    sums = torch.zeros(2, dtype=_exact(value.head.weight), device=value.hidden.device)
    with torch.autocast(value.hidden.device.type, enabled=False):
        for begin in range(0, len(task.labels), task.chunk):
            _add_chunk(slice(begin, begin + task.chunk), task, value, sums, gradients)
    cross_entropy, penalty = sums
    return cross_entropy + task.penalty.coefficient * penalty, cross_entropy, penalty


def _add_chunk(rows: slice, task: _Task, value: LazyLogits, sums: torch.Tensor, gradients: _Gradients | None) -> None:
    """A function of its own so that its buffers are gone before the next chunk's are made."""
    logits = task.base.rows(rows).to(sums)
    width = min(logits.shape[1], len(value.head.weight))
    values = fit_width(value.rows(rows, width).to(sums).mul_(task.scale), logits.shape[1])
    logits.add_(values)
    if gradients is None:
        sums += _losses(logits, values, task, rows)
        return
    losses, gradient = _losses_and_gradient(logits, values, task, rows)
    sums += losses
    del values
    # columns beyond the value logits' width held the mean of the row, so their gradient is shared out over the row
    filled = gradient[:, width:].sum(1, keepdim=True)
    gradients.add(gradient[:, :width].add_(filled, alpha=1 / width).mul_(task.scale), value, rows)


def _losses(logits: torch.Tensor, values: torch.Tensor, task: _Task, rows: slice) -> torch.Tensor:
    """Cross-entropy and penalty of some tokens, (2,)."""
    cross_entropy = torch.nn.functional.cross_entropy(
        logits, task.labels[rows], reduction="sum", label_smoothing=task.label_smoothing
    )
    everywhere = torch.ones(len(values), dtype=torch.bool, device=values.device)
    penalty = norm_penalty(values, everywhere, task.penalty.kind, centred=task.penalty.centred)
    return torch.stack((cross_entropy, penalty))


def _losses_and_gradient(
    logits: torch.Tensor, values: torch.Tensor, task: _Task, rows: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the gradient of total in the scaled value logits, (chunk, base_vocab). Overwrites its input."""
    cross_entropy, gradient = _cross_entropy(logits, task.labels[rows], task.label_smoothing)
    if task.penalty.kind == "none":
        return torch.stack((cross_entropy, torch.zeros_like(cross_entropy))), gradient
    penalty, of_penalty = _penalty(values, task.penalty)
    return torch.stack((cross_entropy, penalty)), gradient.add_(of_penalty, alpha=task.penalty.coefficient)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over the rows, and the gradient (softmax minus the smoothed label) in the place of the logits."""
    labels = labels[:, None]
    wished = logits.gather(1, labels)
    if smoothing:
        wished = (1 - smoothing) * wished + smoothing * logits.mean(1, keepdim=True)
    # log Σ exp(z) = top + log Σ exp(z - top): nothing overflows, and the exponentials become the softmax in place
    top = logits.amax(1, keepdim=True)
    gradient = logits.sub_(top).exp_()
    mass = gradient.sum(1, keepdim=True)
    loss = (mass.log() + top - wished).sum()
    gradient.div_(mass)
    if smoothing:  # the smoothed label is (1 - ε) at the label and ε / width everywhere
        gradient.sub_(smoothing / logits.shape[1])
    return loss, gradient.scatter_add_(1, labels, torch.full_like(wished, smoothing - 1))


def _penalty(values: torch.Tensor, penalty: Regularisation) -> tuple[torch.Tensor, torch.Tensor]:
    """`penalty.norm_penalty` summed over the rows, and its gradient. Overwrites the values."""
    size = values.shape[1]
    if penalty.kind == "entropy":
        # log width - H(p), the divergence from uniform; its gradient is p (log p + H)
        log_p = torch.log_softmax(values, dim=1)
        p = log_p.exp()
        negative_entropy = (p * log_p).sum(1, keepdim=True)
        return (math.log(size) + negative_entropy).sum(), p.mul_(log_p.sub_(negative_entropy))
    if penalty.centred:
        values.sub_(values.mean(1, keepdim=True))
    if penalty.kind == "l2":
        return values.square().sum() / size, values.mul_(2 / size)
    # of |v - mean v|: sign(v), centred as the values were; for squares this is no change, since centred values sum to 0
    gradient = values.sign()
    if penalty.centred:
        gradient.sub_(gradient.mean(1, keepdim=True))
    return values.abs_().sum() / size, gradient.div_(size)


def _detached(logits: LazyLogits) -> LazyLogits:
    head = logits.head
    bias = None if head.bias is None else head.bias.detach()
    return LazyLogits(logits.hidden.detach(), Head(head.weight.detach(), bias))


def _as_autocast(logits: LazyLogits) -> LazyLogits:
    """Hidden states and head in autocast's dtype where it is on: in here it must be off, for sums in float32."""
    device = logits.head.weight.device.type
    if not torch.is_autocast_enabled(device) or logits.head.weight.dtype == torch.float64:
        return logits
    dtype = torch.get_autocast_dtype(device)
    bias = None if logits.head.bias is None else logits.head.bias.to(dtype)
    return LazyLogits(logits.hidden.to(dtype), Head(logits.head.weight.to(dtype), bias))


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.promote_types(tensor.dtype, torch.float32)
