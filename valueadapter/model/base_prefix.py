"""Which prefix the base reads before the prompt: an adapter's own, or one for all; how it reads it is `prefix`'s."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Prefix
from valueadapter.artifact.config.prefix import GivenPrefix, Recorded, as_prefix
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.cache import BASE, ValueAdapterCache
from valueadapter.forward.prefix_reading import BaseCall, BasePrefix, begins_texts, prefix_ids
from valueadapter.model.thread_scope import Block, acting, here
from valueadapter.vocabulary.bridge import Link


def network_prefixes(
    adapter: ValueAdapter, parts: Sequence[str], link: Link | None, prefix: Prefix, base: BasePrefix
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

    def forget(self) -> None:
        """Gives back the memory of keys and values."""
        for one in (self.base, *(one for _, parts in self.networks.values() for one in parts if one is not None)):
            one.forget()


def how_set(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """A tokenizer, and what of it people change that decides about a prefix's tokens."""
    begins = tokenizer.bos_token_id if begins_texts(tokenizer) else None
    return tokenizer, len(tokenizer), tokenizer.bos_token_id, begins, str(tokenizer.chat_template)


class PrefixMethods:
    """The part of `ValueAdapterForCausalLM` that has the base read a prefix."""

    base: PreTrainedModel
    _given_prefix: Prefix | Recorded | None
    _prefixes: dict[Prefix, KnownPrefix]

    def set_base_prefix(self, prefix: GivenPrefix) -> None:
        """Sets what only the base reads before the prompt, whichever adapters act; `RECORDED` gives each its own again.

        Start with a new cache afterwards. With no adapter acting the base reads no prefix.

        Args:
            prefix: text, chat messages, None for nothing, or `RECORDED`.

        Raises:
            ConfigError: empty or no prefix, or messages for a base without chat template.
        """
        given = prefix if isinstance(prefix, Recorded) else as_prefix(prefix)
        if given is not None and not isinstance(given, Recorded):
            self._prefix_for_base(given)
        self._given_prefix = given
        self._forget_prefixes()

    @property
    def base_prefix(self) -> Prefix | None:
        """What the base reads before the prompt as the adapters stand; None while none acts.

        Raises:
            UnsupportedModeError: the acting adapters bring different prefixes.
        """
        acting = [name for name in self.active_adapters if self.scales[name] != 0]
        return self._one_prefix(acting) if acting else None

    def _one_prefix(self, names: Sequence[str]) -> Prefix | None:
        if not isinstance(self._given_prefix, Recorded):
            return self._given_prefix
        own = {name: self._prefix_of(name) for name in names}
        different = {prefix: name for name, prefix in own.items() if prefix is not None}
        if len(different) > 1:
            raise UnsupportedModeError(
                f"the adapters {' and '.join(map(repr, different.values()))} bring different base prefixes, and the "
                "base can read one. Choose it with set_base_prefix(model.adapters[name].config.base_prefix), or "
                "none with set_base_prefix(None)"
            )
        return next(iter(different), None)

    def prefixed_base(self, prefix: Prefix | Sequence[Mapping[str, str]]) -> Block:
        """Within the block the model is the base after a prefix, without any adapter.

        This is what a few examples in the prompt give without us, at the cost of reading them once.

        Args:
            prefix: text or chat messages.

        Raises:
            ConfigError: as `set_base_prefix`.
        """
        given = as_prefix(prefix)
        return acting(self, (), None if given is None else self._prefix_for_base(given))

    def _acting_prefix(self) -> BasePrefix | None:
        if (block := here(self)) is not None and block.prefix is not None:
            return block.prefix
        prefix = self.base_prefix
        return None if prefix is None else self._prefix_for_base(prefix)

    def _prefix_for_base(self, prefix: Prefix) -> BasePrefix:
        """The prefix as this base reads it; computed once."""
        return self._known_prefix(prefix).base

    def _known_prefix(self, prefix: Prefix) -> KnownPrefix:
        """What is known of a prefix; anew where the base or its tokenizer is not as it was."""
        tokenizer = self._base_tokenizer()
        made_by, known = how_set(tokenizer), self._prefixes.get(prefix)
        if known is None or known.made_by != made_by or known.base.base is not self.base:
            start = tokenizer.bos_token_id if begins_texts(tokenizer) else None
            known = KnownPrefix(BasePrefix(self.base, prefix_ids(prefix, tokenizer), start), made_by)
            self._prefixes[prefix] = known
        known.read = next(_reads)
        if len(self._prefixes) > PREFIXES_KEPT:
            self._bound_prefixes()
        return known

    def _bound_prefixes(self) -> None:
        """Forgets the keys and values of all prefixes but those read last; and those that nobody has, altogether."""
        by_use = sorted(self._prefixes.copy().items(), key=lambda item: item[1].read, reverse=True)
        in_use = self._prefixes_in_use()
        for prefix, known in by_use[PREFIXES_KEPT:]:
            known.forget()
            if prefix not in in_use:
                self._prefixes.pop(prefix, None)

    def _forget_prefixes(self, serial: int | None = None) -> None:
        """Forgets prefixes that no attached adapter has and that are not set, and all that one adapter has read."""
        in_use = self._prefixes_in_use()
        for prefix, known in list(self._prefixes.items()):
            if serial is not None:
                known.networks.pop(serial, None)
            if prefix not in in_use:
                self._prefixes.pop(prefix, None)

    def _base_call(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | Mapping[str, Any] | None,
        position_ids: torch.Tensor | None,
        cache: ValueAdapterCache | None,
        logits_to_keep: int | torch.Tensor,
    ) -> BaseCall:
        """What the base is called with besides its mask and cache: the prompt, or prefix and prompt."""
        prefix = self._acting_prefix()
        if prefix is not None:
            return prefix.call(input_ids, attention_mask, position_ids, cache, logits_to_keep)
        if cache is not None and BASE in cache.prefixes:
            raise UnsupportedModeError(
                "this cache was begun with a base prefix, and now none acts. Start with a new cache after changing the "
                "prefix or the active adapters"
            )
        return BaseCall({"input_ids": input_ids})

    # -- what the adapters say ---------------------------------------------------------------------------------------
    @property
    def active_adapters(self) -> list[str]:  # documented where it is defined, as the others here
        raise NotImplementedError

    @property
    def scales(self) -> dict[str, float]:
        raise NotImplementedError

    def _base_tokenizer(self) -> PreTrainedTokenizerBase:
        raise NotImplementedError

    def _prefix_of(self, adapter_name: str) -> Prefix | None:
        raise NotImplementedError

    def _prefixes_in_use(self) -> Collection[Prefix]:
        raise NotImplementedError
