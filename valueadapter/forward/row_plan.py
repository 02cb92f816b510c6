"""What one forward pass of a value network computes for each row: new tokens, and who sees whom; runs no model.

Tokens that are taken back again within one call (when many positions are scored at once) stand in the batch beside
their replacements, and see only what was before them: a tree, whose branches one forward pass serves.

Example: the cache has the value tokens `a b`, and in this call the base reads two tokens, whose positions are both
wanted. The first makes the value text `a b c`, the second joins `c` to `cd`:

    node 0: c, depth 2, sees slots 0 and 1 of the cache     wanted[0] = 0
    node 1: cd, depth 2, sees slots 0 and 1, not node 0     wanted[1] = 1

`stack`, the nodes that stand, is then [1]; node 0 was computed for its position alone, and `plain` is False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import execution_device
from valueadapter.errors import UnsupportedModeError
from valueadapter.vocabulary.retokenizer import Retokenizer


@dataclass
class Prompt:
    """A prompt that base and network read each in its own form.

    Attributes:
        base_ids: the base's tokens, with which the row begins.
        value_ids: the network's tokens.
        open_text: the text at the end that what follows may still join, behind the prompt's last control token.
        after: that control token; None where the prompt has none.
        made_of: all that the two forms were made of, as text; two prompts with equal ones are equal. None where that
            cannot be written out.
    """

    base_ids: list[int]
    value_ids: list[int]
    open_text: str = ""
    after: int | None = None
    made_of: str | None = None


@dataclass
class Node:
    """A token that this call computes."""

    token: int
    depth: int
    cached: int
    """Slots at the front that it sees."""
    parent: int
    """The new token before it; -1 if that is in the cache."""


@dataclass
class Row:
    """One row between two calls."""

    text: Retokenizer
    slots: list[bool] = field(default_factory=list)
    """For each token of the base's cache, whether it is text (True) or padding."""
    places: list[int | None] = field(default_factory=list)
    """The position of each of them; None where none was given."""
    cached: int = 0
    """Leading ids whose keys and values are in the cache."""
    known: bool = False
    """Whether the logits after the last id are kept."""
    prompt: Prompt | None = None
    last_rows: dict[int, torch.Tensor] = field(default_factory=dict)
    """Rows of logits that are kept for refinements, by how many ids are before the token that they speak of."""

    def copy(self) -> Row:
        return replace(self, text=self.text.copy(), slots=self.slots.copy(), places=self.places.copy())


@dataclass
class Trial:
    """A base token that might come next, and what it would do to the value tokens.

    Rows of logits are numbered as `Plan.row_after` does.

    Attributes:
        position: number of the wanted position.
        token: the base token.
        current: the row of logits after all value tokens.
        removed: value tokens taken back, each with the row that spoke of it.
        added: value tokens in their place, each with the row that speaks of it.
    """

    position: int
    token: int
    current: int
    removed: list[tuple[int, int]]
    added: list[tuple[int, int]]

    def rows(self) -> list[int]:
        """All rows that its value is made of."""
        return [self.current, *(row for _, row in self.removed + self.added)]


