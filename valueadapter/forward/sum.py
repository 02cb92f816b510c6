"""The sum: base logits and what each acting adapter adds to them.

    logits = base_logits + Σ scale · coefficient · value_logits

Knows neither models' ways to be called nor what is attached; `value_logits` says what an adapter's networks say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from valueadapter.adapter.causal_lm import fit_width
from valueadapter.forward.row_plan import Prompt
from valueadapter.forward.value_logits import Inputs, Term, value_logits


def add_value_logits(base_logits: torch.Tensor, value_logits: torch.Tensor, weight: float) -> torch.Tensor:
    """The sum, written once: base_logits + weight · value_logits.

    The vocabulary is the same, its padding may not be: value logits beyond the base's width belong to no token and are
    dropped; base logits beyond the value logits' width get the mean of the row, as every token of which the networks
    say nothing.

    Args:
        base_logits: (batch, seq, base_vocab). Without gradients it is overwritten by the sum.
        value_logits: (batch, seq, value_vocab).
        weight: scale · coefficient.

    Returns:
        (batch, seq, base_vocab), in the dtype and on the device of `base_logits`.
    """
    value = fit_width(value_logits, base_logits.shape[-1]).to(device=base_logits.device, dtype=base_logits.dtype)
    if torch.is_grad_enabled():
        return base_logits.add(value, alpha=weight)
    return base_logits.add_(value, alpha=weight)


def summed(
    terms: Sequence[Term], inputs: Inputs, prompts: Sequence[Sequence[Prompt] | None], *, apart: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The base's logits and what every acting adapter adds.

    Args:
        terms: the acting adapters.
        inputs: of the call, with the base's logits of (batch, kept, base_vocab), which may be overwritten.
        prompts: for each adapter each row's prompt as its networks read it, or None where they read it as text.
        apart: whether to return what each adapter added, too.

    Returns:
        The sum, (batch, kept, base_vocab); and adapter -> what it added, of the same shape, empty where nobody asked.
    """
    logits = inputs.base_logits
    added: dict[str, torch.Tensor] = {}
    if len(terms) > 1 and any(term.refinement for term in terms):  # these read the base's own logits, and the sum is
        inputs.base_logits = logits.clone()  # written over them
    for term, inputs.prompts in zip(terms, prompts, strict=True):
        for value, weight in value_logits(term, inputs):
            logits = add_value_logits(logits, value, weight)
            if apart:
                weighted = weight * fit_width(value, logits.shape[-1]).to(logits.device)
                added[term.name] = added[term.name] + weighted if term.name in added else weighted
    return logits, added


def kept_positions(logits: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions that a caller asked for, where all had to be computed.

    Args:
        logits: (batch, seq, vocab).
        logits_to_keep: the last N positions, or those of an index tensor; 0 keeps all.

    Returns:
        (batch, kept, vocab), a copy: the sum is written over it, and networks still read `logits`.
    """
    chosen = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return logits[:, chosen].clone()
