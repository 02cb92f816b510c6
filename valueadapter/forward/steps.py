"""One model's own part in a step of generation: what it is given, and what it says; knows no other model.

Many classes prepare each step in a way of their own: Mamba takes a mask with the prompt only, Phi-3 reads everything
anew where its positions change, CPM-Ant wants all ids each time, XLNet adds a token. So each model's own
`prepare_inputs_for_generation` makes that model's inputs, and nothing here stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer

from valueadapter.adapter.causal_lm import in_its_words, takes
from valueadapter.compat import CACHE_NAMES, cache_in

Steps = Mapping[Any, Mapping[str, Any]]
"""Part -> what that model's own preparation made of a step."""
STEPS = "value_adapter_steps"
"""The argument of `forward` under which `generate` hands them on."""
_SAID_ELSEWHERE = (*CACHE_NAMES, "use_cache", "logits_to_keep")


def keeps_cache(model: Any) -> bool:
    """Whether a model can go on from a transformers `Cache`; RWKV, XLNet and others keep a state of another kind."""
    return bool(takes(model, "cache") and model._supports_default_dynamic_cache())


def reads_text(model: Any) -> bool:
    """Whether a model can read tokens of its own at places of its own: it is told positions, and keeps a cache."""
    return keeps_cache(model) and bool(takes(model, "position_ids"))


def turns_with_length(model: Any) -> bool:
    """Whether a model's rotary embeddings depend on how long the text is (Phi-3's longrope, dynamic NTK).

    Beyond a switch every position is turned otherwise, so that keys of a shorter text are of no use.
    """

    def kinds(settings: Any) -> Iterator[object]:
        if isinstance(settings, Mapping):  # one for all layers, or by their kind
            yield settings.get("rope_type", settings.get("type"))
            for inner in settings.values():
                yield from kinds(inner)

    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    return any(kind in ("longrope", "dynamic") for one in found for kind in kinds(one))


def longest_alike(model: Any) -> int | None:
    """Tokens up to which the keys of a text's beginning are of use whatever follows, in a model that turns by length.

    Longrope has a second set of rotary factors beyond this length, and dynamic NTK another base; None for other models.
    """
    if not turns_with_length(model):
        return None
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, Mapping))]
    found = [kind.get("original_max_position_embeddings") for kind in kinds]
    return min((int(one) for one in found if one), default=getattr(config, "max_position_embeddings", None))


def has_read(cache: Cache) -> bool:
    """Whether a cache holds anything, of whatever kind its layers are."""
    for layer in cache.layers:
        if any(getattr(layer, "has_previous_state", {}).values()):
            return True
        if hasattr(layer, "get_seq_length") and int(layer.get_seq_length()) > 0:
            return True
    return False


def empty(cache: Any) -> None:
    """Empties a cache. Before transformers 5.24 `reset` leaves zeros where keys were, which count as text."""
    cache.reset()
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            layer.keys = layer.values = None
            layer.is_initialized = False


def prepares_otherwise(model: Any) -> bool:
    """Whether a model's class has a preparation of its own."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = getattr(type(inner), "prepare_inputs_for_generation", None)
    return own is not GenerationMixin.prepare_inputs_for_generation


def prepared_by(
    model: Any,
    input_ids: torch.Tensor,
    *,
    cache: Cache | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    **how: Any,
) -> tuple[dict[str, Any], bool]:
    """What a model's own preparation makes of a step.

    Args:
        model: the model.
        input_ids: (batch, seq) the whole text in the model's ids, or where `how` does not say how many are new, those.
        cache: the model's own cache.
        attention_mask: (batch, past + seq), or None.
        position_ids: (batch, seq), or None.
        how: `next_sequence_length`, `is_first_iteration`, `use_cache`, `logits_to_keep`, and what else the model takes.

    Returns:
        Its inputs, without cache and logits to keep, which the caller knows; and whether it wants to read the whole
        text anew, without what is cached.
    """
    given = {"attention_mask": attention_mask, "cache": cache}
    if position_ids is not None and takes(model, "position_ids"):
        given["position_ids"] = position_ids
    given = in_its_words(model, {**given, **how}, "prepare_inputs_for_generation")
    made: dict[str, Any] = model.prepare_inputs_for_generation(input_ids, **given)
    anew = cache is not None and cache_in(made) is None
    own = {key: value for key, value in made.items() if key not in _SAID_ELSEWHERE}
    return {"attention_mask": None, "position_ids": None, **own}, anew


def logits_of(model: Any, arguments: Mapping[str, Any]) -> Any:
    """A model's output, with logits of the positions to keep, also where it does not know of keeping.

    Args:
        model: the model.
        arguments: for its `forward`.
    """
    keep = arguments.get("logits_to_keep", 0)
    given = {key: value for key, value in arguments.items() if key != "position_ids" or takes(model, key)}
    given = in_its_words(model, given)
    if takes(model, "logits_to_keep"):
        return model(**given, return_dict=True)
    given.pop("logits_to_keep", None)
    out = model(**given, return_dict=True)
    chosen = slice(-keep, None) if isinstance(keep, int) else keep
    out.logits = out.logits[:, chosen]
    return out