class Plan:
    """What one row computes in this call, and which of it each needed position wants."""

    NO_TEXT, KEPT_LOGITS = -1, -2
    """In `wanted`, in the place of a node: logits of 0, since there is no text yet; those that an earlier call kept."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.start = self.cached = row.cached
        self.known = row.known
        self.nodes: list[Node] = []
        self.stack: list[int] = []
        self.plain = True  # every node stands in the slot of its depth
        self.wanted: list[int] = []  # for each wanted position the node that speaks of what follows it
        self.trials: list[Trial] = []
        self._again: dict[int, int] = {}
        self.append(row.text.ids[row.cached :])

    def append(self, ids: Sequence[int]) -> None:
        """New tokens after those on the stack."""
        for token in ids:
            parent = self.stack[-1] if self.stack else -1
            self.nodes.append(Node(token, self.cached + len(self.stack), self.cached, parent))
            self.stack.append(len(self.nodes) - 1)

    def replace(self, rollback: int, ids: Sequence[int]) -> None:
        """Takes tokens back and puts others in their place."""
        if rollback:
            self.cut(self.cached + len(self.stack) - rollback)
        self.append(ids)

    def cut(self, depth: int) -> None:
        """Takes back all tokens from a depth on; what is cut before anything is computed is simply written over."""
        if self.nodes:  # nodes of this call stay in the batch, since a position may want them; they only lose the stack
            self.plain = False
            del self.stack[max(0, depth - self.cached) :]
            self.cached = min(self.cached, depth)
        else:
            self.start = self.cached = depth
        self.known = False

    def branch(self, depth: int, ids: Sequence[int]) -> list[int]:
        """Tokens that might stand from a depth on, beside those that do; returns their nodes."""
        cached = min(self.cached, depth)
        parent = self.stack[depth - 1 - self.cached] if depth > self.cached else -1
        nodes = []
        for offset, token in enumerate(ids):
            self.nodes.append(Node(token, depth + offset, cached, parent))
            parent = len(self.nodes) - 1
            nodes.append(parent)
        self.plain = self.plain and not ids
        return nodes

    def row_after(self, depth: int) -> int:
        """What speaks of the token at a depth: a node, or -1 - depth where an earlier call has kept its row of logits.

        Where none was kept, the token before is computed again, beside the one in the cache.
        """
        found = self.row_at_hand(depth)
        if found is None:
            (found,) = self.branch(depth - 1, self.row.text.ids[depth - 1 : depth])
            self._again[depth] = found
        return found

    def row_at_hand(self, depth: int) -> int | None:
        """As `row_after`; None where the row of logits would have to be computed again."""
        if depth > self.cached:
            return self.stack[depth - 1 - self.cached]
        return -1 - depth if depth in self.row.last_rows else self._again.get(depth)

    def next_token_node(self) -> int:
        """The node that speaks of what follows the text now; NO_TEXT before any, KEPT_LOGITS from the last call."""
        if not self.row.text.ids:
            return self.NO_TEXT
        if not self.stack:
            if self.known:
                return self.KEPT_LOGITS
            # the cache has the last token's keys but not its logits: it is computed once more, in its own slot
            self.cut(self.cached - 1)
            self.append(self.row.text.ids[-1:])
        return self.stack[-1]


def masks(
    network: PreTrainedModel, plans: Sequence[Plan], slots: np.ndarray, depths: np.ndarray, *, in_columns: bool
) -> Any:
    """Who sees whom: the tokens before one, not those that were taken back, nor padding.

    Args:
        network: what it is for; the layers' kinds and the attention's implementation decide the form.
        plans: what each row computes, at the right of its columns.
        slots: (batch, new) where each column's keys go.
        depths: (batch, new) how many tokens are before each.
        in_columns: whether the network sees keys in the order of the columns, as without cache, not of the slots.

    Returns:
        (batch, 1, new, keys), or a dict of one for each kind of layer.

    Raises:
        UnsupportedModeError: a kind of layer or of attention that cannot take tokens back.
    """
    seen, depth_of = _seen(plans, slots, depths)
    if in_columns:
        seen = np.take_along_axis(seen, slots[:, None, :].repeat(slots.shape[1], 1), 2)
        depth_of = depths
    config = network.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    window: int = getattr(config, "sliding_window", None) or 0
    by_kind = {}
    for kind in kinds or {"sliding_attention" if window else "full_attention"}:
        if kind == "sliding_attention":
            near = depths[:, :, None] - depth_of[:, None, :] < window
            by_kind[kind] = _as_mask(network, seen & near)
        elif kind == "full_attention":
            by_kind[kind] = _as_mask(network, seen)
        else:
            raise UnsupportedModeError(
                f"a value network with layers of kind '{kind}' cannot read text of another vocabulary, since it cannot "
                "take tokens back; use a network with full or sliding attention"
            )
    return by_kind if kinds else next(iter(by_kind.values()))


def _seen(plans: Sequence[Plan], slots: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each column sees each slot, (batch, new, slots); and the depth of the token in each slot."""
    batch, count = slots.shape
    end = int(slots.max()) + 1
    seen = np.zeros((batch, count, end), dtype=bool)
    depth_of = np.tile(np.arange(end), (batch, 1))
    for row, plan in enumerate(plans):
        new = len(plan.nodes)
        np.put_along_axis(depth_of[row], slots[row], depths[row], 0)
        seen[row, np.arange(count), slots[row]] = True  # itself; padding sees nothing else
        if plan.plain:
            # slots are depths, so what comes before a token lies at lower slots
            seen[row, count - new :] = np.arange(end) <= depths[row, count - new :, None]
            continue
        # a tree: a token sees what its parent sees, whose row was filled before, or the cache up to its own root
        for index, node in enumerate(plan.nodes):
            if node.parent >= 0:
                seen[row, count - new + index] |= seen[row, count - new + node.parent]
            else:
                seen[row, count - new + index, : node.cached] = True
    return seen, depth_of


def _as_mask(network: PreTrainedModel, seen: np.ndarray) -> torch.Tensor:
    mask = torch.from_numpy(seen)[:, None].to(execution_device(network))
    implementation = network.config._attn_implementation
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        floor = torch.finfo(network.dtype).min
        return torch.zeros(mask.shape, dtype=network.dtype, device=mask.device).masked_fill(~mask, floor)
    raise UnsupportedModeError(
        f"a value network with '{implementation}' attention cannot read text of another vocabulary, which needs masks "
        "of any shape; use attn_implementation='sdpa' or 'eager' for the network"
    )
