"""What the networks of one adapter say of a text, in the base's vocabulary; knows neither the base nor its logits.

Three ways, by how the vocabularies relate: the networks read the base's ids; they read them under their own ids, which
correspond one to one; or they read the base's text in tokens of their own.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.causal_lm import execution_device, fit_width, logits_width, moved
from valueadapter.adapter.shared_body import SharedBody
from valueadapter.artifact.config import Connection, Weights
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.alignment_modes import CANDIDATES, Centring
from valueadapter.forward.cache import ValueAdapterCache
from valueadapter.forward.cascade import read_embeddings
from valueadapter.forward.one_pass import NetworkSaid, Pass, Refined
from valueadapter.forward.positions import check_not_packed
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.row_plan import Prompt
from valueadapter.forward.steps import Steps
from valueadapter.forward.text_reader import TextReader
from valueadapter.vocabulary.bridge import VocabularyBridge
from valueadapter.vocabulary.retokenizer import RetokenizingRules


class Term(NamedTuple):
    """An adapter that acts now."""

    name: str
    """What it is called on this model."""
    parts: tuple[str, ...]
    """Names of its networks in the cache: `<adapter>.<serial>.<index>`."""
    networks: tuple[PreTrainedModel, ...]
    weights: Weights
    """What each summand counts for at scale 1."""
    scale: float
    """Never 0."""
    tokenizer: PreTrainedTokenizerBase
    """The adapter's."""
    link: VocabularyBridge | None
    """None where the base has the adapter's vocabulary."""
    refinement: Centring | None = None
    """Where the base's likeliest tokens get better values than the map's (mode `chain`)."""
    connection: Connection = "residual"
    """What the networks read; other than tokens only where they read in step with the base."""
    prefixes: tuple[BasePrefix | None, ...] = ()
    """For each network what it reads before the prompt; empty where none reads anything."""
    ends: tuple[int, ...] = ()
    """The tokens that end a text of the base."""

    def reader(self, part: str) -> TextReader:
        """An empty reader for one of the networks."""
        link = cast(VocabularyBridge, self.link)
        width = link.alignment.value.logits_width
        return TextReader(cast(RetokenizingRules, link.reading), width, self.refinement, self.prefix_of(part))

    def prefix_of(self, part: str) -> BasePrefix | None:
        """What one of the networks reads before the prompt."""
        return self.prefixes[self.parts.index(part)] if self.prefixes else None

    @property
    def of_base(self) -> float:
        """What this adapter adds of the base's own logits: scale · (weight of the base - 1)."""
        return self.scale * (self.weights.base - 1)

    @property
    def of_end(self) -> float:
        """What it adds to the logits of the tokens that end a text, in nats."""
        return self.scale * self.weights.end

    @property
    def reads_text(self) -> bool:
        """Whether the networks read the text in tokens of their own."""
        return self.link is not None and self.link.reading is not None

    @property
    def reads_prediction(self) -> bool:
        """Whether the networks read what the base expects, for which its logits are needed at every position."""
        return self.connection != "residual"


def shared_parts(terms: Sequence[Term]) -> frozenset[str]:
    """Names of the networks that occur more than once."""
    counts = Counter(part for term in terms for part in term.parts)
    return frozenset(part for part, count in counts.items() if count > 1)


@dataclass
class Inputs:
    """One call's input, as `ValueAdapterForCausalLM.forward` describes it."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | Mapping[str, Any] | None
    position_ids: torch.Tensor | None
    logits_to_keep: int | torch.Tensor
    use_cache: bool
    cache: ValueAdapterCache | None
    base_logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(batch, kept, base_vocab): what the base says, once it has."""
    prompts: Sequence[Prompt] | None = None
    """Each row's prompt in both forms, where the term reads it so."""
    said_by_part: dict[str, NetworkSaid] = field(default_factory=dict)
    """What networks of several terms, or of one body with others, have said in this call, by name."""
    passes: dict[str, Pass] = field(default_factory=dict)
    """Calls of networks that are made and not run yet, by name."""
    shared: frozenset[str] = frozenset()
    """Names of these networks."""
    packing: Mapping[str, Any] = field(default_factory=dict)
    """What says where the texts of packed rows begin, besides the positions; see `positions.PACKING`."""
    prediction: torch.Tensor | None = None
    """(batch, seq, base_vocab): the base's own logits at every position, where a term reads them."""
    steps: Steps = field(default_factory=dict)
    """What the own preparation of each network that reads in step with the base made of this call."""

    @functools.cached_property
    def bodies(self) -> Sequence[SharedBody]:
        """What networks of this call have in common, where they can speak together: without gradients."""
        if self.cache is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return ()
        return [body for body in self.cache.bodies or () if body.is_as_it_was()]

    def keep(self, part: str, said: NetworkSaid) -> NetworkSaid:
        """What a network said; remembered where another term has the same network."""
        if part in self.shared:
            self.said_by_part[part] = said
        return said


