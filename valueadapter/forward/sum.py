"""The sum: the base's logits and what each acting adapter adds to them.

    logits = base + Σ scale · ((w_base - 1) · base + Σ w_i · network_i + w_end · [end of text])

Scale 0 is the base bit for bit, scale 1 the adapter as its weights say. Knows neither models' ways to be called nor
what is attached; `value_logits` says what an adapter's networks say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from valueadapter.adapter.causal_lm import fit_width
from valueadapter.forward.row_plan import Prompt
from valueadapter.forward.value_logits import Inputs, Term, value_logits

Apart = bool | Literal["each", "networks"]
"""What is wanted beside the sum: nothing, what was added, the same by adapter, or what base and each network say."""
BASE_LOGITS = "base"
"""With "networks": the key of the base's own logits. Those of networks are `<adapter>.<index>`."""


def add_value_logits(base_logits: torch.Tensor, value_logits: torch.Tensor, weight: float) -> torch.Tensor:
    """base_logits + weight · value_logits, for the logits of one network.

    The vocabulary is the same, its padding may not be: value logits beyond the base's width belong to no token and are
    dropped; base logits beyond the value logits' width get the mean of the row, as every token of which the networks
    say nothing.

    Args:
        base_logits: (batch, seq, base_vocab). Without gradients it is overwritten by the sum.
        value_logits: (batch, seq, value_vocab).
        weight: scale · the network's weight.

    Returns:
        (batch, seq, base_vocab), in the dtype and on the device of `base_logits`.
    """
    value = fit_width(value_logits, base_logits.shape[-1]).to(device=base_logits.device, dtype=base_logits.dtype)
    if torch.is_grad_enabled():
        return base_logits.add(value, alpha=weight)
    return base_logits.add_(value, alpha=weight)


def base_and_end(base_logits: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """base + Σ scale · ((w_base - 1) · base + w_end · [end of text]): all of the sum that needs no network.

    What the base rules out (-inf) stays ruled out.

    Args:
        base_logits: (…, base_vocab). Where it changes it is overwritten, without gradients.
        terms: the acting adapters.
    """
    weight = 1 + sum(term.of_base for term in terms)
    logits = base_logits
    if weight != 1:
        scaled = base_logits * weight if torch.is_grad_enabled() or weight <= 0 else base_logits.mul_(weight)
        logits = scaled if weight > 0 else scaled.where(~base_logits.isneginf(), base_logits)
    for term in terms:
        if term.of_end:
            logits = logits.clone() if torch.is_grad_enabled() else logits
            logits[..., list(term.ends)] += term.of_end
    return logits


def without_networks(base_logits: torch.Tensor, term: Term) -> torch.Tensor:
    """What an adapter adds besides its networks: scale · ((w_base - 1) · base + w_end · [end of text]).

    Args:
        base_logits: (…, base_vocab), left as they are; 0 is added to -inf.
        term: the adapter.
    """
    added = base_logits * term.of_base if term.of_base else torch.zeros_like(base_logits)
    if term.of_base:
        added = added.where(~base_logits.isneginf(), 0.0)
    if term.of_end:
        added[..., list(term.ends)] += term.of_end
    return added


def summed(
    terms: Sequence[Term], inputs: Inputs, prompts: Sequence[Sequence[Prompt] | None], *, apart: Apart = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The base's logits and what every acting adapter adds.

    Args:
        terms: the acting adapters.
        inputs: of the call, with the base's logits of (batch, kept, base_vocab), which may be overwritten.
        prompts: for each adapter each row's prompt as its networks read it, or None where they read it as text.
        apart: what else is wanted.

    Returns:
        The sum, (batch, kept, base_vocab); and of the same shape adapter -> what it added, empty where nobody asked, or
        for "networks" the logits of base and networks before any weight.
    """
    base = inputs.base_logits
    changed = len(terms) > 1 or any(term.of_base or term.of_end for term in terms)
    if apart or (changed and any(term.refinement for term in terms)):  # the sum is written over the base's own logits
        inputs.base_logits = base.clone()
    logits = base_and_end(base, terms)
    own = inputs.base_logits
    added: dict[str, torch.Tensor] = {}
    if apart == "networks":
        added[BASE_LOGITS] = own
    for term, inputs.prompts in zip(terms, prompts, strict=True):
        if apart and apart != "networks":
            added[term.name] = without_networks(own, term)
        each: list[torch.Tensor] | None = [] if apart == "networks" else None
        for value, weight in value_logits(term, inputs, apart=each):
            logits = add_value_logits(logits, value, weight)
            if apart and apart != "networks":
                fitting = fit_width(value, logits.shape[-1]).to(logits)
                added[term.name] = added[term.name].add(fitting, alpha=weight)
        for index, value in enumerate(each or ()):
            added[f"{term.name}.{index}"] = fit_width(value, logits.shape[-1]).to(logits)
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
