"""How generation carries several models at once: one cache of parts, one mask per model; computes no logits."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_masks_for_generate

from valueadapter.cache import BASE, ValueAdapterCache
from valueadapter.errors import UnsupportedModeError
from valueadapter.value_logits import BASE_MASK, Term


class GenerationMethods:
    """The part of `ValueAdapterForCausalLM` that `generate` calls between two forward passes."""

    base: PreTrainedModel

    def terms(self) -> list[Term]:  # documented where it is defined
        raise NotImplementedError

    def _cache_parts(self, cache: Cache | None, terms: list[Term]) -> ValueAdapterCache:
        if not isinstance(cache, ValueAdapterCache):
            serving = {
                part: term.reader() if term.reads_text else network.config
                for term in terms
                for part, network in zip(term.parts, term.networks, strict=True)
            }
            own = DynamicCache(config=self.base.config) if cache is None else cache
            cache = ValueAdapterCache.around(own, serving)
        cache.check_parts([BASE, *(part for term in terms for part in term.parts)])
        return cache

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Each model makes the cache that was asked for, in its own shape; `generate` carries them as one."""
        terms = self.terms()
        if terms:
            in_step = [(part, network) for term in terms if not term.reads_text for part, network in _in_term(term)]
            for name, model in [("the base", self.base), *in_step]:
                _check_length(name, model, generation_config.max_length)
        if model_kwargs.get("cache") is not None:
            model_kwargs["cache"] = self._cache_parts(model_kwargs["cache"], terms)
            model_kwargs["cache"]._is_user_defined = True  # generate then leaves it alone
            return
        parts: dict[str, Any] = {}
        readers = {part: term.reader() for term in terms if term.reads_text for part in term.parts}
        for part, model in [(BASE, self.base), *_networks(terms)]:
            if part in readers:
                readers[part].longest = generation_config.max_length
                parts.update({part: readers[part]} if parts else {})
                continue
            prepared: dict[str, Any] = {}
            model._prepare_cache_for_generation(generation_config, prepared, *args, **kwargs)
            if (cache := prepared.get("cache")) is not None:
                parts[part] = cache
        if parts:
            model_kwargs["cache"] = ValueAdapterCache(parts)

    def create_masks_for_generate(
        self,
        config: PreTrainedConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One mask per model: a sliding-window network needs another than a base with full attention."""
        terms = self.terms()
        models = {BASE_MASK: (self.base, BASE), **{part: (network, part) for part, network in _networks(terms)}}
        parts = self._cache_parts(cache, terms).parts
        masks = {}
        for key, (model, part) in models.items():
            create = getattr(model, "create_masks_for_generate", create_masks_for_generate)
            masks[key] = create(
                config=model.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                cache=parts[part],
                position_ids=position_ids,
            )
        return masks

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: continuous batching replaces the attention and cache of one model, and here are several.

        Raises:
            UnsupportedModeError: always, naming what to do instead.
        """
        raise UnsupportedModeError(
            "continuous batching (generate_batch) drives the paged cache of one model; a value adapter runs several. "
            "Use generate with a left-padded batch"
        )


def _networks(terms: list[Term]) -> list[tuple[str, PreTrainedModel]]:
    return [pair for term in terms for pair in _in_term(term)]


def _in_term(term: Term) -> list[tuple[str, PreTrainedModel]]:
    return list(zip(term.parts, term.networks, strict=True))


def _check_length(name: str, model: PreTrainedModel, longest: int | None) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and longest and longest > limit:
        raise UnsupportedModeError(
            f"prompt and answer may be {longest:,} tokens long, and {name} reads {limit:,} at most; shorten the "
            "prompt, or lower max_new_tokens"
        )
