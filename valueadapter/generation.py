"""How generation carries several models at once: one cache of parts, one mask per model; computes no logits."""

from __future__ import annotations

from typing import Any, NoReturn, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_masks_for_generate

from valueadapter.cache import BASE, BASE_MASK, ValueAdapterCache
from valueadapter.errors import UnsupportedModeError
from valueadapter.prefix import ROWS_MASK, BasePrefix
from valueadapter.rows import RowMethods
from valueadapter.value_logits import Term

_OWN_ARGUMENTS = ("messages", "adapter_names", "output_value_logits", "value_loss")
"""Arguments of `forward` that no other model has."""


class GenerationMethods(RowMethods):
    """The part of `ValueAdapterForCausalLM` that `generate` calls between two forward passes."""

    base: PreTrainedModel

    def terms(self) -> list[Term]:  # documented where it is defined
        raise NotImplementedError

    def _acting_prefix(self) -> BasePrefix | None:  # documented where it is defined
        raise NotImplementedError

    def _cache_parts(self, cache: Cache | None, terms: list[Term]) -> ValueAdapterCache:
        if not isinstance(cache, ValueAdapterCache):
            serving = {
                part: term.reader(part) if term.reads_text else network.config
                for term in terms
                for part, network in zip(term.parts, term.networks, strict=True)
            }
            own = DynamicCache(config=self.base.config) if cache is None else cache
            cache = ValueAdapterCache.around(own, serving)
        cache.check_parts([BASE, *dict(_networks(terms))])
        return cache

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *how: Any) -> None:
        """Each model makes the cache that was asked for, in its own shape; `generate` carries them as one."""
        if (names := model_kwargs.get("adapter_names")) is not None:
            groups = self._groups(names, how[1])
            cache = self._rows_cache(generation_config, groups, model_kwargs.get("cache"), how)
            model_kwargs.update({} if cache is None else {"cache": cache})
            return
        terms = self.terms()
        prefix = self._acting_prefix()
        if prefix is not None:
            prefix.check_length(generation_config.max_length)
        if terms:
            in_step = [(part, network) for term in terms if not term.reads_text for part, network in _in_term(term)]
            for name, model in [("the base", self.base), *in_step]:
                _check_length(name, model, generation_config.max_length)
            for reader in _prefixes(terms).values():
                reader.check_length(generation_config.max_length)
        if model_kwargs.get("cache") is not None:
            model_kwargs["cache"] = self._cache_parts(model_kwargs["cache"], terms)
            model_kwargs["cache"]._is_user_defined = True  # generate then leaves it alone
            return
        parts: dict[str, Any] = {}
        readers = {part: term.reader(part) for term in terms if term.reads_text for part in term.parts}
        before = _prefixes(terms) | ({BASE: prefix} if prefix is not None else {})
        for part, model in [(BASE, self.base), *_networks(terms)]:
            if part in readers:
                readers[part].longest = generation_config.max_length
                parts.update({part: readers[part]} if parts else {})
                continue
            prepared: dict[str, Any] = {}
            more = len(before[part].ids) if part in before else 0
            model._prepare_cache_for_generation(generation_config, prepared, *how[:-1], how[-1] + more)
            if (cache := prepared.get("cache")) is not None:
                parts[part] = cache
        if parts:
            model_kwargs["cache"] = ValueAdapterCache(parts)
            model_kwargs["cache"].longest = generation_config.max_length

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; the base's cache begins with its prefix before masks are made for it."""
        mixed = kwargs.get("adapter_names") is not None
        prefix = None if mixed else self._acting_prefix()
        if prefix is not None and isinstance(cache, ValueAdapterCache) and cache.is_compileable:
            ids = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
            for one in (prefix, *_prefixes(self.terms()).values()):
                one.begin(ids, attention_mask, cache, reads_now=False)
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]  # GenerationMixin's
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            attention_mask=attention_mask,
            **kwargs,
        )
        return prepared

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
        masks: dict[str, Any] = {}
        prefix = self._acting_prefix()
        before = _prefixes(terms) | ({BASE: prefix} if prefix is not None else {})
        for key, (model, part) in models.items():
            create = getattr(model, "create_masks_for_generate", create_masks_for_generate)
            own = {"attention_mask": attention_mask, "position_ids": position_ids}
            if part in before:
                masks[ROWS_MASK] = attention_mask
                own = before[part].mask_arguments(attention_mask, position_ids, cast(ValueAdapterCache, cache))
            masks[key] = create(config=model.config, inputs_embeds=inputs_embeds, cache=parts[part], **own)
        return masks

    def _get_candidate_generator(
        self, *args: Any, model_kwargs: dict[str, Any], assistant_model: PreTrainedModel | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers; an assistant is given only what it can take, and a chat only if it has its template."""
        own = getattr(self, "base_tokenizer", None)
        its = getattr(assistant_model, "base_tokenizer", None)
        alike = own is not None and its is not None and own.chat_template == its.chat_template
        if not (isinstance(assistant_model, GenerationMethods) and alike) or kwargs.get("assistant_tokenizer"):
            model_kwargs = {key: value for key, value in model_kwargs.items() if key not in _OWN_ARGUMENTS}
        return super()._get_candidate_generator(  # type: ignore[misc]  # GenerationMixin's
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )

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
    return list({part: network for term in terms for part, network in _in_term(term)}.items())


def _prefixes(terms: list[Term]) -> dict[str, BasePrefix]:
    """Part -> the prefix of each network that reads one in step with the base."""
    in_step = [(term, part) for term in terms if not term.reads_text for part in term.parts]
    return {part: prefix for term, part in in_step if (prefix := term.prefix_of(part)) is not None}


def _in_term(term: Term) -> list[tuple[str, PreTrainedModel]]:
    return list(zip(term.parts, term.networks, strict=True))


def _check_length(name: str, model: PreTrainedModel, longest: int | None) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and longest and longest > limit:
        raise UnsupportedModeError(
            f"prompt and answer may be {longest:,} tokens long, and {name} reads {limit:,} at most; shorten the "
            "prompt, or lower max_new_tokens"
        )
