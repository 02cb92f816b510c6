"""Logits at the labelled positions of texts, piece by piece: however wide the vocabulary, little is held at once.

Whoever scores texts goes through these pieces: evaluation, calibration, the judge, the trace, the study. Rows run
together as far as their logits fit a number of bytes. A row whose logits alone do not fit is read in steps, the later
ones with the cache of the earlier; where a model's cache cannot be gone on with so, its text is read anew for each
step. Knows nothing of what is computed from the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from valueadapter.adapter.causal_lm import in_its_words, logits_width, takes
from valueadapter.compat import cache_in
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.forward.steps import turns_with_length
from valueadapter.forward.sum import Apart
from valueadapter.forward.value_logits import Term

BUDGET = 256 * 2**20
"""Bytes of logits that are held at once, those on the way to the sum included."""
_BLOCKS = 32
"""A piece is this part of the budget: what its reader makes of it comes to a few times its size."""


class Piece(NamedTuple):
    """Some of the labelled positions of a batch, and what the model says there."""

    places: torch.Tensor
    """(tokens,): their numbers among all labelled positions of the batch, counted row by row."""
    labels: torch.Tensor
    """(tokens,): the token that follows."""
    logits: torch.Tensor
    """(tokens, vocab), at least float32."""
    value_logits: torch.Tensor | None = None
    """(tokens, vocab): what adapters added to the base's; only where asked for."""
    each: Mapping[str, torch.Tensor] = {}
    """The same adapter by adapter with `value_logits="each"`; with "networks" what `base` and each network say."""


@dataclass(frozen=True)
class _Row:
    """Where a row's text begins and where its labels are predicted, as columns of the batch."""

    number: int
    begin: int
    first: int
    end: int
    """The column behind the last."""


@dataclass(frozen=True)
class _Reader:
    """A model, and what it is asked."""

    model: PreTrainedModel
    inputs: dict[str, Any]
    labels: torch.Tensor
    """(batch, seq - 1): the token that follows each column of the batch but the last."""
    places: torch.Tensor
    """(batch, seq - 1): the number of each label."""
    value_logits: Apart
    budget: int
    bytes_per_position: int = 1
    everywhere: bool = False
    """Whether the base's logits are computed at every position, because networks read them."""
    by_length: bool = False
    """Whether what is said of a position depends on how long the texts are that are read with it."""


@torch.no_grad()
def pieces(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    labels: torch.Tensor,
    *,
    value_logits: Apart = False,
    budget: int | None = None,
) -> Iterator[Piece]:
    """What a model says at every labelled position of a batch.

    Args:
        model: a causal language model; with value adapters or without.
        inputs: `input_ids` and `attention_mask` of (batch, seq), padded on the left; perhaps `position_ids` and more
            for `forward`. What it says of `logits_to_keep` is passed over.
        labels: (batch, kept - 1), at most seq - 1: the tokens of the last columns, -100 where nothing is asked.
        value_logits: also give what the adapters of a `ValueAdapterForCausalLM` added; "each" adapter by adapter, and
            "networks" what base and each network say, before any weight.
        budget: bytes of logits held at once; `BUDGET` by default. One position's are always held.

    Yields:
        Each labelled position in one piece, in their order: row by row, and within a row from the left.
    """
    length = inputs["input_ids"].shape[1]
    whole = torch.nn.functional.pad(labels, (length - 1 - labels.shape[1], 0), value=IGNORED)
    here = whole != IGNORED
    places = (here.flatten().cumsum(0) - 1).view_as(here)
    given = {key: value for key, value in inputs.items() if key != "logits_to_keep"}
    terms: list[Term] = model.attached.terms() if hasattr(model, "attached") else []
    reader = _Reader(
        model,
        given,
        whole,
        places,
        value_logits,
        BUDGET if budget is None else budget,
        bytes_per_position=_bytes_per_position(model, terms, value_logits),
        everywhere=any(term.reads_prediction for term in terms),
        by_length=any(turns_with_length(one) for one in _models(model, terms)),
    )
    continues = None
    for rows in _together(reader, _rows(inputs["attention_mask"], here)):
        if not reader.by_length and (len(rows) > 1 or _size(reader, rows) <= reader.budget):
            yield from _run(reader, rows)
            continue
        if continues is None:
            continues = not reader.by_length and _continues(model, terms)
        yield from _in_steps(reader, rows[0]) if continues else _anew(reader, rows[0])


