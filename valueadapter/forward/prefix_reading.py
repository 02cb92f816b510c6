"""What a model reads before the prompt: as token ids, as keys and values computed once, and in each call.

The model is the base, or a network that stands for it. Two layouts give it the same text. Usually the prefix's keys and
values are put into the model's cache first, and everything after them shifts: `prefix, padding, prompt`. A sliding
window counts padding too, so where padding could push the prefix out of a window (or a layer keeps no keys and values)
the model reads `padding, prefix, prompt` itself. Knows nothing of adapters and their logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from valueadapter.adapter.causal_lm import execution_device, is_sharded, longest_text, takes
from valueadapter.adapter.heads import last_hidden_state
from valueadapter.adapter.model_state import Moment, moment
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.cache import BASE, PrefixState, ValueAdapterCache
from valueadapter.forward.positions import check_one_text
from valueadapter.forward.steps import has_read, logits_of, turns_with_length

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values, layer by layer, each (1, heads, tokens, size)."""


@dataclass
class BaseCall:
    """Arguments for the base, and which of what it gives are the prompt's positions."""

    arguments: dict[str, Any]
    extra: int = 0
    """Positions that the base reads besides those of the call."""

    def cut(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, read, …) -> (batch, asked, …): without the positions of the prefix."""
        return states[:, self.extra :] if self.extra else states


class BasePrefix:
    """A prefix as one model reads it.

    Args:
        base: the model, the base or a network.
        ids: the prefix's tokens.
        start: the token that begins every text of this model; None where there is none. A prompt that begins with it
            gives it up, since the prefix has begun the text already.
        part: the model's name in the cache.
    """

    def __init__(self, base: PreTrainedModel, ids: tuple[int, ...], start: int | None, *, part: str = BASE) -> None:
        self.base, self.ids, self.part = base, ids, part
        self.start = start if ids[:1] == (start,) else None
        self._states: dict[int, tuple[Moment, States]] = {}
        # keys and values can be put into a cache only where its layers keep them, and turn them by position alone
        layers = DynamicCache(config=base.config).layers
        kept = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        self._keys_and_values = kept and not turns_with_length(base)
        windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        self._window: int | None = min(windows, default=None)

    def on(self, base: PreTrainedModel) -> BasePrefix:
        """The same tokens for another base of the same vocabulary."""
        return self if base is self.base else BasePrefix(base, self.ids, self.start)

    def begin(
        self, ids: torch.Tensor, mask: torch.Tensor | None, cache: ValueAdapterCache | None, *, reads_now: bool = True
    ) -> tuple[torch.Tensor, PrefixState]:
        """Has a cache begin with the prefix, unless it has; takes the start token from the prompts that begin here.

        Args:
            ids: (batch, seq) token ids of this call.
            mask: (batch, past + seq) attention mask, or None for no padding.
            cache: the cache, whose base part is filled with the prefix; None for a call without one.
            reads_now: whether the base reads these ids next; else this only readies the cache for masks to be made.

        Returns:
            The ids as the base reads them, (batch, seq); what stands before them.

        Raises:
            UnsupportedModeError: the cache began otherwise, the rows do, or the text is too long.
        """
        state = cache.prefixes.get(self.part) if cache is not None else None
        if state is not None and state.ids == self.ids and state.begun:
            return ids, state
        past = cache.read_by(self.part) if cache is not None else 0
        self._check_beginning(state, past)
        length = past + ids.shape[1]
        self.check_length(length)

        # a row begins behind its padding, in this call, in an earlier one or in a later one (chunked prefill)
        row_starts = ids.new_zeros(len(ids)) if mask is None else _padding(mask)
        starts_here = (row_starts >= past) & (row_starts < length)
        at = (starts_here.nonzero()[:, 0], (row_starts - past)[starts_here])
        all_begun = bool((row_starts < length).all())

        # a prompt that begins with the token that begins texts gives its place to the prefix's last token, so that
        # the prefix's keys and values are needed up to that one only
        starts_again = self._starts_again(ids[at])
        lead = len(self.ids) - 1 if starts_again else len(self.ids)
        if state is None:
            state = self._first_state(row_starts, lead, length, cache, all_begun=all_begun)
            if cache is not None and not state.after_padding:
                self._fill(cache.parts[self.part], len(ids), lead, length)
        elif len(at[0]) and state.lead != lead:
            raise UnsupportedModeError(_MIXED)
        if cache is not None:
            cache.prefixes[self.part] = state._replace(begun=all_begun and reads_now)
        if starts_again:
            ids = ids.clone()
            ids[at] = self.ids[-1]
        return ids, state

    def _check_beginning(self, state: PrefixState | None, past: int) -> None:
        """Raises unless a cache is empty or began with this prefix; `past` is what it has read."""
        began_otherwise = past > 0 if state is None else state.ids != self.ids
        if began_otherwise:
            raise UnsupportedModeError(
                "this cache was begun with another base prefix, or none. Start with a new cache after changing the "
                "prefix or the active adapters"
            )

    def _first_state(
        self, row_starts: torch.Tensor, lead: int, length: int, cache: ValueAdapterCache | None, *, all_begun: bool
    ) -> PrefixState:
        """How a cache begins: with the prefix before the padding, or behind it where the model must read it so."""
        state = PrefixState(self.ids, lead, self._must_read(row_starts, lead + length, cache), all_begun)
        if state.after_padding and not all_begun:
            raise UnsupportedModeError(
                "the first chunk of the prompts ends within a row's padding, and this base must read its prefix "
                "after the padding; make prefill_chunk_size larger than the padding, or leave it out"
            )
        return state

    def call(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | Mapping[str, Any] | None,
        position_ids: torch.Tensor | None,
        cache: ValueAdapterCache | None,
        logits_to_keep: int | torch.Tensor,
    ) -> BaseCall:
        """What the base is called with, so that it reads prefix and prompt; arguments as the wrapper's `forward`.

        Raises:
            UnsupportedModeError: a mask that does not say which tokens are padding, or too long a text.
        """
        mask = _checked(attention_mask)
        check_one_text(position_ids, mask, *input_ids.shape)
        ids, state = self.begin(input_ids, mask, cache)
        # this layout is read in one pass; once the cache has begun, the mask alone says where padding ends
        if state.after_padding and (cache is None or not has_read(cache.parts[self.part])):
            return self._read_all(ids, mask, position_ids, cache, logits_to_keep, state.lead)
        if cache is not None:
            own = cache.parts[self.part]
        else:
            own = DynamicCache(config=self.base.config)
            self._fill(own, len(ids), state.lead, ids.shape[1])
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": self.mask(mask, state),
            "cache": own,
            "use_cache": True,
            "logits_to_keep": logits_to_keep,
        }
        if position_ids is None and mask is not None and takes(self.base, "position_ids"):
            position_ids = _behind_padding(mask, ids.shape[1])
        if position_ids is not None:
            arguments["position_ids"] = position_ids + state.lead
        return BaseCall(arguments)

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **more: Any,
    ) -> torch.Tensor:
        """The last hidden states of the tokens behind the prefix, (batch, seq, hidden), without a cache.

        Args:
            input_ids, attention_mask, position_ids: as for `call`.
            more: for the base's body.
        """
        call = self.call(input_ids, attention_mask, position_ids, None, 0)
        arguments = {key: value for key, value in call.arguments.items() if key != "logits_to_keep"}
        return call.cut(last_hidden_state(self.base, **arguments, **more))

    def mask(self, mask: torch.Tensor | None, state: PrefixState) -> torch.Tensor | None:
        """The mask of the base's positions, (batch, lead + past + seq), from that of the caller's."""
        if mask is None:
            return None
        if not state.after_padding:
            return torch.nn.functional.pad(mask, (state.lead, 0), value=1)
        return _after_padding(mask, torch.ones_like(mask[:, :1]).expand(-1, state.lead), _padding(mask))

    def check_length(self, tokens: int | None) -> None:
        """Raises unless the base can read the prefix and this many tokens.

        Raises:
            UnsupportedModeError: too long, saying by how much.
        """
        limit = longest_text(self.base)
        if limit and tokens and tokens + len(self.ids) > limit:
            reader = "the base" if self.part == BASE else "a value network"
            raise UnsupportedModeError(
                f"the base prefix has {len(self.ids):,} tokens, prompt and answer may have {tokens:,}, and {reader} "
                f"reads {limit:,} at most; shorten the prompt, lower max_new_tokens, or attach with base_prefix=None"
            )

    def _starts_again(self, firsts: torch.Tensor) -> bool:
        if self.start is None:
            return False
        if not len(firsts):  # nothing but padding has come; the prompts will begin as the tokenizer begins texts
            return True
        again = firsts == self.start
        if bool(again.any()) and not bool(again.all()):
            raise UnsupportedModeError(_MIXED)
        return bool(again.all())

    def _must_read(self, padding: torch.Tensor, length: int, cache: ValueAdapterCache | None) -> bool:
        """Whether the prefix's keys and values, put before the padding, would not give what reading it gives."""
        # with gradient checkpointing transformers leaves a cache out, and the prefix with it; of weights in parts FSDP
        # brings those of a layer together for gradients of what its last call gave, and not for its keys and values
        if not self._keys_and_values or _is_checkpointed(self.base) or (self._is_trained() and is_sharded(self.base)):
            return True
        # a window counts slots, so with padding between them a prompt would lose sight of its prefix too soon
        if self._window is None or not bool((padding > 0).any()):
            return False
        if cache is None:
            return length > self._window
        return cache.longest is None or cache.longest + len(self.ids) > self._window

    def _read_all(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: ValueAdapterCache | None,
        logits_to_keep: int | torch.Tensor,
        lead: int,
    ) -> BaseCall:
        """The base reads padding, prefix and prompt itself."""
        padding = _padding(mask) if mask is not None else ids.new_zeros(len(ids))
        # each row's prefix goes behind its own padding: ids, mask and positions alike
        first = ids.new_tensor(self.ids[:lead]).expand(len(ids), -1)
        arguments: dict[str, Any] = {"input_ids": _after_padding(ids, first, padding), "logits_to_keep": logits_to_keep}
        if isinstance(logits_to_keep, torch.Tensor):
            arguments["logits_to_keep"] = torch.arange(ids.shape[1], device=ids.device)[logits_to_keep] + lead
        if mask is not None:
            arguments["attention_mask"] = _after_padding(mask, torch.ones_like(first), padding)
        if position_ids is not None:
            counted = torch.arange(lead, device=ids.device).expand(len(ids), -1)
            shifted = (position_ids + lead).expand(len(ids), -1)
            arguments["position_ids"] = _after_padding(shifted, counted, padding)
        arguments |= {"use_cache": cache is not None, "cache": cache.parts[self.part] if cache is not None else None}
        # last N and indexed positions come as asked for; all of them come with the prefix's, which are cut off
        everything = isinstance(logits_to_keep, int) and logits_to_keep == 0
        return BaseCall(arguments, lead if everything else 0)

    def _fill(self, cache: Cache, rows: int, lead: int, length: int) -> None:
        """Puts the prefix's keys and values into an empty cache, for each row."""
        fixed = [layer.get_max_length() for layer in cache.layers if isinstance(layer, StaticLayer)]
        if fixed and max(fixed) < lead + length and not all(cache.is_sliding):
            raise UnsupportedModeError(
                f"this StaticCache is for {max(fixed)} tokens; the base prefix has {lead} and the prompt {length}. "
                "Make it longer by the prefix, or pass cache_implementation='static' to generate"
            )
        for index, (keys, values) in enumerate(self._computed(lead)):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
            if getattr(cache.layers[index], "record_past", False):  # or it attends to what has left its window
                cache.layers[index].crop(0)

    def states(self) -> States | None:
        """Keys and values of the prefix, layer by layer (1, heads, prefix, size); None where a layer keeps none."""
        return self._computed(len(self.ids)) if self._keys_and_values else None

    @property
    def keeps_states(self) -> bool:
        """Whether keys and values are kept for another call."""
        return bool(self._states)

    def forget(self) -> None:
        """Gives back the memory of keys and values; they are computed again where they are needed."""
        self._states.clear()

    def _computed(self, lead: int) -> States:
        """Keys and values of the prefix's first `lead` tokens; computed once while the model computes alike.

        Of weights that are trained, in each call anew and with gradients: the prefix is text like any other.
        """
        if self._is_trained():
            return self._read(lead)
        # while torch traces a call there is no telling what the model is, so nothing is kept
        now = None if torch.compiler.is_compiling() else moment(self.base)
        kept = self._states.get(lead)
        if kept is not None and kept[0] == now:
            return kept[1]
        with torch.no_grad():
            states = self._read(lead)
        if now is not None:
            self._states[lead] = (now, states)
        return states

    def _is_trained(self) -> bool:
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.base.parameters())

    def _read(self, lead: int) -> States:
        cache = DynamicCache()  # without the configuration: no layer drops what leaves its window
        ids = torch.tensor([self.ids[:lead]], device=execution_device(self.base))
        logits_of(self.base, {"input_ids": ids, "cache": cache, "use_cache": True, "logits_to_keep": 1})
        return [(layer.keys, layer.values) for layer in cache.layers]


