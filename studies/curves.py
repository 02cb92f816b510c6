"""Nats of every scored token at every scale, and what is read off them; knows tensors and no models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from studies.states import FIRST, LAST, MIDDLE, Tokens
from valueadapter.evaluation import calibration

SCALES = tuple(round(index * 0.05, 2) for index in range(31))
"""0 to 1.5, as `calibrate_scale` tries them."""


def nats_at_scales(base_logits: torch.Tensor, value_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What each label costs at each of SCALES, (tokens, scales) in nats; as `calibrate_scale` computes it."""
    return calibration.nats_at_scales(base_logits, value_logits, labels, SCALES)


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
