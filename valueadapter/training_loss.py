"""The training loss of base + adapter from last hidden states, at the response tokens alone.

Bases differ by row where several take part; a base whose hidden states are given does not run. Knows nothing of
optimizers, data or files; `fused_loss` computes the sum, which never exists as logits here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from valueadapter.config import Regularisation
from valueadapter.data import IGNORED
from valueadapter.errors import ConfigError
from valueadapter.fused_loss import summed_loss
from valueadapter.heads import Head, LazyLogits, head_of, joined, last_hidden_state
from valueadapter.prefix import BasePrefix
from valueadapter.value_logits import Term


class BasePart(NamedTuple):
    """A base, and the rows of the batch that it reads."""

    base: PreTrainedModel
    head: Head
    rows: torch.Tensor | None = None
    """Indices of the rows, rising; None for all."""
    states: torch.Tensor | None = None
    """(tokens, hidden): its last hidden states at the positions that predict the rows' response tokens, row by row.
    None has the base compute them."""
    prefix: BasePrefix | None = None
    """What the base reads before each row."""


@dataclass(frozen=True)
class LossRequest:
    """What `ValueAdapterForCausalLM.forward` needs for a loss without logits."""

    parts: tuple[BasePart, ...]
    """Every row of the batch is in one of them."""
    value_heads: tuple[Head, ...]
    """Of each value network, in their order."""
    labels: torch.Tensor
    """(batch, seq), -100 where there is no loss."""
    penalty: Regularisation
    label_smoothing: float = 0.0
    num_items_in_batch: torch.Tensor | int | None = None
    """What to divide the sum by; the batch's own response tokens by default."""


class TextInputs(NamedTuple):
    """A batch: ids, mask and positions, each (batch, seq); the last two may be None."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None

    def of_rows(self, rows: torch.Tensor | None) -> TextInputs:
        """Some of the rows."""
        if rows is None:
            return self
        ids, *others = self
        return TextInputs(ids[rows], *(None if x is None else x[rows] for x in others))

    def hidden(self, model: PreTrainedModel) -> torch.Tensor:
        """The model's last hidden states, (batch, seq, hidden)."""
        given = {key: value for key, value in self._asdict().items() if value is not None}
        return last_hidden_state(model, **given, use_cache=False)


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """(batch, seq - 1) of bool: whether a position predicts a response token, from labels of (batch, seq)."""
    return labels[:, 1:] != IGNORED


@torch.no_grad()
def base_states(
    base: PreTrainedModel, inputs: TextInputs, mask: torch.Tensor, prefix: BasePrefix | None = None
) -> torch.Tensor:
    """A base's last hidden states where `mask` (batch, seq - 1) is True: (tokens, hidden), row by row."""
    if prefix is None:
        return inputs.hidden(base)[:, :-1][mask]
    call = prefix.call(*inputs, cache=None, logits_to_keep=0)
    arguments = {key: value for key, value in call.arguments.items() if key != "logits_to_keep"}
    return call.cut(last_hidden_state(base, **arguments))[:, :-1][mask]


def why_not(terms: Sequence[Term], base: PreTrainedModel) -> str | None:
    """Why the loss of these adapters cannot be computed from hidden states; None where it can."""
    if len(terms) != 1:
        return "it is for one adapter, with a scale that is not 0"
    if terms[0].link is not None:
        return "base and adapter have different vocabularies"
    heads = [head_of(network) for network in terms[0].networks]
    for what, head in (*(("value network", head) for head in heads), ("base", head_of(base))):
        if head is None:
            return f"the {what}'s logits are not its last hidden state times its output head"
    if len({len(head.weight) for head in heads if head is not None}) > 1:
        return "the networks' logits have different widths"
    return None


def mean_loss(term: Term, inputs: TextInputs, request: LossRequest) -> torch.Tensor:
    """Cross-entropy plus penalty of a batch, per response token, in nats.

    Args:
        term: the adapter, in the base's vocabulary.
        inputs: what it reads.
        request: labels, bases and the rest of the loss.

    Raises:
        ConfigError: the states given are not of as many tokens as the rows they are for.
    """
    count = predicting(request.labels).sum() if request.num_items_in_batch is None else request.num_items_in_batch
    total = _loss_sum(term, inputs, request)
    return total / (count.to(total.device) if isinstance(count, torch.Tensor) else count)


def _loss_sum(term: Term, inputs: TextInputs, request: LossRequest) -> torch.Tensor:
    width = len(request.value_heads[0].weight)  # ids beyond it are padding of the base's logits, and no token
    known = inputs._replace(input_ids=inputs.input_ids.masked_fill(inputs.input_ids >= width, 0))
    value_hidden = [known.hidden(network)[:, :-1] for network in term.networks]
    value_head = joined(request.value_heads, term.coefficients)
    wanted, targets = predicting(request.labels), request.labels[:, 1:]
    total: torch.Tensor | None = None
    for part in request.parts:
        mask = wanted if part.rows is None else wanted[part.rows]
        states = part.states
        if states is None:
            states = base_states(part.base, inputs.of_rows(part.rows), mask, part.prefix)
        elif len(states) != int(mask.sum()):
            raise ConfigError(
                f"{len(states)} hidden states of the base came for {int(mask.sum())} response tokens; with cached "
                "states a batch must hold the demonstrations as they are, without packing or cutting"
            )
        if not len(states):
            continue
        ids, *hidden = (x if part.rows is None else x[part.rows] for x in (targets, *value_hidden))
        weighted = [h[mask] if c == 1 else c * h[mask] for h, c in zip(hidden, term.coefficients, strict=True)]
        # Σ c z = [c h, …] @ [W, …]^T: several networks are one with as many hidden units as they have together
        states, units = states.to(weighted[0].device), torch.cat(weighted, dim=-1)
        sums = summed_loss(
            LazyLogits(states, part.head),
            LazyLogits(units, value_head),
            labels=ids[mask],
            scale=term.scale,
            penalty=request.penalty,
            label_smoothing=request.label_smoothing,
        )
        total = sums.total if total is None else total + sums.total
    if total is None:  # a batch without a response has gradients too, of zero, which other processes wait for
        return 0 * torch.stack([hidden.sum(dtype=torch.float32) for hidden in value_hidden]).sum()
    return total
