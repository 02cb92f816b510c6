"""What each model's own preparation makes of a step of generation, from its own cache; runs no model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from valueadapter.adapter.causal_lm import logits_width
from valueadapter.forward.cache import BASE, ValueAdapterCache
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.steps import has_read, prepared_by
from valueadapter.forward.value_logits import Term, readable
from valueadapter.model.wrapped import WrappedModel

COMMON = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
"""What all models are given alike."""
OWN_ARGUMENTS = ("messages", "adapter_names", "output_value_logits", "value_loss")
"""Arguments of `forward` that no other model has."""


def own_steps(
    model: WrappedModel,
    input_ids: torch.Tensor,
    count: int | None,
    *,
    cache: Cache | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    only: Collection[str] | None = None,
    **how: Any,
) -> tuple[dict[str, dict[str, Any]], bool]:
    """What each model's own preparation makes of a step, and whether one of them wants to read all anew.

    A model that is about to read its prefix, and a network that reads text, prepare themselves in `forward`; one that
    has said what it says of this step prepares nothing.

    Args:
        model: whose models.
        input_ids: (batch, seq) the whole text, or where `count` is None what is read next.
        count: how many of the tokens are read next.
        cache: that of all models.
        attention_mask: (batch, past + seq), or None.
        position_ids: (batch, seq), or None.
        only: names of the models that are meant; all by default.
        how: what else `generate` hands on.
    """
    terms, steps, anew = model.attached.terms(), {}, False
    own = cache if isinstance(cache, ValueAdapterCache) else None
    before = prefixes_of(model, terms)
    for part, one, ids in in_step(model, terms, input_ids):
        if (only is not None and part not in only) or (own is not None and part in own.ahead):
            continue
        whole: tuple[Any, Any, Any] | None = ids, attention_mask, position_ids
        if part in before:
            whole = None
            if own is not None:
                whole = _behind(before[part], ids, attention_mask, position_ids, cache=own, count=count)
        if whole is None:
            continue
        more = {key: value for key, value in how.items() if part == BASE and key not in OWN_ARGUMENTS}
        more |= {key: how[key] for key in ("use_cache", "logits_to_keep", "is_first_iteration") if key in how}
        steps[part], reads_anew = prepared_by(
            one,
            whole[0],
            cache=None if own is None else own.parts[part],
            attention_mask=whole[1],
            position_ids=whole[2],
            next_sequence_length=count,
            **more,
        )
        anew = anew or reads_anew
    return steps, anew


def in_step(
    model: WrappedModel, terms: list[Term], ids: torch.Tensor
) -> list[tuple[str, PreTrainedModel, torch.Tensor]]:
    """The base, and the networks that read a token for each of its, with what they read."""
    found = {BASE: (model.base, ids)}
    for term in terms:
        if not term.reads_text:
            own = ids if term.link is None else term.link.alignment.value_ids(ids)
            width = logits_width(model.base)
            found |= {part: (network, readable(own, network, width)) for part, network in _in_term(term)}
    return [(part, one, own) for part, (one, own) in found.items()]


def _behind(
    prefix: BasePrefix,
    input_ids: torch.Tensor,
    mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    *,
    cache: ValueAdapterCache,
    count: int | None,
) -> tuple[Any, Any, Any] | None:
    """The whole text with its prefix, with which the cache begins: ids, mask and positions as the model counts them.

    Args:
        prefix: what the model reads before the text.
        input_ids: (batch, seq) the whole text, or where `count` is None what is read next.
        mask: (batch, past + seq), or None.
        position_ids: (batch, seq), or None.
        cache: the cache.
        count: how many of the tokens are read next.

    Returns:
        None where the model is about to read the prefix itself (`BasePrefix.call`).
    """
    new = input_ids if count is None else input_ids[:, -count:]
    begun, state = prefix.begin(new, mask, cache, reads_now=False)
    if state.after_padding and not has_read(cache.parts[prefix.part]):
        return None
    ids = begun
    if count is not None:
        lead = input_ids.new_tensor(prefix.ids[: state.lead]).expand(len(new), -1)
        ids = torch.cat([lead, input_ids[:, :-count], begun], dim=1)
    return ids, prefix.mask(mask, state), None if position_ids is None else position_ids + state.lead


def networks_of(terms: list[Term]) -> dict[str, PreTrainedModel]:
    """All networks, by name."""
    return {part: network for term in terms for part, network in _in_term(term)}


def aligned(base: PreTrainedModel, terms: list[Term]) -> dict[str, PreTrainedModel]:
    """The base, and the networks that read a token for each of its, by name."""
    return {BASE: base, **networks_of([term for term in terms if not term.reads_text])}


def prefixes_of(model: WrappedModel, terms: list[Term]) -> dict[str, BasePrefix]:
    """Name -> what it reads first, of the base and of each network in step with it that reads a prefix."""
    prefix = model.attached.acting_prefix()
    in_step = [(term, part) for term in terms if not term.reads_text for part in term.parts]
    read = {part: own for term, part in in_step if (own := term.prefix_of(part)) is not None}
    return read if prefix is None else {BASE: prefix, **read}


def _in_term(term: Term) -> list[tuple[str, PreTrainedModel]]:
    return list(zip(term.parts, term.networks, strict=True))
