"""Better values than the map's for a few likely base tokens: the network runs over each one's own tokens.

Where the next base token would make the value tokenizer split the text's end in another way ("1" after "12"), or is
several value tokens, the map's value is an estimate. In mode `chain` such a token gets the sum of the logits of its own
tokens, less that of the tokens that are taken back for it, each centred (r - log-mean-exp of r under a fixed prior), to
which the current row's constant is added, so that it stands beside the map's values. It costs a forward pass over all
candidates' tails. Knows no base and runs no model.

Example: the value tokens so far are `[…, 12]` and the candidate is `3`, which makes them `[…, 123]`. `12` is taken
back, so the trial removes (12, row before it) and adds (123, the same row): value = c(123) - c(12) + constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from valueadapter.forward.row_plan import Plan, Trial
from valueadapter.vocabulary.byte_view import Vocabulary

Mode = Literal["static", "chain"]
CANDIDATES = 24
"""How many of the base's likeliest tokens are looked at."""


def trials(plan: Plan, position: int, candidates: Sequence[int]) -> list[Trial]:
    """Tries base tokens after what a row has read, and leaves it as it was.

    Those that take tokens back, come within a character, or are several value tokens, whose nodes are put into the
    plan.

    Args:
        plan: what the row computes in this call; the position's row of logits is its `next_token_node()`.
        position: number of the position among those wanted.
        candidates: base tokens.
    """
    text, found = plan.row.text, []
    if not text.ids:
        return []
    size = len(text.ids)
    for token in candidates:
        pending, before = text.pending, text.open_ids
        rollback, new = text.push([token])
        text.pop(1)
        depth = size - rollback
        gone = before[len(before) - rollback :] if rollback else []
        if depth < 1:
            continue  # all of the text so far is one token, with nothing before it that could speak of it
        if not rollback and not pending and len(new) < 2:
            continue  # the map's value is the chain's
        nodes = plan.branch(depth, new[:-1])
        found.append(
            Trial(
                position,
                token,
                current=plan.row_after(size),
                removed=[(one, plan.row_after(depth + index)) for index, one in enumerate(gone)],
                added=list(zip(new, [plan.row_after(depth), *nodes], strict=False)),
            )
        )
    return found


class Centring:
    """The constant of a row of value logits: the log of the mean of their exponentials, under a fixed prior.

    What the network knew before it was trained is not in the artifact, so the prior is Zipf's law over ids, which
    byte-pair merging hands out by frequency.

    Args:
        vocabulary: the value vocabulary.
        width: columns of the value logits.
        centred: whether the constant is 0 in every row as it is (log-likelihood ratios are so).
    """

    def __init__(self, vocabulary: Vocabulary, width: int, *, centred: bool = False) -> None:
        self.centred = centred
        self._ids = torch.tensor(sorted(vocabulary.ordinary(width)))
        self._log_prior = (1.0 / (self._ids.double() + 10.0)).log().log_softmax(-1)

    def of(self, row: torch.Tensor) -> float:
        """Of one row, (value_vocab), in nats; finite whatever the range of the logits."""
        if self.centred:
            return 0.0
        values = row.detach().cpu().double()[self._ids]
        return float(torch.logsumexp(self._log_prior + values, -1))


def refined(trials: list[Trial], rows: Mapping[int, torch.Tensor], centring: Centring) -> list[float]:
    """The value of each trial, beside the map's values of its position.

    Args:
        trials: what might come next.
        rows: row of logits, (value_vocab), by the number that trials call it by.
        centring: of the value vocabulary.
    """
    constants = {number: centring.of(rows[number]) for number in {row for trial in trials for row in trial.rows()}}

    def total(tokens: list[tuple[int, int]]) -> float:
        return sum(float(rows[row][token]) - constants[row] for token, row in tokens)

    return [total(trial.added) - total(trial.removed) + constants[trial.current] for trial in trials]
