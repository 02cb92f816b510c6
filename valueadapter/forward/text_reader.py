"""Runs one value network over its own tokens of the base's text, with a cache of its own; knows no base and no scale.

Each row of a batch takes tokens back and gets new ones at its own pace (`vocabulary.retokenizer`). So positions and
masks are given explicitly, and the cache (`ragged_cache`) has a length for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from valueadapter.adapter.causal_lm import execution_device, fit_width, longest_text
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.alignment_modes import Centring, refined, trials
from valueadapter.forward.one_pass import NetworkSaid, Pass, Refined
from valueadapter.forward.positions import check_goes_on, places_of
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.ragged_cache import RowLayer, Slots
from valueadapter.forward.row_plan import Plan, Prompt, Row, masks
from valueadapter.forward.steps import longest_alike
from valueadapter.vocabulary.retokenizer import Retokenizer, RetokenizingRules

_ROWS_KEPT = 4
"""Last rows of logits that refinements find without computing them again: most tokens take back fewer."""


class TextReader(CacheLayerMixin):
    """What a value network has read of each row, and its cache; to `generate` it looks like one layer of a cache.

    Args:
        reading: what the network reads for each of the base's tokens.
        width: columns of the value logits.
        refinement: mode and events, where likely base tokens get better values than the map's.
        prefix: what the network reads before every text; its keys and values are put into every row.
    """

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(
        self,
        reading: RetokenizingRules,
        width: int,
        refinement: Centring | None = None,
        prefix: BasePrefix | None = None,
    ) -> None:
        super().__init__()
        self.reading, self.width, self.refinement, self.prefix = reading, width, refinement, prefix
        self._clear()

    def _clear(self) -> None:
        self.longest: int | None = None  # base tokens that `generate` may come to
        self.rows: list[Row] = []
        self._slots = Slots()
        self._cache = Cache(layer_class_to_replicate=partial(RowLayer, self._slots))
        self._last: torch.Tensor | None = None  # (batch, value_vocab), after each row's last id

    @property
    def layers(self) -> list[CacheLayerMixin]:
        """Itself: one layer-like object for the whole network."""
        return [self]

    # -- reading -----------------------------------------------------------------------------------------------------
    def call(
        self,
        network: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        positions: Sequence[int],
        *,
        position_ids: torch.Tensor | None = None,
        prompts: Sequence[Prompt] | None = None,
        candidates: list[list[list[int]]] | None = None,
        remember: bool = True,
    ) -> Pass:
        """The network's call that reads more of the base's tokens; it is to be run before anything else is asked.

        Args:
            network: the value network.
            input_ids: (batch, seq) ids of the base.
            attention_mask: (batch, past + seq), 0 where there is padding; None where there is none.
            positions: which of the `seq` positions' logits are wanted, rising.
            position_ids: where the base reads these tokens; they must say that each row is one text.
            prompts: one per row, where base and network read the prompt in different forms.
            candidates: (batch, positions, some) base tokens that get better values, where there is a refinement.
            remember: keep keys and values for a later call; False leaves gradients possible.

        Raises:
            UnsupportedModeError: the network cannot work in this way, the text is longer than it can read, or a row is
                several texts.
        """
        if not self.rows:
            self._begin(len(input_ids))
        length = input_ids.shape[1]
        text = [[True] * length] * len(input_ids) if attention_mask is None else _last(attention_mask, length)
        self._note_places(places_of(position_ids, len(input_ids), length), text)
        plans = [
            self._plan(
                row,
                ids,
                real,
                positions,
                prompt=prompts[index] if prompts else None,
                candidates=candidates[index] if candidates else None,
            )
            for index, (row, ids, real) in enumerate(zip(self.rows, input_ids.tolist(), text, strict=True))
        ]
        _check_length(network, plans, None if self.longest is None else self.longest - length)
        self.longest = None
        return self._pass(network, plans, execution_device(network), remember=remember or self.prefix is not None)

    def _note_places(self, places: list[list[int]] | None, text: list[list[bool]]) -> None:
        """Takes note of where the base reads the tokens of this call, once each row is known to go on as one text."""
        for row, real, own in zip(self.rows, text, places or [], strict=places is not None):
            check_goes_on(own, real, past=row.slots, past_places=row.places)
        for index, row in enumerate(self.rows):
            row.places += [None] * len(text[index]) if places is None else places[index]

    def _begin(self, rows: int) -> None:
        """As many rows without text, behind the prefix where there is one."""
        lead = self.prefix.ids if self.prefix is not None else ()
        self.rows = [Row(Retokenizer(self.reading, lead)) for _ in range(rows)]
        states = self.prefix.states() if self.prefix is not None else None
        if states is None:
            return  # read with the text
        self._slots.begin, self._slots.end, self._slots.side_by_side = 0, len(lead), True
        for layer, (keys, values) in enumerate(states):
            self._cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        for row in self.rows:
            row.cached = len(lead)

    def _plan(
        self,
        row: Row,
        ids: list[int],
        real: list[bool],
        positions: Sequence[int],
        *,
        prompt: Prompt | None,
        candidates: list[list[int]] | None,
    ) -> Plan:
        """Reads a row's tokens, stopping at every position whose logits are wanted, and at the last."""
        plan = Plan(row)
        wanted, done = set(positions), 0
        # a wanted position sees the text as it was there, before later tokens change its end
        for stop in sorted({*positions, len(ids) - 1}):
            chunk = [
                token for token, is_text in zip(ids[done : stop + 1], real[done : stop + 1], strict=True) if is_text
            ]
            done = stop + 1
            waits = False
            if prompt is not None and row.prompt != prompt:
                chunk, waits = self._take_prompt(plan, prompt, chunk)
            if chunk:
                plan.replace(*row.text.push(chunk))
            if stop in wanted:
                readable = real[stop] and not waits
                plan.wanted.append(plan.next_token_node() if readable else Plan.NO_TEXT)
                if readable and candidates is not None and self.refinement is not None:
                    number = len(plan.wanted) - 1
                    plan.trials += trials(plan, number, candidates[number])
        plan.next_token_node()  # so that the logits after the last token can be kept
        row.slots += real
        return plan

    def _take_prompt(self, plan: Plan, prompt: Prompt, chunk: list[int]) -> tuple[list[int], bool]:
        """Replaces the base's prompt by the network's; returns the text behind it, and whether more is to come."""
        row = plan.row
        whole = row.text.base_ids + chunk
        size = len(prompt.base_ids)
        if whole[:size] != prompt.base_ids[: len(whole)]:
            raise UnsupportedModeError(
                "input_ids do not begin with what the base's chat template makes of `messages`; get them from "
                "model.chat_inputs(messages), or leave `messages` out and the prompt is read as text"
            )
        if len(whole) < size:
            plan.replace(*row.text.wait(whole))
            row.prompt = None
            return [], True
        taken = row.text.push_prompt(prompt.base_ids, prompt.value_ids, open_text=prompt.open_text, after=prompt.after)
        plan.replace(*taken)
        row.prompt = prompt
        return whole[size:], False

    def _pass(self, network: PreTrainedModel, plans: list[Plan], device: torch.device, *, remember: bool) -> Pass:
        """One forward pass for all rows, and what is made of its logits."""
        count = max(len(plan.nodes) for plan in plans)
        if not count:  # nothing new to read, as where the base's tokens end within a character
            nothing = network.get_output_embeddings().weight.new_zeros(len(plans), 1, self.width)
            return Pass(network, None, lambda _: self._said(plans, nothing, count, 0, remember=remember))
        # the head is run from the first position on that anybody asks for: what callers want, the row's last
        # tokens (the next call may begin with their logits), and what trials are made of
        recent = _ROWS_KEPT if self.refinement else 1
        asked = [
            node + count - len(plan.nodes)  # rows are padded on the left
            for plan in plans
            for node in (*plan.wanted, *plan.stack[-recent:], *(n for trial in plan.trials for n in trial.rows()))
            if node >= 0
        ]
        first = min(asked, default=0)
        arguments = self._arguments(network, plans, count, device, keep=count - first, remember=remember)
        return Pass(
            network,
            arguments,
            lambda logits: self._said(plans, fit_width(logits, self.width), count, first, remember=remember),
        )

    def _said(self, plans: list[Plan], logits: torch.Tensor, count: int, first: int, *, remember: bool) -> NetworkSaid:
        """What was wanted of a pass, whose logits begin at its column `first`."""
        # from a row's own count of its nodes to places in the logits; what is below 0 was kept by an earlier call
        shifts = [count - len(plan.nodes) - first for plan in plans]
        places = [
            [node if node < 0 else node + shift for node in plan.wanted]
            for plan, shift in zip(plans, shifts, strict=True)
        ]
        wanted = self._gather(logits, places)
        found = self._refine(plans, logits.detach(), shifts) if self.refinement is not None else []
        if remember:
            tops = [
                [plan.stack[-1] + shift if plan.stack else plan.next_token_node()]
                for plan, shift in zip(plans, shifts, strict=True)
            ]
            self._last = self._gather(logits.detach(), tops)[:, 0]
            for index, plan in enumerate(plans):
                self._settle(index, plan)
        return NetworkSaid(wanted, found)

    def _refine(self, plans: list[Plan], logits: torch.Tensor, shifts: list[int]) -> list[Refined]:
        """The values of tried base tokens; keeps the last rows of logits for tokens taken back later."""
        found: list[Refined] = []
        for row, (plan, shift) in enumerate(zip(plans, shifts, strict=True)):
            kept = plan.row.last_rows
            numbers = {number for trial in plan.trials for number in trial.rows()}
            at = {n: logits[row, n + shift] if n >= 0 else kept[-1 - n] for n in numbers}
            values = refined(plan.trials, at, cast(Centring, self.refinement))
            found += [Refined(row, t.position, t.token, value) for t, value in zip(plan.trials, values, strict=True)]
            size = len(plan.row.text.ids)
            last = {depth: plan.row_at_hand(depth) for depth in range(max(1, size - _ROWS_KEPT + 1), size + 1)}
            plan.row.last_rows = {
                depth: logits[row, n + shift].clone() if n >= 0 else kept[depth]
                for depth, n in last.items()
                if n is not None
            }
        return found

    def _arguments(
        self,
        network: PreTrainedModel,
        plans: list[Plan],
        count: int,
        device: torch.device,
        *,
        keep: int,
        remember: bool,
    ) -> dict[str, Any]:
        """For the network over the new tokens, padded on the left; the last `keep` columns of its logits."""
        ids = np.zeros((len(plans), count), dtype=np.int64)
        depths = np.zeros_like(ids)
        slots = np.zeros_like(ids)
        # padding goes to the slots behind the row's own, where nothing that is seen lies
        for row, plan in enumerate(plans):
            new = len(plan.nodes)
            if new:
                ids[row, count - new :] = [node.token for node in plan.nodes]
                depths[row, count - new :] = [node.depth for node in plan.nodes]
            slots[row, count - new :] = plan.start + np.arange(new)
            slots[row, : count - new] = plan.start + new + np.arange(count - new)
        # rows of the same length without branches need no masks and no ragged cache: the usual causal pass
        uniform = all(plan.plain and len(plan.nodes) == count and plan.start == plans[0].start for plan in plans)
        self._slots.begin = plans[0].start if uniform else int(min(plan.start for plan in plans))
        self._slots.end = int(slots.max()) + 1
        self._slots.side_by_side = uniform
        self._slots.of = torch.from_numpy(slots).to(device)
        mask = None if uniform else masks(network, plans, slots, depths, in_columns=not remember)
        return {
            "input_ids": torch.from_numpy(ids).to(device),
            "position_ids": torch.from_numpy(depths).to(device),
            "attention_mask": mask,
            "cache": self._cache if remember else None,
            "use_cache": remember,
            "logits_to_keep": keep,
        }

    def _gather(self, logits: torch.Tensor, nodes: list[list[int]]) -> torch.Tensor:
        """(batch, wanted, value_vocab): columns of `logits`, kept ones, or 0."""
        index = torch.tensor(nodes, device=logits.device)
        columns = index.shape[1]
        if columns <= logits.shape[1] and bool((index == torch.arange(columns, device=index.device)).all()):
            return logits[:, :columns]
        picked = logits[torch.arange(len(index), device=index.device)[:, None], index.clamp(min=0)]
        if self._last is not None and bool((index == Plan.KEPT_LOGITS).any()):
            picked = torch.where((index == Plan.KEPT_LOGITS)[..., None], self._last[:, None].to(picked), picked)
        return picked.masked_fill((index == Plan.NO_TEXT)[..., None], 0)

    def _settle(self, index: int, plan: Plan) -> None:
        """Moves what is left of a row to the slots of its depths."""
        if not plan.plain:
            for layer in self._cache.layers:
                layer.move(index, [plan.start + node for node in plan.stack], plan.cached)
        plan.row.cached = len(plan.row.text.ids)
        plan.row.known = bool(plan.row.text.ids)

    # -- being a layer of a cache ------------------------------------------------------------------------------------
    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last base tokens (a negative number) of every row."""
        for row in self.rows if tokens_to_remove else []:
            gone = row.slots[tokens_to_remove:]
            del row.slots[tokens_to_remove:], row.places[tokens_to_remove:]
            if unread := sum(gone):  # padding is no text, and nothing of it was read
                unchanged = row.text.pop(unread)
                row.cached = min(row.cached, unchanged)
                row.last_rows = {depth: kept for depth, kept in row.last_rows.items() if depth <= unchanged}
                row.known = False
                if row.prompt is not None and len(row.text.base_ids) < len(row.prompt.base_ids):
                    row.prompt = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keeps, repeats or reorders rows."""
        self.rows = [self.rows[index].copy() for index in beam_idx.tolist()]
        for layer in self._cache.layers:
            layer.select(beam_idx)
        if self._last is not None:
            self._last = self._last.index_select(0, beam_idx.to(self._last.device))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some rows."""
        numbers = torch.arange(len(self.rows), device=indices.device)
        self.reorder_cache(numbers[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        if self.rows:
            self.reorder_cache(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forgets every text."""
        self._clear()

    def get_seq_length(self) -> int:
        """Tokens of the base that were read, padding included."""
        return len(self.rows[0].slots) if self.rows else 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As of the base's own cache."""
        return self.get_seq_length() + query_length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the network's layers are made when it runs."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Not a layer that a model writes to."""
        raise NotImplementedError("a TextReader holds a whole network's cache; the network has one of its own")


def _last(attention_mask: torch.Tensor, length: int) -> list[list[bool]]:
    if attention_mask.ndim != 2:
        raise UnsupportedModeError(
            f"expected an attention_mask of (batch, past + seq); got {attention_mask.ndim} axes. A network of another "
            "vocabulary needs to know which tokens are padding"
        )
    return attention_mask[:, -length:].bool().tolist()


def _check_length(network: PreTrainedModel, plans: Sequence[Plan], to_come: int | None) -> None:
    """Raises where the text is too long, or will be if every base token to come is one of the network's."""
    limit = longest_alike(network) or longest_text(network)
    longest = max(len(plan.row.text.ids) for plan in plans) + max(0, to_come or 0)
    if limit and longest > limit:
        raise UnsupportedModeError(
            f"the text is {'or will be about ' if to_come else ''}{longest:,} tokens of the value network, which reads "
            f"{limit:,} at most; shorten the prompt, lower max_new_tokens, or use the base alone: disable_adapter()"
        )
