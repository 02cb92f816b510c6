"""Scores one adapter on many bases: kept hidden states of the bases, and one run of the network per vocabulary.

Only a cascade, whose network reads what the base predicts, needs the whole model. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from studies.curves import SCALES, Curve, nats_at_scales
from studies.states import Encoded, States, Tokens, by_length, encoded, states_of
from studies.store import Store
from studies.targets import Target
from studies.tasks import Record
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.causal_lm import logits_width
from valueadapter.artifact.config import Weights
from valueadapter.demonstrations.responses import response_bytes
from valueadapter.demonstrations.tokenized import IGNORED, Collator
from valueadapter.errors import AlignmentError, IncompatibleBaseError, UnsupportedModeError
from valueadapter.forward.bounded_logits import BUDGET, pieces
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.prefix_tokens import begins_texts, prefix_ids
from valueadapter.forward.value_logits import Inputs, Term, fit_width, value_logits
from valueadapter.model.prefix_memory import network_prefixes
from valueadapter.vocabulary.bridge import VocabularyBridge

Say = Callable[[str], object]


@dataclass(frozen=True)
class Examples:
    """What is scored: held-out demonstrations, then those that choose a scale; and what the base reads before each."""

    held_out: tuple[Record, ...]
    calibration: tuple[Record, ...]
    prefix: str | None = None

    @property
    def records(self) -> list[Record]:
        """All of them, held-out ones first."""
        return [*self.held_out, *self.calibration]


def score_alone(target: Target, examples: Examples, store: Store) -> Curve:
    """A base without adapter: a curve of which only scale 0 means something."""
    states = states_of(target, examples.records, examples.prefix, store)
    return curve_alone(states, target.head, examples)


@torch.no_grad()
def curve_alone(states: States, head: Any, examples: Examples) -> Curve:
    """The nats of a model's head on its hidden states, the same at every scale."""
    chunks = zip(torch.split(states.hidden, 256), torch.split(states.tokens.labels, 256), strict=True)
    nats = [torch.nn.functional.cross_entropy(head(h.float()), labels, reduction="none") for h, labels in chunks]
    everywhere = torch.cat(nats)[:, None].expand(-1, len(SCALES))
    return Curve(states.tokens, everywhere, _sizes(examples), len(examples.held_out))


@torch.no_grad()
def score_adapter(
    adapter: ValueAdapter, targets: Sequence[Target], examples: Examples, *, store: Store, say: Say
) -> dict[str, Curve | str]:
    """Scores an adapter on bases, at every scale.

    Args:
        adapter: the adapter; its `base_prefix` is not read, `examples.prefix` is.
        targets: the bases; those of one vocabulary share its value logits.
        examples: what is scored.
        store: where the bases' hidden states are kept.
        say: called with a line for each run of the network.

    Returns:
        For each base the nats of every token, or the reason why the adapter does not go with it.
    """
    if adapter.config.connection != "residual":
        return {target.name: _refusable(_through_the_wrapper, adapter, target, examples) for target in targets}
    groups: dict[str, tuple[VocabularyBridge | None, list[Target]]] = {}
    found: dict[str, Curve | str] = {}
    for target in targets:
        try:
            link = adapter.connect(target.side, target.name)
        except IncompatibleBaseError as error:
            found[target.name] = str(error)
            continue
        vocabulary = "same" if link is None else target.side.spec.byte_fingerprint
        groups.setdefault(vocabulary, (link, []))[1].append(target)
    for link, members in groups.values():
        say(f"  scoring on {', '.join(target.name for target in members)}")
        found |= _score_group(adapter, link, members, examples, store)
    return {target.name: found[target.name] for target in targets}


def _score_group(
    adapter: ValueAdapter, link: VocabularyBridge | None, members: list[Target], examples: Examples, store: Store
) -> dict[str, Curve]:
    """Bases of one vocabulary: the network runs once over the examples, and each base's head over its hidden states."""
    states = {target.name: states_of(target, examples.records, examples.prefix, store) for target in members}
    nats = {name: torch.zeros(len(one.hidden), len(SCALES)) for name, one in states.items()}
    tokenizer = adapter.tokenizer if link is None else members[0].tokenizer
    term = _term(adapter, link, examples.prefix, tokenizer)
    width = adapter.config.vocabulary.logits_width if link is None else link.alignment.base.logits_width
    for batch in by_length(encoded(examples.records, tokenizer)):
        for example, some, added in _value_logits(term, batch, tokenizer, width):
            for target in members:
                own = states[target.name]
                rows = own.tokens.rows([example.number])[some]
                base = target.head(own.hidden[rows].float())
                labels = own.tokens.labels[rows]
                nats[target.name][rows] = nats_at_scales(base, fit_width(added, base.shape[-1]), labels)
    sizes = _sizes(examples)
    return {name: Curve(states[name].tokens, nats[name], sizes, len(examples.held_out)) for name in states}


def _term(
    adapter: ValueAdapter, link: VocabularyBridge | None, prefix: str | None, tokenizer: PreTrainedTokenizerBase
) -> Term:
    """The adapter as it acts at scale 1, on bases with this tokenizer that read this prefix."""
    networks = tuple(network.eval() for network in adapter.networks)
    names = tuple(f"study.{index}" for index in range(len(networks)))
    read: tuple[BasePrefix | None, ...] = ()
    if prefix is not None and adapter.reads_prefix:
        start = tokenizer.bos_token_id if begins_texts(tokenizer) else None
        base = BasePrefix(networks[0], prefix_ids(prefix, tokenizer), start)  # for its tokens alone
        read = network_prefixes(adapter, names, link, prefix, base)
    weights = Weights(1.0, tuple(spec.coefficient for spec in adapter.config.networks))
    return Term(
        name="study",
        parts=names,
        networks=networks,
        weights=weights,
        scale=1.0,
        tokenizer=adapter.tokenizer,
        link=link,
        prefixes=read,
    )


