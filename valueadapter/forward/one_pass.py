"""Calls of several networks of one body as one forward pass, each with the cache, mask and positions of its own.

A step of generation reads every weight for a handful of rows, so that the rows of a second network cost little where
the weights are the same. Knows neither texts nor vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)
from transformers.masking_utils import create_masks_for_generate

from valueadapter.adapter.shared_body import SharedBody
from valueadapter.forward.ragged_cache import RowLayer
from valueadapter.forward.steps import logits_of, turns_with_length

_MOST_TOKENS = 1024
_MOST_LOGITS = 64
"""Tokens that are read in one pass of several calls, and rows of logits that it gives. With more the arithmetic costs,
not the reading of weights, and each alone is as fast and holds less at a time."""
_SAID = {"input_ids", "attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep"}
_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer, RowLayer)
Name = TypeVar("Name", bound=Hashable)
_Masks = dict[str, torch.Tensor]


class Refined(NamedTuple):
    """A base token that got a better value than the map's."""

    row: int
    position: int
    """Its number among the wanted positions."""
    token: int
    value: float


class NetworkSaid(NamedTuple):
    """What a network says at the positions that are wanted."""

    logits: torch.Tensor
    """(batch, positions, value_vocab); 0 where there is no text yet."""
    refined: Sequence[Refined] = ()
    """In mode `chain`."""


class Pass(NamedTuple):
    """A network's call that is ready to run, and what is made of it."""

    network: PreTrainedModel
    arguments: dict[str, Any] | None
    """For its `forward`; None where there is nothing new to read."""
    said: Callable[[torch.Tensor], NetworkSaid]
    """From its logits, (batch, kept, vocab)."""

    def alone(self) -> NetworkSaid:
        """What the network says, from a pass of its own."""
        if self.arguments is None:
            return self.said(torch.empty(0))
        return self.said(logits_of(self.network, self.arguments).logits)


class OneModel:
    """A model of which several calls can be one pass, as they are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.networks = (model,)

    def speaking(self, networks: Sequence[PreTrainedModel], rows: Sequence[int]) -> AbstractContextManager[Any]:
        """As of a `SharedBody`."""
        return nullcontext(self.networks[0])


class JoinedCache(Cache):
    """Caches of several texts as one, whose rows are theirs in order: each keeps its own, here they only meet.

    Args:
        caches: one for each network.
        rows: rows of each.
    """

    def __init__(self, caches: Sequence[Cache], rows: Sequence[int]) -> None:
        self.caches, self.rows = tuple(caches), list(rows)
        super().__init__(layers=list(caches[0].layers))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each cache takes its rows; what they hold, side by side, the shorter ones filled up at the left."""
        new = torch.split(key_states, self.rows), torch.split(value_states, self.rows)
        held = [
            cache.update(keys, values, layer_idx, *args, **kwargs)
            for cache, keys, values in zip(self.caches, *new, strict=True)
        ]
        return _side_by_side([keys for keys, _ in held]), _side_by_side([values for _, values in held])


def run_together(passes: Mapping[Name, Pass], bodies: Sequence[SharedBody | OneModel]) -> dict[Name, NetworkSaid]:
    """What the networks say whose calls can be one pass of a body they have in common; the others are left to be run.

    Args:
        passes: name -> call.
        bodies: no two have a network in common.
    """
    said = {}
    for body, names in _grouped(passes, bodies):
        together = [passes[name] for name in names]
        for name, one, logits in zip(names, together, _logits(body, together), strict=True):
            said[name] = one.said(logits)
    return said


def _logits(body: SharedBody | OneModel, passes: Sequence[Pass]) -> Sequence[torch.Tensor]:
    each = [one.arguments or {} for one in passes]
    rows = [len(one["input_ids"]) for one in each]
    arguments = {
        "input_ids": torch.cat([one["input_ids"] for one in each]),
        "position_ids": torch.cat([_positions(one) for one in each]),
        "attention_mask": _joined_masks([_masks(one.network, own) for one, own in zip(passes, each, strict=True)]),
        "cache": JoinedCache([one["cache"] for one in each], rows),
        "use_cache": True,
        "logits_to_keep": each[0]["logits_to_keep"],
    }
    with body.speaking([one.network for one in passes], rows) as model:
        logits: torch.Tensor = logits_of(model, arguments).logits
    return torch.split(logits, rows)


