"""The training loss of base + adapter from last hidden states, at the response tokens alone.

Bases differ by row where several take part; a base whose hidden states are given does not run. Knows nothing of
optimizers, data or files; `chunked_loss` computes the sum, which never exists as logits here. A frozen network that is
the base itself takes its hidden states, and where the two cancel neither runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import is_sharded
from valueadapter.adapter.heads import Head, LazyLogits, head_now, head_of, joined, joined_hidden, last_hidden_state
from valueadapter.artifact.config import Regularisation
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.errors import ConfigError
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.value_logits import Term
from valueadapter.training.chunked_loss import summed_loss


class BasePart(NamedTuple):
    """A base, and the rows of the batch that it reads."""

    base: PreTrainedModel
    rows: torch.Tensor | None = None
    """Indices of the rows, rising; None for all."""
    states: torch.Tensor | None = None
    """(tokens, hidden): its last hidden states at the positions that predict the rows' response tokens, row by row.
    None has the base compute them."""
    prefix: BasePrefix | None = None
    """What the base reads before each row."""


@dataclass(frozen=True)
class LossRequest:
    """A loss without logits, which `ValueAdapterForCausalLM.forward` calls with the adapter and the batch."""

    parts: tuple[BasePart, ...]
    """Every row of the batch is in one of them."""
    labels: torch.Tensor
    """(batch, seq), -100 where there is no loss."""
    penalty: Regularisation
    stand_ins: frozenset[int] = frozenset()
    """Numbers of the networks that compute what the base does, on what the base reads."""
    label_smoothing: float = 0.0
    num_items_in_batch: torch.Tensor | int | None = None
    """What to divide the sum by; the batch's own response tokens by default."""

    def __call__(
        self,
        term: Term,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """`mean_loss` of the batch, as the model's `forward` asks for it."""
        return mean_loss(term, TextInputs(input_ids, attention_mask, position_ids), self)


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
    return prefix.on(base).hidden(*inputs)[:, :-1][mask]


def why_logits_are_needed(terms: Sequence[Term], base: PreTrainedModel) -> str | None:
    """Why the loss of these adapters cannot be computed from hidden states; None where it can."""
    if len(terms) != 1:
        return "it is for one adapter, with a scale that is not 0"
    if terms[0].link is not None:
        return "base and adapter have different vocabularies"
    if terms[0].of_base or terms[0].of_end:
        return "the base's logits or its ends are weighted (model.weights)"
    heads = [head_of(network) for network in terms[0].networks]
    for what, head in (*(("value network", head) for head in heads), ("base", head_of(base))):
        if head is None:
            return f"the {what}'s logits are not its last hidden state times its output head"
    if len({len(head.weight) for head in heads if head is not None}) > 1:
        return "the networks' logits have different widths"
    return None


def base_weight(weights: Sequence[float], scale: float, stand_ins: frozenset[int], penalised: bool) -> float:
    """What the base's logits count for, together with the networks that stand in for it.

    Args:
        weights: of the networks.
        scale: of the adapter.
        stand_ins: numbers of the networks that compute what the base does.
        penalised: whether the value logits are wanted by themselves, so that networks and base are told apart.

    Returns:
        1, or where nothing is penalised 1 + scale · (the stand-ins' weights); with 0 the base need not run.
    """
    return 1.0 if penalised else 1.0 + scale * sum(weights[index] for index in stand_ins)


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
    value_heads = [head_now(network) for network in term.networks]
    width = len(value_heads[0].weight)  # ids beyond it are padding of the base's logits, and no token
    known = inputs._replace(input_ids=inputs.input_ids.masked_fill(inputs.input_ids >= width, 0))
    networks_to_run = [index for index in range(len(term.networks)) if index not in request.stand_ins]
    # bodies run once for the whole batch; the heads only where a response token is predicted, part by part
    value_hidden = {index: _hidden(term, index, known)[:, :-1] for index in networks_to_run}
    networks = _summands(term, request, networks_to_run, value_heads)
    wanted, targets = predicting(request.labels), request.labels[:, 1:]
    totals: list[torch.Tensor] = []
    for part in request.parts:
        rows = slice(None) if part.rows is None else part.rows
        mask = wanted[rows]
        if not mask.any() and not is_sharded(part.base):  # whose layers come together only if every process runs it
            _checked(part.states, mask)
            continue
        value_states = {index: hidden[rows][mask] for index, hidden in value_hidden.items()}
        like = value_states[networks_to_run[0]]
        base = _base_logits(part, inputs, mask, like, weight=networks.base_weight)
        # of stand-ins only a penalty makes use: else their share is in the base's weight
        value_states |= dict.fromkeys(request.stand_ins, base.hidden.to(like.dtype))
        hidden = joined_hidden([value_states[index] for index in networks.summed], networks.coefficients)
        sums = summed_loss(
            _times(networks.base_weight, base),
            LazyLogits(hidden, networks.head),
            labels=targets[rows][mask],
            scale=term.scale,
            penalty=request.penalty,
            label_smoothing=request.label_smoothing,
        )
        totals.append(sums.total)
    if not totals:  # a batch without a response has gradients too, of zero, which other processes wait for
        return 0 * torch.stack([hidden.sum(dtype=torch.float32) for hidden in value_hidden.values()]).sum()
    return functools.reduce(torch.add, totals)


def _hidden(term: Term, index: int, inputs: TextInputs) -> torch.Tensor:
    """A network's last hidden states, (batch, seq, hidden), of the rows alone or behind the prefix that it reads."""
    prefix = term.prefix_of(term.parts[index])
    return inputs.hidden(term.networks[index]) if prefix is None else prefix.hidden(*inputs)


class _Summands(NamedTuple):
    """What is added to the base's logits, and what these count for."""

    summed: list[int]
    """Numbers of the networks whose logits are added."""
    coefficients: list[float]
    head: Head
    """Of all of them side by side."""
    base_weight: float


def _summands(term: Term, request: LossRequest, networks_to_run: list[int], value_heads: Sequence[Head]) -> _Summands:
    # a stand-in is the base: its share of the sum goes into the base's weight, unless a penalty looks at it by itself
    penalised = request.penalty.kind != "none"
    weight = base_weight(term.weights.networks, term.scale, request.stand_ins, penalised)
    summed = list(range(len(term.networks))) if penalised else networks_to_run
    coefficients = [term.weights.networks[index] for index in summed]
    head = joined([value_heads[index] for index in summed], coefficients)
    return _Summands(summed, coefficients, head, weight)


def _base_logits(
    part: BasePart, inputs: TextInputs, mask: torch.Tensor, like: torch.Tensor, *, weight: float
) -> LazyLogits:
    """The base's hidden states of the tokens in `mask`, which are given or computed now, and its head."""
    if weight == 0:  # base and stand-ins cancel out, and neither runs
        width = cast(nn.Linear, part.base.get_output_embeddings()).out_features
        return LazyLogits(like.new_zeros(len(like), 0), Head(like.new_zeros(width, 0)))
    given = _checked(part.states, mask)
    states = base_states(part.base, inputs.of_rows(part.rows), mask, part.prefix) if given is None else given
    return LazyLogits(states.to(like.device), head_now(part.base))


def _times(weight: float, logits: LazyLogits) -> LazyLogits:
    return LazyLogits(joined_hidden([logits.hidden], [weight]), joined([logits.head], [weight]))


def _checked(states: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor | None:
    if states is not None and len(states) != int(mask.sum()):
        raise ConfigError(
            f"{len(states)} hidden states of the base came for {int(mask.sum())} response tokens; with cached "
            "states a batch must hold the demonstrations as they are, without packing or cutting"
        )
    return states