def decodes_as_it_reads(model: PreTrainedModel) -> bool:
    """Whether base and networks say of each token of a text what they say when it is decoded, the later ones unread.

    False also where that is not known: for caches of other kinds than keys and values, and for tokens before the prompt
    that PEFT learns.
    """
    terms: list[Term] = model.attached.terms() if hasattr(model, "attached") else []
    each = _models(model, terms)
    learned = any(getattr(getattr(one, "active_peft_config", None), "is_prompt_learning", False) for one in each)
    return not learned and not any(map(turns_with_length, each)) and _continues(model, terms)


def rows_at_once(model: PreTrainedModel, positions: int, *, budget: int | None = None) -> int:
    """How many rows may have logits at so many positions each, at least one.

    Args:
        model: a causal language model.
        positions: of a row; of the whole prompt count where networks read what the base predicts.
        budget: bytes; `BUDGET` by default.
    """
    terms: list[Term] = model.attached.terms() if hasattr(model, "attached") else []
    if not any(term.reads_prediction for term in terms):
        positions = 1
    size = positions * _bytes_per_position(model, terms, False)
    return max(1, (BUDGET if budget is None else budget) // size)


# -- how much at once --------------------------------------------------------------------------------------------------
def _rows(mask: torch.Tensor, here: torch.Tensor) -> Iterator[_Row]:
    """The rows that have labels."""
    begins = (mask != 0).int().argmax(dim=1).tolist()
    for number, (begin, columns) in enumerate(zip(begins, here, strict=True)):
        labelled = columns.nonzero()[:, 0]
        if len(labelled):
            yield _Row(number, begin, int(labelled[0]), int(labelled[-1]) + 1)


def _together(reader: _Reader, rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    """Consecutive rows as far as their logits fit the budget together."""
    group: list[_Row] = []
    for row in rows:
        if group and (reader.by_length or _size(reader, [*group, row]) > reader.budget):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _size(reader: _Reader, rows: Sequence[_Row]) -> int:
    """Bytes of logits when these rows are read in one call."""
    begin = min(row.begin if reader.everywhere else row.first for row in rows)
    return len(rows) * (max(row.end for row in rows) - begin) * reader.bytes_per_position


def _bytes_per_position(model: PreTrainedModel, terms: Sequence[Term], value_logits: Apart) -> int:
    """What one position of a row takes up at most while its logits are computed.

    Counted in whole rows of logits: the base's own and what a soft cap makes of them; those of a network, widened,
    selected and weighted on their way to the base's vocabulary; and what is kept of them beside the sum.
    """
    base = _base(model)
    own = logits_width(base)
    columns = 2 * own
    if any(term.reads_prediction for term in terms):
        columns += 4 * own  # probabilities in float32, and moved to the network's ids
    ways = [own]
    for term in terms:
        width = max(logits_width(network) for network in term.networks)
        ways.append(own + (6 if term.reads_text else 3 if term.link is not None else 2) * width)
    columns += max(ways) if terms else 0
    if value_logits:
        columns += (3 + max(len(terms), sum(len(term.networks) for term in terms))) * own
    if len(terms) > 1:  # networks that several adapters share are remembered, and refined sums keep the base's
        columns += own + sum(logits_width(network) for term in terms for network in term.networks)
    return columns * int(base.get_output_embeddings().weight.element_size())


def _base(model: Any) -> Any:
    """The base of a wrapper, whose own head is put together of all heads each time; any other model itself."""
    return model.base if hasattr(model, "attached") else model


# -- the calls ---------------------------------------------------------------------------------------------------------
def _run(reader: _Reader, rows: Sequence[_Row]) -> Iterator[Piece]:
    """Rows in one call."""
    begin, first = min(row.begin for row in rows), min(row.first for row in rows)
    end = max(row.end for row in rows)
    numbers = torch.tensor([row.number for row in rows])
    out = _call(reader, numbers, slice(begin, end), end - first, use_cache=False)
    yield from _blocks(reader, out, numbers, slice(first, end))


def _in_steps(reader: _Reader, row: _Row) -> Iterator[Piece]:
    """A row whose logits alone exceed the budget, each step with the cache of those before."""
    size = max(1, reader.budget // reader.bytes_per_position)
    first = row.begin if reader.everywhere else row.first
    starts = [row.begin, *range(first + size, row.end, size)]
    numbers, cache = torch.tensor([row.number]), None
    for start, end in zip(starts, [*starts[1:], row.end], strict=True):
        kept = max(1, end - max(start, row.first))
        out = _call(reader, numbers, slice(start, end), kept, use_cache=True, cache=cache, begin=row.begin)
        cache = cache_in(out)
        if end > row.first:
            yield from _blocks(reader, out, numbers, slice(end - kept, end))


def _anew(reader: _Reader, row: _Row) -> Iterator[Piece]:
    """The same without a cache: the text up to each step's end is read for it, or where its length counts all of it."""
    size = max(1, reader.budget // reader.bytes_per_position)
    numbers = torch.tensor([row.number])
    for start in range(row.first, row.end, size):
        end = min(start + size, row.end)
        if reader.by_length:
            kept = torch.arange(start, end) - row.begin
            out = _call(reader, numbers, slice(row.begin, None), kept, use_cache=False)
        else:
            out = _call(reader, numbers, slice(row.begin, end), end - start, use_cache=False)
        yield from _blocks(reader, out, numbers, slice(start, end))


def _call(
    reader: _Reader,
    rows: torch.Tensor,
    columns: slice,
    keep: int | torch.Tensor,
    *,
    use_cache: bool,
    cache: Any = None,
    begin: int | None = None,
) -> Any:
    """`forward` on some columns of some rows; `begin` is the first column that the cache has seen."""
    arguments = dict(reader.inputs)
    ids = arguments.pop("input_ids")
    rows = rows.to(ids.device)
    if "position_ids" in arguments:
        positions = arguments["position_ids"]
        arguments["position_ids"] = positions.expand(len(ids), -1)[rows][:, columns]
    seen = slice(columns.start if begin is None else begin, columns.stop)
    arguments["attention_mask"] = arguments["attention_mask"][rows][:, seen]
    if isinstance(keep, torch.Tensor):
        keep = keep.to(ids.device)
    if reader.value_logits:
        arguments["output_value_logits"] = reader.value_logits
    if cache is not None:
        arguments["cache"] = cache
    arguments |= {"input_ids": ids[rows][:, columns], "use_cache": use_cache, "logits_to_keep": keep}
    return reader.model(**in_its_words(reader.model, arguments), return_dict=True)


def _blocks(reader: _Reader, out: Any, rows: torch.Tensor, columns: slice) -> Iterator[Piece]:
    """The labelled positions of an output, of (rows, columns, vocab), a few at a time."""
    labels, places = (one[rows.to(one.device)][:, columns] for one in (reader.labels, reader.places))
    wanted = (labels != IGNORED).nonzero()
    size = max(1, reader.budget // _BLOCKS // (4 * out.logits.shape[-1]))
    for block in torch.split(wanted, size):
        at = (block[:, 0], block[:, 1])

        def of(logits: torch.Tensor, at: tuple[torch.Tensor, torch.Tensor] = at) -> torch.Tensor:
            chosen = logits[at[0].to(logits.device), at[1].to(logits.device)]
            return chosen if chosen.dtype == torch.float64 else chosen.float()

        more: dict[str, Any] = {}
        if reader.value_logits:
            more["value_logits"] = of(out.value_logits)
        if reader.value_logits in ("each", "networks"):
            more["each"] = {name: of(logits) for name, logits in out.each.items()}
        yield Piece(places[at], labels[at].to(out.logits.device), of(out.logits), **more)


# -- whether a cache can be gone on with ------------------------------------------------------------------------------
def _models(model: Any, terms: Sequence[Term]) -> list[PreTrainedModel]:
    return [_base(model), *(network for term in terms for network in term.networks)]


def _continues(model: Any, terms: Sequence[Term]) -> bool:
    """Whether every model, called with its cache and several tokens, says what it says of the whole text."""
    if any(term.refinement for term in terms):  # which looks at what was said before, beyond what a cache holds
        return False
    return all(_goes_on(one) for one in _models(model, terms))


def _goes_on(model: Any) -> bool:
    """A model whose cache is keys and values alone."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not takes(plain, "cache") or getattr(plain, "_is_stateful", False):
        return False
    layers = DynamicCache(config=plain.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
