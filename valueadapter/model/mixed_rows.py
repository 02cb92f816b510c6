"""Another choice of adapters for each row of a batch: rows that agree run together, each group with its own cache.

A group is an ordinary call of the model for some of the rows, with just its adapters acting. So every row gets what it
gets when it runs alone: its adapters, the prefix that they bring, and nothing of its neighbours'. The calls go side by
side, so that the base runs once for all rows, and so does a body of several networks. Computes no logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from valueadapter.compat import carried
from valueadapter.errors import AdapterNameError, UnsupportedModeError
from valueadapter.forward.cache import ValueAdapterCache
from valueadapter.forward.one_pass import OneModel, Pass, can_join, run_together
from valueadapter.forward.steps import STEPS
from valueadapter.model.chat import of_rows
from valueadapter.model.outputs import ValueAdapterOutput
from valueadapter.model.registry import AttachedAdapters
from valueadapter.model.thread_scope import Names
from valueadapter.model.wrapped import WrappedModel

AdapterNames = Names
BASE_ALONE = "__base__"
LOSS_ARGUMENTS = ("num_items_in_batch", "shift_labels")


class RowsCache(Cache):
    """One cache for each group of rows; to `generate` it looks like one cache of the whole batch.

    Attributes:
        groups: names of the adapters that act -> the cache of the rows that they act on.
        rows: the same names -> numbers of these rows, rising.
    """

    def __init__(self, groups: Mapping[tuple[str, ...], ValueAdapterCache], rows: Mapping[tuple[str, ...], list[int]]):
        self.groups, self.rows = dict(groups), dict(rows)
        self.layer_class_to_replicate = None  # layers are the groups' business
        self.offloading = False

    @property
    def layers(self) -> list[Any]:
        """The layers of all groups; the objects themselves, not copies."""
        return [layer for group in self.groups.values() for layer in group.layers]

    @property
    def is_compileable(self) -> bool:
        """Whether `generate` may make masks for the whole batch: never, since groups need their own."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the caller's that have been seen, which is the same in all groups."""
        return next(iter(self.groups.values())).get_seq_length(layer_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last tokens of every row."""
        for group in self.groups.values():
            group.crop(tokens_to_remove)

    def reset(self) -> None:
        """Empties all groups."""
        for group in self.groups.values():
            group.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorders rows within their groups, as beams of one prompt do."""
        for names, group in self.groups.items():
            place = {row: index for index, row in enumerate(self.rows[names])}
            group.reorder_cache(torch.tensor([place[int(beam_idx[row])] for row in self.rows[names]]).to(beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        for names, group in self.groups.items():
            group.batch_repeat_interleave(repeats)
            self.rows[names] = [row * repeats + again for row in self.rows[names] for again in range(repeats)]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some rows; a group of which none is left goes."""
        everyone = max(row for rows in self.rows.values() for row in rows) + 1
        kept = torch.arange(everyone, device=indices.device)[indices].tolist()
        for names, group in list(self.groups.items()):
            place = {row: index for index, row in enumerate(self.rows[names])}
            if not place.keys() & set(kept):
                del self.groups[names], self.rows[names]
                continue
            group.batch_select_indices(torch.tensor([place[row] for row in kept if row in place]).to(indices.device))
            self.rows[names] = [index for index, row in enumerate(kept) if row in place]


@dataclass(frozen=True)
class Group:
    """Rows on which the same adapters act."""

    names: tuple[str, ...]
    rows: list[int]


def groups_of(
    attached: AttachedAdapters, adapter_names: AdapterNames, batch: int, *, repeated: bool = False
) -> list[Group]:
    """The rows of a batch by the adapters that act on them, each name checked.

    Args:
        attached: the adapters that there are.
        adapter_names: one entry for each prompt.
        batch: rows.
        repeated: whether a prompt may have several rows, one after the other: within `generate`, which has counted
            the prompts, it has one for each beam or answer.

    Raises:
        AdapterNameError: unknown names, or not one entry for each prompt.
    """
    count = 0 if isinstance(adapter_names, str) else len(adapter_names)
    if not count or (batch % count if repeated else batch != count):
        raise AdapterNameError(
            f"adapter_names must have one entry for each of the {batch} rows, a name, a list of names, or None for "
            f"the base alone; got {adapter_names!r}"
        )
    repeats = batch // count
    found: dict[tuple[str, ...], list[int]] = {}
    for index, entry in enumerate(adapter_names):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        names = tuple(name for name in names if name != BASE_ALONE)
        for name in names:
            attached.get(name)
        if len(set(names)) != len(names):
            raise AdapterNameError(f"an adapter can act once on a row; got {list(names)}. Raise its scale instead")
        found.setdefault(names, []).extend(range(index * repeats, (index + 1) * repeats))
    return [Group(names, rows) for names, rows in found.items()]


def rows_cache(model: WrappedModel, config: Any, groups: list[Group], given: Any, how: tuple[Any, ...]) -> Any:
    """What `generate` carries: one cache for each group, made as for a batch of its own."""
    if given is not None:
        _take_up(given, groups)
        given._is_user_defined = True
        return given
    caches: dict[tuple[str, ...], Any] = {}
    for group in groups:
        prepared: dict[str, Any] = {}
        with model.attached.scoped(group.names):
            model._prepare_cache_for_generation(config, prepared, *how)
        caches[group.names] = prepared.get(carried())
    if any(cache is None for cache in caches.values()):
        return None
    _find_bodies(model, list(caches.values()), groups)
    return RowsCache(caches, {group.names: group.rows for group in groups})


def forward_rows(
    model: WrappedModel,
    adapter_names: AdapterNames,
    input_ids: torch.Tensor | None,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    *,
    repeated: bool,
    cache: Any,
    messages: Any,
    labels: torch.Tensor | None,
    **kwargs: Any,
) -> ValueAdapterOutput:
    """One call for each group, and the rows in their order again; arguments as `forward`."""
    if input_ids is None:
        raise UnsupportedModeError("adapter_names choose among networks, which read token ids; pass input_ids")
    groups = groups_of(model.attached, adapter_names, len(input_ids), repeated=repeated)
    if len(groups) == 1:
        how = {"cache": cache, "messages": messages, "labels": labels, "return_dict": True, **kwargs}
        with model.attached.scoped(groups[0].names):
            return model(input_ids, attention_mask, position_ids, **how)  # type: ignore[no-any-return]
    if attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2):
        raise UnsupportedModeError("adapter_names need the attention_mask of (batch, past + seq)")
    if cache is not None:
        _take_up(cache, groups)
    for_loss = {key: kwargs.pop(key) for key in LOSS_ARGUMENTS if key in kwargs}
    given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
    outputs = _run_groups(model, groups, given, cache=cache, messages=messages)
    if cache is None and outputs[0].cache is not None:
        made = {group.names: out.cache for group, out in zip(groups, outputs, strict=True)}
        cache = RowsCache(made, {group.names: group.rows for group in groups})
    order = torch.tensor([row for group in groups for row in group.rows]).argsort()
    logits, loss = _in_order([out.logits for out in outputs], order), None
    if labels is not None:
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **for_loss)
    return _joined(outputs, order, loss, logits, cache)


def _run_groups(
    model: WrappedModel, groups: list[Group], given: dict[str, Any], *, cache: RowsCache | None, messages: Any
) -> list[ValueAdapterOutput]:
    """One call of the model for each group, with its rows of everything and its adapters acting."""
    batch, steps = len(given["input_ids"]), given.pop(STEPS, {})
    calls = []
    for group in groups:
        own = {**_of_rows(given, group, batch), **steps.get(group.names, {})}
        own["logits_to_keep"] = given["logits_to_keep"]
        own["messages"] = None if messages is None else of_rows(messages, group.rows, batch)
        own["cache"] = None if cache is None else cache.groups[group.names]
        with model.attached.scoped(group.names):
            model.attached.note_training()
            calls.append(cast(Any, model).begin(**own))
    if cache is None:
        _find_bodies(model, [call.inputs.cache for call in calls], groups)
    for call in calls[1:]:
        call.inputs.bodies = calls[0].inputs.bodies  # which looks at the networks of all
    joins = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    config = model.base.config
    joins_base = joins and can_join(model.base) and not (config.output_hidden_states or config.output_attentions)
    base = [OneModel(model.base)] if joins_base else []
    of_base = run_together(dict(enumerate(call.base_pass for call in calls)), base)
    made: dict[tuple[int, str], Pass] = {}
    for index, (group, call) in enumerate(zip(groups, calls, strict=True)):
        with model.attached.scoped(group.names):
            call.run_base(of_base[index].logits if index in of_base else None)
            made |= {(index, part): one for part, one in call.passes().items()}
    said = run_together(made, calls[0].inputs.bodies)
    outputs = []
    for index, (group, call) in enumerate(zip(groups, calls, strict=True)):
        with model.attached.scoped(group.names):
            outputs.append(call.finish({part: one for (of, part), one in said.items() if of == index}))
    return outputs


def _find_bodies(model: WrappedModel, caches: Sequence[Any], groups: list[Group]) -> None:
    """Has the caches of all groups know what the networks of all of them have in common."""
    if any(not isinstance(cache, ValueAdapterCache) for cache in caches):
        return
    networks: list[PreTrainedModel] = []
    for group in groups:
        with model.attached.scoped(group.names):
            networks += [network for term in model.attached.terms() for network in term.networks]
    bodies = model.attached.bodies.of(networks)
    for cache in caches:
        cache.bodies = bodies


def _joined(
    outputs: list[ValueAdapterOutput],
    order: torch.Tensor,
    loss: torch.Tensor | None,
    logits: torch.Tensor,
    cache: RowsCache | None,
) -> ValueAdapterOutput:
    """What the groups gave as that of one batch, its rows in their order; all at once, since the order of fields is
    that of a tuple."""
    adapters = None
    if outputs[0].each is not None:  # an adapter adds nothing to the rows on which it does not act
        names = dict.fromkeys(name for out in outputs for name in out.each or {})
        adapters = {
            name: _in_order([(out.each or {}).get(name, torch.zeros_like(out.logits)) for out in outputs], order)
            for name in names
        }
    return ValueAdapterOutput(
        loss,
        logits,
        cache,
        _each_in_order([out.hidden_states for out in outputs], order),
        _each_in_order([out.attentions for out in outputs], order),
        None if outputs[0].value_logits is None else _in_order([out.value_logits for out in outputs], order),
        adapters,
    )


def prepared_rows(model: WrappedModel, groups: list[Group], input_ids: torch.Tensor, **given: Any) -> dict[str, Any]:
    """What each group's own preparation makes of a step; arguments as `prepare_inputs_for_generation`."""
    cache, count = given.pop("cache", None), given.pop("next_sequence_length", None)
    made = {}
    for group in groups:
        own = _of_rows({**given, "input_ids": input_ids}, group, len(input_ids))
        own["cache"] = None if cache is None else cache.groups[group.names]
        with model.attached.scoped(group.names):
            made[group.names] = model.prepare_inputs_for_generation(
                own.pop("input_ids"), next_sequence_length=count, **own
            )
    new = input_ids if count is None else input_ids[:, -count:]
    given = {key: value for key, value in given.items() if key not in ("position_ids", "is_first_iteration")}
    return {**given, "input_ids": new, "cache": cache, STEPS: made}


def _of_rows(given: Mapping[str, Any], group: Group, batch: int) -> dict[str, Any]:
    """A group's rows of whatever has a row for each of the batch."""
    return {
        key: value[torch.tensor(group.rows, device=value.device)]
        if isinstance(value, torch.Tensor) and key != "logits_to_keep" and value.dim() > 1 and len(value) == batch
        else value
        for key, value in given.items()
    }


def _take_up(cache: Any, groups: list[Group]) -> None:
    """Checks that a cache is of these groups, and tells an empty one of the beams that each prompt has."""
    rows = {group.names: group.rows for group in groups}
    if isinstance(cache, RowsCache) and cache.rows.keys() == rows.keys() and cache.get_seq_length() == 0:
        cache.rows = rows  # `generate` makes it before it repeats each prompt for its beams
    if not isinstance(cache, RowsCache) or cache.rows != rows:
        raise UnsupportedModeError(
            f"this {type(cache).__name__} was not made for these adapter_names; start without a cache, or pass the one "
            "that an earlier call with the same adapter_names returned"
        )


def _in_order(parts: list[Any], order: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts)[order.to(parts[0].device)]


def _each_in_order(parts: list[Any], order: torch.Tensor) -> Any:
    """Tuples of one tensor for each layer, row by row."""
    if parts[0] is None:
        return None
    shapes = {tuple(tensor.shape[1:] for tensor in layers) for layers in parts}
    if len(shapes) > 1:
        raise UnsupportedModeError(
            "hidden states and attentions of rows behind different prefixes have different lengths; ask for them in "
            "calls of their own, one for each choice of adapters"
        )
    return tuple(_in_order(list(each), order) for each in zip(*parts, strict=True))
