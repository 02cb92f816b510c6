"""A cache in which every row of a batch has its own length: token i of a row in slot i; knows nothing of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

_GROWTH = 64  # slots by which the cache grows, so that it is seldom copied


class Slots:
    """Where the tokens of the call that runs now go: shared by the layers of one network."""

    def __init__(self) -> None:
        self.of: torch.Tensor = torch.empty(0)  # (batch, new)
        self.begin = 0
        self.end = 0
        self.side_by_side = True  # all rows write the same slots


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer, (batch, heads, slots, width): token i of a row in slot i."""

    is_sliding = False
    is_croppable = True

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Empty storage; zeros, since what a mask hides must still be a number."""
        self.keys = key_states.new_zeros(*key_states.shape[:2], 0, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new tokens into their slots; returns all slots up to the last that is in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._grown(self.keys, key_states.dtype), self._grown(self.values, value_states.dtype)
        key_states, value_states = key_states.to(keys.dtype), value_states.to(values.dtype)
        if self.slots.side_by_side:
            keys[:, :, self.slots.begin : self.slots.end] = key_states
            values[:, :, self.slots.begin : self.slots.end] = value_states
        else:
            rows = torch.arange(len(keys), device=keys.device)[:, None]
            keys[rows, :, self.slots.of] = key_states.transpose(1, 2)
            values[rows, :, self.slots.of] = value_states.transpose(1, 2)
        self.keys, self.values = keys, values
        return keys[:, :, : self.slots.end], values[:, :, : self.slots.end]

    def _grown(self, states: Any, dtype: torch.dtype) -> torch.Tensor:
        states = states.to(torch.promote_types(states.dtype, dtype))  # as torch.cat does; autocast may change midway
        missing = self.slots.end - states.shape[2]
        if missing <= 0:
            return states  # type: ignore[no-any-return]
        more = -(-missing // _GROWTH) * _GROWTH + states.shape[2] // 4
        return torch.nn.functional.pad(states, (0, 0, 0, more))

    def move(self, row: int, sources: Sequence[int], begin: int) -> None:
        """Copies slots of a row to those from `begin` on."""
        for states in (self.keys, self.values):
            states[row, :, begin : begin + len(sources)] = states[row][:, list(sources)]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps, repeats or reorders rows."""
        if self.is_initialized:
            self.keys = self.keys.index_select(0, rows.to(self.keys.device))
            self.values = self.values.index_select(0, rows.to(self.values.device))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that a mask speaks of, and the first of them."""
        return self.slots.end, 0

    def get_seq_length(self) -> int:
        """Slots before the new tokens."""
        return self.slots.begin

    def get_max_length(self) -> int:
        """No limit."""
        return -1