def _grouped(
    passes: Mapping[Name, Pass], bodies: Sequence[SharedBody | OneModel]
) -> Iterator[tuple[SharedBody | OneModel, list[Name]]]:
    for body in bodies:
        alike: dict[tuple[int, int], list[Name]] = {}
        for name, one in passes.items():
            if any(one.network is network for network in body.networks) and _is_step(one.arguments or {}):
                own = one.arguments or {}
                alike.setdefault((own["input_ids"].shape[1], own["logits_to_keep"]), []).append(name)
        for (length, keep), names in alike.items():
            rows = sum(len((passes[name].arguments or {})["input_ids"]) for name in names)
            if len(names) > 1 and rows * length <= _MOST_TOKENS and rows * (keep or length) <= _MOST_LOGITS:
                yield body, names


def can_join(network: PreTrainedModel) -> bool:
    """Whether a network takes masks of any form, and caches in which rows of several networks can meet."""
    model = network.get_base_model() if hasattr(network, "get_base_model") else network
    attends = model.config._attn_implementation in ("sdpa", "eager")
    # where rotary embeddings depend on the longest row, a row would turn by its neighbours' length
    return bool(attends and model._supports_attention_backend and not turns_with_length(model))


def _is_step(arguments: Mapping[str, Any]) -> bool:
    """Whether a call goes on from a cache and says nothing but what every model takes."""
    said = {key for key, value in arguments.items() if value is not None and value is not False}
    if not said <= _SAID or "input_ids" not in said or not isinstance(arguments.get("logits_to_keep"), int):
        return False
    cache, positions = arguments.get("cache"), arguments.get("position_ids")
    ordinary = isinstance(cache, Cache) and all(type(layer) in _LAYERS for layer in cache.layers)
    if positions is None:  # some count them from the mask, so that they are known where there is no padding alone
        mask = arguments.get("attention_mask")
        return ordinary and (mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2 and bool(mask.all())))
    return ordinary and positions.dim() == 2


def _positions(arguments: Mapping[str, Any]) -> torch.Tensor:
    """(batch, seq) positions, counted from what is cached where nobody says them."""
    ids, said = arguments["input_ids"], arguments.get("position_ids")
    if said is None:
        said = torch.arange(ids.shape[1], device=ids.device)[None] + arguments["cache"].get_seq_length()
    return said.expand(len(ids), -1)  # type: ignore[no-any-return]


def _masks(network: PreTrainedModel, arguments: Mapping[str, Any]) -> _Masks:
    """For each kind of layer (one, "", where they are all alike) who sees whom: (batch, 1, seq, keys)."""
    ids, cache, given = arguments["input_ids"], arguments["cache"], arguments.get("attention_mask")
    config = network.config.get_text_config()
    if not isinstance(given, Mapping):
        like = torch.empty(*ids.shape, 0, dtype=network.dtype, device=ids.device)
        given = create_masks_for_generate(config, like, given, cache, arguments.get("position_ids"))
    kinds = list(getattr(config, "layer_types", None) or [])
    made = given if isinstance(given, Mapping) else {"": given}
    # transformers leaves a mask out where every token sees all that is before it
    return {
        kind: _causal(ids, cache, kinds.index(kind) if kind in kinds else 0) if mask is None else mask
        for kind, mask in made.items()
    }


def _causal(ids: torch.Tensor, cache: Cache, layer: int) -> torch.Tensor:
    length = ids.shape[1]
    keys, first = cache.get_mask_sizes(length, layer)
    past = int(cache.get_seq_length(layer))
    seen = torch.ones(length, keys, dtype=torch.bool, device=ids.device).tril(past - first)
    return seen.expand(len(ids), 1, -1, -1)


def _joined_masks(each: Sequence[_Masks]) -> torch.Tensor | _Masks:
    kinds = list(each[0])
    joined = {kind: _side_by_side_masks([masks[kind] for masks in each]) for kind in kinds}
    return joined[""] if kinds == [""] else joined


def _side_by_side_masks(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = max(mask.shape[-1] for mask in masks)
    return torch.cat([pad(mask, (longest - mask.shape[-1], 0), value=_hiding(mask.dtype)) for mask in masks])


def _hiding(dtype: torch.dtype) -> float:
    return 0 if dtype == torch.bool else torch.finfo(dtype).min


def _side_by_side(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """(rows, heads, keys, size) each, as one; what a shorter one lacks is 0, which its mask hides."""
    lengths = [one.shape[2] for one in states]
    if min(lengths) == max(lengths):
        return torch.cat(list(states))
    rows, shape = sum(len(one) for one in states), states[0].shape
    joined = states[0].new_zeros(rows, shape[1], max(lengths), shape[3])
    for one, place in zip(states, torch.split(joined, [len(one) for one in states]), strict=True):
        place[:, :, -one.shape[2] :] = one
    return joined
