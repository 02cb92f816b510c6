"""One cache object for several models: `generate` carries exactly one; knows nothing of what the models compute.

A transformers `Cache` is a list of layers, and everything generation does to it (reorder for beams, crop for
speculation, repeat, select, reset) runs over that list. So a cache whose layers are those of all its parts does it to
all of them, and each model is handed its own part, which shares the layer objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, StaticCache

from valueadapter.adapter.shared_body import SharedBody
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.steps import empty, has_read

BASE = "base"
"""The part that belongs to the base model; it comes first, so that lengths are the base's."""


class PrefixState(NamedTuple):
    """The prefix that a model's cache begins with: the base's, and those of networks that read it too."""

    ids: tuple[int, ...]
    """The whole prefix."""
    lead: int
    """How many of its tokens stand before the caller's; the last may stand in place of the prompt's start token."""
    after_padding: bool
    """Whether the model read it after each row's padding; else it stands before the padding."""
    begun: bool
    """Whether the model has read a token of the caller's in every row, so that nothing is left to decide."""


class ValueAdapterCache(Cache):
    """The base model's cache and one per value network.

    Attributes:
        prefixes: part -> what that model has read besides the caller's tokens; lengths told here are without it.
        longest: tokens that a row may get, where known.
        bodies: what several networks have in common, so that they speak in one pass; None where nobody has
            looked yet. They are the models', not the text's: a cache that is stored is without them.
        ahead: part -> what that network has said of the tokens that come next, which it has read alone while it drafted
            them; the call that reads them takes it up.
        parts: `base` and `<adapter>.<serial>.<index of the network>` -> the cache that model reads and writes, or the
            `TextReader` of a network that reads the text in tokens of its own.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        self.prefixes: dict[str, PrefixState] = {}
        self.longest: int | None = None
        self.bodies: Sequence[SharedBody] | None = None
        self.ahead: dict[str, Any] = {}
        self.layer_class_to_replicate = None  # layers are the parts' business
        self.offloading = False  # and so is moving them

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bodies": None}

    @property
    def layers(self) -> list[Any]:
        """The layers of all parts, the base's first; the objects themselves, not copies."""
        return [layer for part in self.parts.values() for layer in part.layers]

    @classmethod
    def around(cls, cache: Cache, networks: Mapping[str, Any]) -> ValueAdapterCache:
        """Makes an empty cache of the caller's serve the base, with new ones of its kind for the networks.

        Args:
            cache: an empty cache of the base model's shape.
            networks: part name -> configuration of the network, or the reader that serves as its cache.

        Raises:
            UnsupportedModeError: the cache has content, which the networks, if there are any, have not read.
        """
        if networks and has_read(cache):
            raise UnsupportedModeError(
                f"this {type(cache).__name__} holds text of the base model alone, which the value networks have not "
                "read. Pass the `cache` that an earlier call of this model returned, or an empty one"
            )
        static = isinstance(cache, StaticCache)
        if static and all(cache.is_sliding):
            raise UnsupportedModeError(
                "a StaticCache of sliding windows only does not say how long the text may get, which the networks' "
                "caches must know. Pass cache_implementation='static' to generate instead"
            )
        parts: dict[str, Any] = {BASE: cache}
        for name, network in networks.items():
            if not isinstance(network, PreTrainedConfig):
                parts[name] = network
            elif static:
                parts[name] = StaticCache(config=network, max_cache_len=cache.get_max_length())
            else:
                parts[name] = DynamicCache(config=network)
        return cls(parts)

    def check_parts(self, expected: list[str]) -> None:
        """Raises unless this cache serves exactly these models.

        Raises:
            UnsupportedModeError: it was made with other adapters active.
        """
        if list(self.parts) != expected:
            raise UnsupportedModeError(
                f"this cache was made for {', '.join(self.parts)}; the model now runs {', '.join(expected)}. "
                "Start with a new cache after changing the active adapters (or a scale from or to 0)"
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the caller's that have been seen, by the first model that counts them; without the prefix.

        0 where none of them counts, so that nobody takes text for read.
        """
        counting = [part for part, cache in self.parts.items() if _counts(cache)]
        if layer_idx == 0:
            return self.read_by(counting[0]) if counting else 0
        length: int = super().get_seq_length(layer_idx)
        lead = self.prefixes[BASE].lead if BASE in self.prefixes else 0
        return length - lead if lead and length > 0 and layer_idx < len(self.parts[BASE].layers) else length

    def read_by(self, part: str) -> int:
        """Tokens of the caller's that one of the models has seen; of one that counts none (Mamba), 1 for any."""
        cache = self.parts[part]
        if not _counts(cache):
            return int(has_read(cache))
        length = int(cache.get_seq_length())
        return length - self.prefixes[part].lead if part in self.prefixes and length > 0 else length

    def take_ahead(self) -> dict[str, Any]:
        """What networks have said ahead; once."""
        ahead, self.ahead = self.ahead, {}
        return ahead

    def take_back(self, to: int) -> None:
        """Has no model have read more than the first `to` tokens of the caller's; with the first, also no prefix."""
        self.ahead.clear()
        if to <= 0:
            self.reset()
            return
        for part, cache in self.parts.items():
            wanted = to + (self.prefixes[part].lead if part in self.prefixes else 0)
            for layer in cache.layers:  # which may have read more or less than its neighbours where one has failed
                if (more := int(layer.get_seq_length()) - wanted) > 0:
                    layer.crop(-more)

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last tokens, minus as many as `tokens_to_remove` says; with the first, also the prefix."""
        super().crop(tokens_to_remove)
        if self.prefixes and int(self.get_seq_length()) <= 0:
            self.reset()

    def reset(self) -> None:
        """Empties all parts."""
        for part in self.parts.values():
            empty(part)
        self.prefixes.clear()
        self.ahead.clear()


def _counts(cache: Any) -> bool:
    """Whether a part knows how many tokens it has seen; a purely recurrent one does not."""
    return isinstance(cache, CacheLayerMixin) or not cache.layers or not all(cache.is_linear)
