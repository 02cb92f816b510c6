"""Scores one adapter on many bases: kept hidden states of the bases, and one run of the network per vocabulary.

Only a cascade, whose network reads what the base predicts, needs the whole model. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from studies.curves import SCALES, Curve, nats_at_scales
from studies.states import Encoded, States, Tokens, by_length, encoded, states_of
from studies.store import Store
from studies.targets import Target
from studies.tasks import Record
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.base_prefix import network_prefixes
from valueadapter.data import Collator
from valueadapter.errors import AlignmentError, IncompatibleBaseError, UnsupportedModeError
from valueadapter.evaluation import response_bytes
from valueadapter.link import Link
from valueadapter.prefix import BasePrefix, begins_texts, prefix_ids
from valueadapter.value_logits import Inputs, Term, fit_width, value_logits

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
    groups: dict[str, tuple[Link | None, list[Target]]] = {}
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
    adapter: ValueAdapter, link: Link | None, members: list[Target], examples: Examples, store: Store
) -> dict[str, Curve]:
    """Bases of one vocabulary: the network runs once over the examples, and each base's head over its hidden states."""
    states = {target.name: states_of(target, examples.records, examples.prefix, store) for target in members}
    nats = {name: torch.zeros(len(one.hidden), len(SCALES)) for name, one in states.items()}
    tokenizer = adapter.tokenizer if link is None else members[0].tokenizer
    term = _term(adapter, link, examples.prefix, tokenizer)
    width = adapter.config.vocabulary.logits_width if link is None else link.alignment.base.logits_width
    for batch in by_length(encoded(examples.records, tokenizer)):
        added = _value_logits(term, batch, tokenizer, width)
        for target in members:
            own = states[target.name]
            rows = own.tokens.rows([example.number for example in batch])
            base = target.head(own.hidden[rows].float())
            nats[target.name][rows] = nats_at_scales(base, fit_width(added, base.shape[-1]), own.tokens.labels[rows])
    sizes = _sizes(examples)
    return {name: Curve(states[name].tokens, nats[name], sizes, len(examples.held_out)) for name in states}


def _term(adapter: ValueAdapter, link: Link | None, prefix: str | None, tokenizer: PreTrainedTokenizerBase) -> Term:
    """The adapter as it acts at scale 1, on bases with this tokenizer that read this prefix."""
    networks = tuple(network.eval() for network in adapter.networks)
    names = tuple(f"study.{index}" for index in range(len(networks)))
    read: tuple[BasePrefix | None, ...] = ()
    if prefix is not None and adapter.reads_prefix:
        start = tokenizer.bos_token_id if begins_texts(tokenizer) else None
        base = BasePrefix(networks[0], prefix_ids(prefix, tokenizer), start)  # for its tokens alone
        read = network_prefixes(adapter, names, link, prefix, base)
    weights = tuple(spec.coefficient for spec in adapter.config.networks)
    return Term("study", names, networks, weights, 1.0, link, prefixes=read)


def _value_logits(term: Term, batch: list[Encoded], tokenizer: PreTrainedTokenizerBase, width: int) -> torch.Tensor:
    """What is added to the base's logits before each response token: (tokens of the batch, base_vocab)."""
    collated = Collator(tokenizer.pad_token_id or 0)([{"input_ids": e.ids, "labels": e.ids} for e in batch])
    keep = max(len(example.ids) - example.positions[0] for example in batch)
    inputs = Inputs(
        input_ids=collated["input_ids"],
        attention_mask=collated["attention_mask"],
        position_ids=collated["position_ids"],
        logits_to_keep=keep,
        use_cache=False,
        cache=None,
        base_logits=torch.empty(len(batch), keep, width, device="meta"),  # a residual network asks for the width alone
    )
    summands = [weight * fit_width(logits, width) for logits, weight in value_logits(term, inputs)]
    added = torch.stack(summands).sum(0) if len(summands) > 1 else summands[0]
    places = [[p + keep - len(example.ids) for p in example.positions] for example in batch]
    return torch.cat([added[row, place] for row, place in enumerate(places)])


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
        collated = Collator(tokenizer.pad_token_id or 0)([{"input_ids": e.ids, "labels": e.ids} for e in batch])
        del collated["labels"]
        keep = max(len(example.ids) - example.positions[0] for example in batch)
        out = model(**collated, use_cache=False, logits_to_keep=keep, output_value_logits=True)
        for row, example in enumerate(batch):
            place = [position + keep - len(example.ids) for position in example.positions]
            value = out.value_logits[row, place]
            parts.append((example, nats_at_scales(out.logits[row, place] - value, value, torch.tensor(example.labels))))
    parts.sort(key=lambda part: part[0].number)
    tokens = Tokens.of([example for example, _ in parts], tokenizer)
    return Curve(tokens, torch.cat([nats for _, nats in parts]), _sizes(examples), len(examples.held_out))


def _sizes(examples: Examples) -> list[int]:
    return [response_bytes([record]) for record in examples.records]
