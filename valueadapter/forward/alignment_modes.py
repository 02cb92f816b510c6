"""Better values than the map's for a few likely base tokens: what the network says of bytes, not of one of its tokens.

Where the next base token would make the value tokenizer split the text's end in another way ("1" after "12"), equality
of strings is the wrong event. Two modes look closer at the base's likeliest tokens:

* `boundary`: R(p·b) - R(p), where p is the text since the last value-token boundary that stays, b the candidate's
  bytes, and R(y) the log of the mean of exp r over the value tokens whose bytes are consistent with y. It is read from
  a row of logits that was computed anyway.
* `chain`: the network runs over every candidate's own tokens; the sum of their logits, less that of the tokens that
  are taken back. It costs a forward pass over all candidates' tails, and is what the others are measured against.

Both are sums of centred logits (r - R of the empty string, under the same prior), to which the current row's constant
is added, so that they stand beside the map's values. Knows no base and runs no model.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from valueadapter.forward.row_plan import Plan, Trial
from valueadapter.vocabulary.byte_view import Vocabulary

Mode = Literal["static", "boundary", "chain"]
CANDIDATES = {"boundary": 64, "chain": 24}
"""How many of the base's likeliest tokens each mode looks at."""


def trials(plan: Plan, position: int, candidates: Sequence[int], mode: Mode) -> list[Trial]:
    """Tries base tokens after what a row has read, and leaves it as it was.

    In `boundary` mode those that take tokens back, or come within a character; in `chain` mode also those of several
    value tokens, whose nodes are put into the plan.

    Args:
        plan: what the row computes in this call; the position's row of logits is its `want()`.
        position: number of the position among those wanted.
        candidates: base tokens.
        mode: which of them matter, and how.
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
        if not rollback and not pending and (mode == "boundary" or len(new) < 2):
            continue
        if mode == "boundary" and not new:
            continue  # it comes within a character
        added = []
        if mode == "chain":
            nodes = plan.branch(depth, new[:-1])
            added = list(zip(new, [plan.row_after(depth), *nodes], strict=False))
        found.append(
            Trial(
                position,
                token,
                pending=text.reading.bytes_of(gone) + pending,
                data=text.reading.data[token],
                boundary=plan.row_after(depth),
                current=plan.row_after(size),
                removed=[(one, plan.row_after(depth + index)) for index, one in enumerate(gone)],
                added=added,
            )
        )
    return found


class ByteEvents:
    """What a row of value logits says of bytes.

    Args:
        vocabulary: the value vocabulary.
        width: columns of the value logits.
        centred: whether the log of the mean of exp r is 0 in every row as it is (log-likelihood ratios are so).
    """

    def __init__(self, vocabulary: Vocabulary, width: int, *, centred: bool = False) -> None:
        self.centred = centred
        tokens = vocabulary.ordinary(width)
        self._ids = sorted(tokens, key=lambda token: vocabulary.tokens[token])
        self._bytes = [vocabulary.tokens[token] for token in self._ids]
        # Zipf's law over ids, which byte-pair merging hands out by frequency
        prior = 1.0 / (np.array(self._ids, dtype=np.float64) + 10.0)
        self._log_prior = np.log(prior / prior.sum())

    @cached_property
    def _index(self) -> torch.Tensor:
        return torch.tensor(self._ids)

    def of_row(self, row: torch.Tensor) -> RowEvents:
        """The events of one row of value logits, (value_vocab)."""
        values = row.detach().cpu().double()[self._index].numpy()
        return RowEvents(self._bytes, self._log_prior, values)


class RowEvents:
    """Log-mean-exp of one row over the tokens that are consistent with a string."""

    def __init__(self, data: list[bytes], log_prior: np.ndarray, values: np.ndarray) -> None:
        self._data, self._log_prior, self._weighted = data, log_prior, log_prior + values
        self._known: dict[bytes, float] = {}
        self.mean = self.log_mean(b"")

    def log_mean(self, y: bytes) -> float:
        """R(y), over tokens that begin with y and tokens that y begins with; the mean of all where there is none."""
        if y not in self._known:
            chosen = self._consistent_with(y)
            if not len(chosen):
                return self.mean
            self._known[y] = _log_sum_exp(self._weighted[chosen]) - _log_sum_exp(self._log_prior[chosen])
        return self._known[y]

    def _consistent_with(self, y: bytes) -> np.ndarray:
        """Places of these tokens."""
        spans = [np.arange(bisect.bisect_left(self._data, y), _end(self._data, y))]
        for size in range(1, len(y)):
            begin = bisect.bisect_left(self._data, y[:size])
            if begin < len(self._data) and self._data[begin] == y[:size]:
                spans.append(np.arange(begin, bisect.bisect_right(self._data, y[:size])))
        return np.concatenate(spans)


def _log_sum_exp(terms: np.ndarray) -> float:
    """Of each sum by itself: as a difference of sums over more terms it would drown in the greatest of these."""
    top = terms.max()
    return float(np.log(np.exp(terms - top).sum()) + top)


def _end(data: list[bytes], y: bytes) -> int:
    """Behind the last string that begins with y."""
    stem = y.rstrip(b"\xff")
    return bisect.bisect_left(data, stem[:-1] + bytes([stem[-1] + 1])) if stem else len(data)


def refined(trials: list[Trial], rows: Mapping[int, torch.Tensor], events: ByteEvents, mode: Mode) -> list[float]:
    """The value of each trial, beside the map's values of its position.

    Args:
        trials: what might come next.
        rows: row of logits, (value_vocab), by the number that trials call it by.
        events: of the value vocabulary.
        mode: `boundary` or `chain`.
    """
    known: dict[int, RowEvents] = {}

    def at(row: int) -> RowEvents:
        if row not in known:
            known[row] = events.of_row(rows[row])
        return known[row]

    def constant(row: int) -> float:
        return 0.0 if events.centred else at(row).mean

    values = []
    for trial in trials:
        if mode == "boundary":
            row = at(trial.boundary)
            value = row.log_mean(trial.pending + trial.data) - row.log_mean(trial.pending)
        else:
            value = sum(float(rows[row][token]) - constant(row) for token, row in trial.added)
            value -= sum(float(rows[row][token]) - constant(row) for token, row in trial.removed)
        values.append(value + constant(trial.current))
    return values