def value_logits(
    term: Term, inputs: Inputs, *, apart: list[torch.Tensor] | None = None
) -> Iterator[tuple[torch.Tensor, float]]:
    """What the networks of an adapter add to the base's logits, summand by summand.

    Args:
        term: the adapter.
        inputs: of the call.
        apart: takes up each network's own logits in the base's vocabulary, before any weight.

    Yields:
        Logits of (batch, kept, base_vocab), where the vocabulary is the same perhaps of another padded width; and the
        weight to add them with. Those of another vocabulary are summed in theirs first: one projection serves all, and
        where several of their tokens end a text, it is not the sum of each network's.
    """
    weights = term.weights.networks
    if term.link is None:
        for said, weight in zip(_said(term, inputs), weights, strict=True):
            if apart is not None:
                apart.append(said.logits)
            yield said.logits, term.scale * weight
        return
    alignment = term.link.alignment
    total: torch.Tensor | None = None
    refined: list[Refined] = []
    for said, weight in zip(_said(term, inputs), weights, strict=True):
        own = fit_width(said.logits, alignment.value.logits_width)
        if apart is not None:
            apart.append(_projected(term, own, said.refined))
        weighted = own if weight == 1 else weight * own
        total = weighted if total is None else total + weighted.to(total.device)
        refined += [one._replace(value=weight * one.value) for one in said.refined]
    yield _projected(term, cast(torch.Tensor, total), refined), term.scale


def _projected(term: Term, logits: torch.Tensor, refined: Sequence[Refined]) -> torch.Tensor:
    """Logits over the adapter's vocabulary in the base's."""
    projected = cast(VocabularyBridge, term.link).alignment.project(logits)
    if refined:  # better values take the place of the map's, which these tokens would have besides
        rows, positions, tokens, values = zip(*refined, strict=True)
        projected[list(rows), list(positions), list(tokens)] = projected.new_tensor(values)
    return projected


def said_by(term: Term, inputs: Inputs, part: str) -> NetworkSaid:
    """What one network of an adapter says, from a pass of its own."""
    return dict(_passes(term, inputs, {part: term.networks[term.parts.index(part)]}))[part].alone()


def in_base_vocabulary(term: Term, said: NetworkSaid, width: int) -> torch.Tensor:
    """What a network of an adapter said, (batch, positions, width), `width` being that of the base's logits."""
    if term.link is None:
        return fit_width(said.logits, width)
    return _projected(term, fit_width(said.logits, term.link.alignment.value.logits_width), said.refined)


def passes_of_bodies(
    terms: Sequence[Term], inputs: Inputs, prompts: Sequence[Sequence[Prompt] | None]
) -> dict[str, Pass]:
    """The calls of networks that are of one body with others, which `value_logits` makes for the others when they run.

    Args:
        terms: the acting adapters.
        inputs: of the call, which keep these calls for those that are not run elsewhere.
        prompts: for each adapter each row's prompt as its networks read it, or None.

    Returns:
        Name -> call.
    """
    shared = {id(network) for body in inputs.bodies for network in body.networks}
    for term, inputs.prompts in zip(terms, prompts if shared else (), strict=bool(shared)):
        parts = zip(term.parts, term.networks, strict=True)
        known = inputs.passes.keys() | inputs.said_by_part.keys()
        own = {part: network for part, network in parts if id(network) in shared and part not in known}
        inputs.passes |= dict(_passes(term, inputs, own))
    return dict(inputs.passes)


def _said(term: Term, inputs: Inputs) -> Iterator[NetworkSaid]:
    """What each network says, at the kept positions in the order asked for."""
    for part, network in zip(term.parts, term.networks, strict=True):
        if part in inputs.said_by_part:
            yield inputs.said_by_part[part]
            continue
        made = inputs.passes.pop(part, None)
        one = dict(_passes(term, inputs, {part: network}))[part] if made is None else made
        yield inputs.keep(part, one.alone())


def _passes(term: Term, inputs: Inputs, networks: Mapping[str, PreTrainedModel]) -> Iterator[tuple[str, Pass]]:
    """The calls of some of an adapter's networks, by name."""
    if term.reads_text:
        yield from _as_text(term, inputs, networks)
        return
    ids = inputs.input_ids if term.link is None else term.link.alignment.value_ids(inputs.input_ids)
    for part, network in networks.items():
        yield part, _in_step(term, inputs, part, network, ids.to(execution_device(network)))


