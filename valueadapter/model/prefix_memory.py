"""What is known of base prefixes: how the base and the networks of each adapter read them; knows not which one acts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Prefix
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.prefix_tokens import begins_texts, prefix_ids
from valueadapter.vocabulary.bridge import VocabularyBridge

PREFIXES_KEPT = 16
"""Prefixes of which keys and values are kept, those that were read last."""
_reads = itertools.count()


@dataclass
class KnownPrefix:
    """A prefix as the base and networks read it."""

    base: BasePrefix
    made_by: tuple[Any, ...]
    """The base's tokenizer, and how it was set."""
    networks: dict[int, tuple[tuple[Any, ...], tuple[BasePrefix | None, ...]]] = field(default_factory=dict)
    """Serial of an adapter -> its tokenizer and its setting, how each of its networks reads the prefix."""
    read: int = 0
    """When it was read last, in readings of any prefix."""

    def of_networks(
        self, adapter: ValueAdapter, parts: Sequence[str], *, serial: int, link: VocabularyBridge | None, prefix: Prefix
    ) -> tuple[BasePrefix | None, ...]:
        """How each network of an adapter reads it; None for one that does not.

        Args:
            adapter: the adapter.
            parts: names of its networks in a cache.
            serial: tells it apart from others of its name.
            link: how its vocabulary and the base's meet.
            prefix: what this is known of.
        """
        made_by = how_set(adapter.tokenizer)
        found = self.networks.get(serial)
        if found is None or found[0] != made_by:
            own = network_prefixes(adapter, parts, link, prefix, self.base)
            found = self.networks[serial] = (made_by, own)
        return found[1]

    def forget(self) -> None:
        """Gives back the memory of keys and values."""
        for one in (self.base, *(one for _, parts in self.networks.values() for one in parts if one is not None)):
            one.forget()


class PrefixMemory:
    """The prefixes that a base has read, each computed once.

    Args:
        in_use: says which prefixes an adapter brings or somebody has set; the others may be forgotten altogether.
    """

    def __init__(self, in_use: Callable[[], Collection[Prefix]]) -> None:
        self.in_use = in_use
        self.known: dict[Prefix, KnownPrefix] = {}

    def of(self, prefix: Prefix, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> KnownPrefix:
        """What is known of a prefix; anew where it is another base now, or its tokenizer is not as it was.

        Raises:
            ConfigError: the tokenizer cannot take it.
        """
        made_by, found = how_set(tokenizer), self.known.get(prefix)
        if found is None or found.made_by != made_by or found.base.base is not base:
            start = tokenizer.bos_token_id if begins_texts(tokenizer) else None
            found = KnownPrefix(BasePrefix(base, prefix_ids(prefix, tokenizer), start), made_by)
            self.known[prefix] = found
        found.read = next(_reads)
        if len(self.known) > PREFIXES_KEPT:
            self._bound()
        return found

    def forget(self, serial: int | None = None) -> None:
        """Forgets prefixes that are not in use, and all that the networks of one adapter have read."""
        in_use = self.in_use()
        for prefix, known in list(self.known.items()):
            if serial is not None:
                known.networks.pop(serial, None)
            if prefix not in in_use:
                self.known.pop(prefix, None)

    def _bound(self) -> None:
        """Forgets the keys and values of all prefixes but those read last; and those that nobody has, altogether."""
        by_use = sorted(self.known.copy().items(), key=lambda item: item[1].read, reverse=True)
        in_use = self.in_use()
        for prefix, known in by_use[PREFIXES_KEPT:]:
            known.forget()
            if prefix not in in_use:
                self.known.pop(prefix, None)


def how_set(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """A tokenizer, and what of it people change that decides about a prefix's tokens."""
    begins = tokenizer.bos_token_id if begins_texts(tokenizer) else None
    return tokenizer, len(tokenizer), tokenizer.bos_token_id, begins, str(tokenizer.chat_template)


def network_prefixes(
    adapter: ValueAdapter, parts: Sequence[str], link: VocabularyBridge | None, prefix: Prefix, base: BasePrefix
) -> tuple[BasePrefix | None, ...]:
    """What each network of an adapter reads before the prompt: the base's tokens, or where it reads text, its own.

    Args:
        adapter: the adapter.
        parts: names of its networks in a cache.
        link: how its vocabulary and the base's meet.
        prefix: what the base reads.
        base: the same, as the base reads it.
    """
    ids, start = base.ids, base.start
    if link is not None and link.reading is not None:
        ids, start = prefix_ids(prefix, adapter.tokenizer), None
    elif link is not None:
        own = link.alignment.value_ids(torch.tensor([[*ids, *([start] if start is not None else [])]]))[0].tolist()
        ids, start = tuple(own[: len(ids)]), None if start is None else own[-1]
    return tuple(
        BasePrefix(network, ids, start, part=part) if spec.reads_prefix else None
        for network, spec, part in zip(adapter.networks, adapter.config.networks, parts, strict=True)
    )
