"""The mean of a loss over all response tokens of a data set, from the means over its batches; computes no loss.

A mean of batch means depends on how rows fall into batches: short answers that share one count as much as long ones.
"""

from __future__ import annotations

from typing import Any

import torch

from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.training.bases import SAMPLES


class TokenMean:
    """Sums of losses and of tokens, over the batches of every process.

    Args:
        accelerator: `accelerate.Accelerator`, which knows the processes and where the data end.
        together: whether each process has divided its sum by its share of the tokens of all processes' batches, as
            the Trainer has it with `average_tokens_across_devices`; else by the tokens of its own batch.
    """

    def __init__(self, accelerator: Any, *, together: bool) -> None:
        self._accelerator, self._together = accelerator, together and accelerator.num_processes > 1
        self._total, self._count = 0.0, 0.0

    def without_repeats(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The last batches of several processes are filled up with the first rows again; these lose labels and keys."""
        state, labels = self._accelerator.gradient_state, inputs.get("labels")
        several = self._accelerator.num_processes > 1
        if labels is None or not (several and state.end_of_dataloader and state.remainder > 0):
            return inputs
        real = state.remainder - self._accelerator.process_index * len(labels)
        kept = torch.arange(len(labels), device=labels.device) < real
        keys = {SAMPLES: inputs[SAMPLES][: max(0, real)]} if SAMPLES in inputs else {}
        return {**inputs, **keys, "labels": labels.masked_fill(~kept[:, None], IGNORED)}

    def add(self, loss: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Takes up a batch: the mean over its response tokens, and its labels of (batch, seq)."""
        if loss is None or labels is None:
            return
        count = float((labels[:, 1:] != IGNORED).sum())
        if self._together:
            shares = self._accelerator.gather(torch.tensor([count], device=self._accelerator.device))
            count = float(shares.sum()) / len(shares)
        if count:
            self._total += float(loss.double()) * count
            self._count += count

    def value(self) -> float | None:
        """The mean over all tokens of all processes; None where there were none."""
        sums = torch.tensor([[self._total, self._count]], dtype=torch.float64, device=self._accelerator.device)
        total, count = self._accelerator.gather(sums).sum(dim=0).tolist()
        return total / count if count else None