def _value_logits(
    term: Term, batch: list[Encoded], tokenizer: PreTrainedTokenizerBase, width: int
) -> Iterator[tuple[Encoded, slice, torch.Tensor]]:
    """What is added to the base's logits before response tokens.

    Rows run together as far as their logits fit `bounded_logits.BUDGET`; a row that does not runs once for each part.

    Yields:
        An example, which of its response tokens, and the sum for these, (tokens, base_vocab).
    """
    networks = sum(logits_width(network) for network in term.networks)
    positions = max(1, BUDGET // (4 * (3 * width + 4 * networks)))
    for some in _together(batch, positions):
        longest = max(len(example.ids) - example.positions[0] for example in some)
        step = longest if len(some) > 1 else positions
        for begin in range(0, longest, step):
            columns = torch.arange(begin, min(longest, begin + step)) - longest  # counted from the end
            added = _of_columns(term, some, tokenizer, width, columns)
            for row, example in enumerate(some):
                places = [position - len(example.ids) + longest - begin for position in example.positions]
                within = [index for index, place in enumerate(places) if 0 <= place < len(columns)]
                if within:
                    chosen = [places[index] for index in within]
                    yield example, slice(within[0], within[-1] + 1), added[row, chosen]


def _together(batch: list[Encoded], positions: int) -> Iterator[list[Encoded]]:
    """Consecutive examples whose scored columns come to no more than so many positions, or one alone."""
    some: list[Encoded] = []
    for example in batch:
        longest = max(len(one.ids) - one.positions[0] for one in [*some, example])
        if some and longest * (len(some) + 1) > positions:
            yield some
            some = []
        some.append(example)
    yield some


def _of_columns(
    term: Term, some: list[Encoded], tokenizer: PreTrainedTokenizerBase, width: int, kept: torch.Tensor
) -> torch.Tensor:
    """What is added at some columns of a batch, (batch, kept, base_vocab)."""
    collated = Collator(tokenizer.pad_token_id or 0)([{"input_ids": e.ids, "labels": e.ids} for e in some])
    inputs = Inputs(
        input_ids=collated["input_ids"],
        attention_mask=collated["attention_mask"],
        position_ids=collated["position_ids"],
        logits_to_keep=kept % collated["input_ids"].shape[1],
        use_cache=False,
        cache=None,
        # a residual network asks for the width alone
        base_logits=torch.empty(len(some), len(kept), width, device="meta"),
    )
    summands = [weight * fit_width(logits, width) for logits, weight in value_logits(term, inputs)]
    return torch.stack(summands).sum(0) if len(summands) > 1 else summands[0]


def _refusable(
    score: Callable[[ValueAdapter, Target, Examples], Curve], adapter: ValueAdapter, target: Target, examples: Examples
) -> Curve | str:
    try:
        return score(adapter, target, examples)
    except (AlignmentError, IncompatibleBaseError, UnsupportedModeError) as error:
        return str(error).replace(str(target.folder), target.name)  # a path of this machine says nothing to others


@torch.no_grad()
def _through_the_wrapper(adapter: ValueAdapter, target: Target, examples: Examples) -> Curve:
    """Runs base and network together, as a user would, for networks that read what the base predicts."""
    model = ValueAdapterForCausalLM(target.load(), tokenizer=target.tokenizer)
    model.add_adapter(adapter.with_config(base_prefix=examples.prefix), "default", scale=1.0)
    return curve_of(model.eval(), target.tokenizer, examples)


@torch.no_grad()
def curve_of(model: ValueAdapterForCausalLM, tokenizer: PreTrainedTokenizerBase, examples: Examples) -> Curve:
    """The nats of a wrapped base at every scale, by its own `forward`; its scale must be 1."""
    parts: list[tuple[Encoded, torch.Tensor]] = []
    for batch in by_length(encoded(examples.records, tokenizer)):
        rows = [{"input_ids": example.ids, "labels": _labels(example)} for example in batch]
        collated = Collator(tokenizer.pad_token_id or 0)(rows)
        labels = collated.pop("labels")[:, 1:]
        found = torch.zeros(int((labels != IGNORED).sum()), len(SCALES))
        for piece in pieces(model, collated, labels, value_logits=True):
            value = cast(torch.Tensor, piece.value_logits)
            found[piece.places] = nats_at_scales(piece.logits - value, value, piece.labels)
        parts += zip(batch, torch.split(found, [len(example.labels) for example in batch]), strict=True)
    parts.sort(key=lambda part: part[0].number)
    tokens = Tokens.of([example for example, _ in parts], tokenizer)
    return Curve(tokens, torch.cat([nats for _, nats in parts]), _sizes(examples), len(examples.held_out))


def _labels(example: Encoded) -> list[int]:
    """-100 where nothing is scored."""
    scored = dict(zip(example.positions, example.labels, strict=True))
    return [IGNORED, *(scored.get(position, IGNORED) for position in range(len(example.ids) - 1))]


def _sizes(examples: Examples) -> list[int]:
    return [response_bytes([record]) for record in examples.records]
