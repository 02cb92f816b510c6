"""Nats of every scored token at every scale, and what is read off them; knows tensors and no models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from studies.states import FIRST, LAST, MIDDLE, Tokens

SCALES = tuple(round(index * 0.05, 2) for index in range(31))
"""0 to 1.5."""
_AT_ONCE = 1 << 19
"""Elements that a core's cache holds."""


def nats_at_scales(
    base_logits: torch.Tensor, value_logits: torch.Tensor, labels: torch.Tensor, scales: Sequence[float] = SCALES
) -> torch.Tensor:
    """What each label costs under base logits + scale · value logits.

    With p the distribution at the first scale s0 and v the value logits, a token t costs at scale s

        log Σ exp(base + s0 · v) + log Σ p · exp((s - s0) · v) - base[t] - s · v[t]

    so that on an even grid one exponential serves all scales: p · exp((s - s0) · v) is multiplied by exp(step · v).

    Args:
        base_logits: (tokens, vocab).
        value_logits: (tokens, vocab).
        labels: (tokens).
        scales: rising.

    Returns:
        (tokens, scales) in nats, float32.
    """
    size = max(1, _AT_ONCE // base_logits.shape[-1])
    parts = [torch.split(tensor, size) for tensor in (base_logits, value_logits, labels)]
    return torch.cat([_nats(b.float(), v.float(), label, scales) for b, v, label in zip(*parts, strict=True)])


def _nats(base: torch.Tensor, value: torch.Tensor, labels: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    top = value.amax(dim=-1, keepdim=True)
    first = base + scales[0] * value
    log_z = first.logsumexp(-1)
    product, factor, step = (first - log_z[:, None]).exp(), first, 0.0
    totals = [product.sum(-1)]
    for before, scale in itertools.pairwise(scales):
        if not math.isclose(scale - before, step, rel_tol=1e-6):
            step = scale - before
            factor = torch.exp(step * (value - top))
        product *= factor
        totals.append(product.sum(-1))
    total, beyond = torch.stack(totals, dim=1), torch.tensor(scales, device=base.device) - scales[0]
    own = labels[:, None].long()
    found = log_z[:, None] - first.gather(1, own) + total.log() - beyond * (value.gather(1, own) - top)
    # where p has nothing at the likeliest values, the product leaves float32; rare, and then computed the long way
    for row, column in torch.nonzero(total < 1e-30).tolist():
        logits = base[row] + scales[column] * value[row]
        found[row, column] = logits.logsumexp(-1) - logits[labels[row]]
    return found


@dataclass(frozen=True)
class Curve:
    """The nats of one base with one adapter, and which examples are held out."""

    tokens: Tokens
    nats: torch.Tensor
    """(tokens, scales)."""
    sizes: Sequence[int]
    """UTF-8 bytes of each example's response."""
    held_out: int
    """The first so many examples are held out; the rest calibrate."""

    def bits_per_byte(self, *, held_out: bool) -> list[float]:
        """For each scale, bits per UTF-8 byte of the responses, control tokens left out."""
        here = self._of(held_out) & self.tokens.counted
        size = sum(self.sizes[: self.held_out] if held_out else self.sizes[self.held_out :])
        return [float(total) / math.log(2) / size for total in self.nats[here].double().sum(0)]

    def best(self) -> float:
        """The scale at which the calibration examples cost least."""
        curve = self.bits_per_byte(held_out=False)
        return SCALES[curve.index(min(curve))]

    def at(self, scale: float) -> dict[str, float]:
        """Held-out bits per byte at a scale, and bits per token of first, middle and last response tokens."""
        column = SCALES.index(scale)
        found = {"bits_per_byte": self.bits_per_byte(held_out=True)[column]}
        for name, kind in (("first", FIRST), ("middle", MIDDLE), ("last", LAST)):
            nats = self.nats[self._of(True) & (self.tokens.kinds == kind), column]
            if len(nats):
                found[name] = float(nats.double().mean()) / math.log(2)
        return {key: round(value, 5) for key, value in found.items()}

    def per_example(self, scale: float) -> list[float]:
        """Bits of each held-out response at a scale, control tokens left out."""
        nats = self.nats[:, SCALES.index(scale)] * self.tokens.counted
        total = torch.zeros(len(self.sizes)).index_add(0, self.tokens.examples, nats)
        return [round(float(value) / math.log(2), 3) for value in total[: self.held_out]]

    def _of(self, held_out: bool) -> torch.Tensor:
        first = self.tokens.examples < self.held_out
        return first if held_out else ~first