_MIXED = (
    "some rows begin with the token that begins a text, and some do not, so the base prefix would end differently for "
    "them; tokenize all prompts the same way"
)


def _is_checkpointed(model: PreTrainedModel) -> bool:
    """Whether a training model computes its layers a second time for their gradients."""
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _checked(mask: torch.Tensor | Mapping[str, Any] | None) -> torch.Tensor | None:
    """The mask that says which tokens are padding."""
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        raise UnsupportedModeError(
            "a base prefix needs to know which tokens are padding; pass the attention_mask of (batch, past + seq)"
        )
    return mask


def _padding(mask: torch.Tensor) -> torch.Tensor:
    """(batch, length) -> (batch,): padding before the first token; the whole length where there is no token."""
    return torch.where((mask != 0).any(dim=1), (mask != 0).int().argmax(dim=1), mask.shape[1])


def _behind_padding(mask: torch.Tensor, length: int) -> torch.Tensor | None:
    """(batch, length) places in the text of the last columns of a mask, since padding stands between prefix and text;
    None where nothing is padded at the left."""
    if not bool((_padding(mask) > 0).any()):
        return None
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]


def _after_padding(row: torch.Tensor, inserted: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """(batch, n) with (batch, m) inserted after each row's padding: (batch, n + m)."""
    count = inserted.shape[1]
    place = torch.arange(row.shape[1] + count, device=row.device)
    # three views of each row, of which every place takes one: before, within, and behind what is inserted
    begin = padding[:, None]
    shifted = torch.nn.functional.pad(row, (count, 0))
    before = torch.nn.functional.pad(row, (0, count))
    within = inserted.gather(1, (place - begin).clamp(0, count - 1))
    return torch.where(place < begin, before, torch.where(place < begin + count, within, shifted))