def _in_step(term: Term, inputs: Inputs, part: str, network: PreTrainedModel, ids: torch.Tensor) -> Pass:
    """A network over one id for each of the base's, in the base's positions."""
    common = {"use_cache": inputs.use_cache, "logits_to_keep": inputs.logits_to_keep, **inputs.packing}
    if inputs.position_ids is not None:
        common["position_ids"] = inputs.position_ids
    read = {"input_ids": readable(ids, network, inputs.base_logits.shape[-1])}
    if (prefix := term.prefix_of(part)) is not None:
        return _after_prefix(network, prefix, read["input_ids"], inputs)
    arguments = moved({**of_part(part, inputs.attention_mask, inputs.cache), **common}, ids.device)
    arguments |= {**read, **inputs.steps.get(part, {})}
    if term.reads_prediction:
        alignment = term.link.alignment if term.link is not None else None
        prediction = cast(torch.Tensor, inputs.prediction)
        # own preparation may have cut the ids to what the network has not read; the prediction must be of the same
        text = arguments.pop("input_ids")
        if text.shape[1] != prediction.shape[1]:
            raise UnsupportedModeError(
                f"a {type(network).__name__} reads {text.shape[1]} tokens where the base reads "
                f"{prediction.shape[1]}, so that it cannot read the base's prediction of each (connection "
                f"'{term.connection}')"
            )
        arguments["inputs_embeds"] = read_embeddings(term.connection, network, text, prediction, alignment)
    return Pass(network, arguments, NetworkSaid)


def _after_prefix(network: PreTrainedModel, prefix: BasePrefix, ids: torch.Tensor, inputs: Inputs) -> Pass:
    """A network that reads the prefix as the base does."""
    mask, positions, keep = moved(
        {0: inputs.attention_mask, 1: inputs.position_ids, 2: inputs.logits_to_keep}, ids.device
    ).values()
    call = prefix.call(ids, mask, positions, inputs.cache, keep)
    arguments = {**call.arguments, **inputs.steps.get(prefix.part, {})}
    return Pass(network, arguments, lambda logits: NetworkSaid(call.cut(logits)))


def _check_frozen(network: PreTrainedModel) -> None:
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in network.parameters()):
        raise UnsupportedModeError(
            "a network that reads the prefix in tokens of its own takes no gradients: the prefix's keys and values are "
            "computed once. Train on a base of its vocabulary, or with base_prefix=None"
        )


def _as_text(term: Term, inputs: Inputs, networks: Mapping[str, PreTrainedModel]) -> Iterator[tuple[str, Pass]]:
    """Networks over their own tokens of the base's text, at the kept positions in the order asked for."""
    mask = inputs.attention_mask
    if isinstance(mask, Mapping):
        raise UnsupportedModeError(
            "attention masks that are prepared for one kind of layer do not say which tokens are padding; pass the "
            "attention_mask of (batch, past + seq)"
        )
    check_not_packed(inputs.packing, len(inputs.input_ids))
    positions, order = _positions(inputs.logits_to_keep, inputs.input_ids.shape[1])
    candidates = None
    if term.refinement is not None:
        # readers count rising positions; the base's logits are in the order asked for, where one may stand twice
        places = None if order is None else [order.index(number) for number in range(len(positions))]
        base = inputs.base_logits if places is None else inputs.base_logits[:, places]
        count = min(CANDIDATES, base.shape[-1])
        candidates = base.topk(count, dim=-1).indices.tolist()
    for part, network in networks.items():
        if term.prefix_of(part) is not None:
            _check_frozen(network)
        # without a cache a reader lives for this call alone
        reader = cast(TextReader, inputs.cache.parts[part]) if inputs.cache is not None else term.reader(part)
        one = reader.call(
            network,
            inputs.input_ids,
            mask,
            positions,
            position_ids=inputs.position_ids,
            prompts=inputs.prompts,
            candidates=candidates,
            remember=inputs.cache is not None,
        )
        yield part, one if order is None else _in_order(one, order)


def _in_order(one: Pass, order: list[int]) -> Pass:
    """The same call, and what it says in the order in which it was asked for."""
    return one._replace(said=lambda logits: _reordered(one.said(logits), order))


def _reordered(said: NetworkSaid, order: list[int]) -> NetworkSaid:
    """The positions as they were asked for, from those that rise."""
    refined = [
        one._replace(position=place)
        for one in said.refined
        for place, number in enumerate(order)
        if number == one.position
    ]
    return NetworkSaid(said.logits[:, order], refined)


def _positions(logits_to_keep: int | torch.Tensor, length: int) -> tuple[list[int], list[int] | None]:
    """Which positions' logits are wanted, rising; and for each that was asked for its number among them, where these
    are not the same."""
    if isinstance(logits_to_keep, int):
        return list(range(max(0, length - logits_to_keep) if logits_to_keep else 0, length)), None
    asked = [int(position) % length for position in torch.arange(length)[logits_to_keep.cpu()]]
    rising = sorted(set(asked))
    return rising, None if rising == asked else [rising.index(position) for position in asked]


def readable(ids: torch.Tensor, network: PreTrainedModel, base_width: int) -> torch.Tensor:
    """Ids that only the base has rows for are padding of its logits: no token, read as the network's id 0."""
    width = logits_width(network)
    return ids if base_width <= width else ids.masked_fill(ids >= width, 0)


def of_part(
    part: str, attention_mask: torch.Tensor | Mapping[str, Any] | None, cache: ValueAdapterCache | None
) -> dict[str, Any]:
    """The mask, which is common, and the cache of one of the models."""
    return {"attention_mask": attention_mask, "cache": cache.parts[part] if cache is not None else None}
