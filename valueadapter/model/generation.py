"""How generation carries several models at once: one cache of parts, own inputs per model; computes no logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.pytorch_utils import move_to_device

from valueadapter.adapter.causal_lm import execution_device, logits_width, longest_text
from valueadapter.artifact.config.prefix import RECORDED, Recorded
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.cache import BASE, ValueAdapterCache
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.steps import STEPS, Steps, has_read, keeps_cache, prepared_by, prepares_otherwise
from valueadapter.forward.value_logits import Term, readable
from valueadapter.model.mixed_rows import AdapterNames, groups_of, prepared_rows, rows_cache
from valueadapter.model.stopping import cut_at_ends, ends_of, is_stopping, stopping
from valueadapter.model.wrapped import WrappedModel

_COMMON = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")

_OWN_ARGUMENTS = ("messages", "adapter_names", "output_value_logits", "value_loss")
"""Arguments of `forward` that no other model has."""

_POSITIONAL = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:]
"""What `generate` takes behind the prompt, in order."""


class GenerationMethods(WrappedModel):
    """The part of `ValueAdapterForCausalLM` that `generate` calls, and that it calls between two forward passes."""

    @property
    def generation_config(self) -> Any:
        """How to generate where a call says nothing: the base's own settings, which are one object with these."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, config: Any) -> None:
        if (base := self.__dict__.get("_modules", {}).get("base")) is not None:  # before, transformers sets a default
            base.generation_config = config

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        adapter_names: AdapterNames | None = None,
        stop_strings: str | Sequence[str] | Recorded | None = RECORDED,
        **kwargs: Any,
    ) -> Any:
        """As `transformers.GenerationMixin.generate`; while no adapter acts, it is the base's own `generate`.

        Args:
            inputs: (batch, seq) token ids.
            args: as there.
            adapter_names: for each prompt the adapters that act on it: a name, several, or None (or "__base__") for the
                base alone. What is active otherwise does not matter then. The choice holds for all that happens within
                the call: for processors that run the model on their own, too.
            stop_strings: texts that end an answer too; those of the adapters that act on a row by default (a blank
                line, which stands between the examples of their prefix), unless `generation_config` names some, which
                always act. None or `[]` is none of the adapters'. Text of the prompt is no part of the answer.
            kwargs: as there.

        Raises:
            AdapterNameError: unknown names, or not one entry for each prompt.
            ConfigError: `stop_strings` that are no texts, or empty ones, which would end every answer at once.
            UnsupportedModeError: `inputs_embeds`, or a cache of other models, while an adapter acts.
        """
        kwargs |= dict(zip(_POSITIONAL, args, strict=False))
        ids = kwargs.get("input_ids") if inputs is None else inputs
        batch = 1 if ids is None else len(ids)
        groups = [] if adapter_names is None else groups_of(self.attached, adapter_names, batch)
        if len(groups) == 1:  # nothing is mixed, so that assistants need not know
            with self.attached.scoped(groups[0].names):
                return self.generate(inputs, stop_strings=stop_strings, **kwargs)
        named: dict[int, tuple[str, ...]] = {row: group.names for group in groups for row in group.rows}
        rows: list[tuple[str, ...] | None] = [named[row] for row in sorted(named)] or [None]
        ends = ends_of(self.attached, rows, stop_strings, ids=ids, arguments=kwargs)
        with stopping(kwargs, ends, [kwargs.get("generation_config"), self.generation_config]) as how:
            if adapter_names is None:
                return self._generate(inputs, **how)
            with self.attached.scoped(tuple(self.attached.active_names()), rows=adapter_names):
                return super().generate(inputs, **how)

    def _generate(self, inputs: torch.Tensor | None, **kwargs: Any) -> Any:
        mixed = (scope := self.attached.scope()) is not None and scope.rows is not None
        guesses = kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens") is not None
        cuts = guesses and is_stopping()  # which the base's own generate does not know to do with its guesses
        if mixed or cuts or self.attached.terms() or self.attached.acting_prefix() is not None:
            if kwargs.get("inputs_embeds") is not None:
                raise UnsupportedModeError(NO_IDS)
            return super().generate(inputs, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in _OWN_ARGUMENTS}
        if isinstance(cache := kwargs.get("cache"), ValueAdapterCache):
            cache.check_parts([BASE])
            kwargs["cache"] = cache.parts[BASE]
        return self.base.generate(*(() if inputs is None else (inputs,)), **kwargs)

    def _cache_parts(self, cache: Cache | None, terms: list[Term]) -> ValueAdapterCache:
        if (lacking := _without_cache(self.base, terms)) is not None:
            raise UnsupportedModeError(
                f"a {type(lacking).__name__} keeps no cache of transformers' kind; leave cache= and use_cache= out, "
                "and read the whole text in each call"
            )
        if not isinstance(cache, ValueAdapterCache):
            serving = {
                part: term.reader(part) if term.reads_text else network.config
                for term in terms
                for part, network in zip(term.parts, term.networks, strict=True)
            }
            own = DynamicCache(config=self.base.config) if cache is None else cache
            cache = ValueAdapterCache.around(own, serving)
        cache.check_parts([BASE, *dict(_networks(terms))])
        if cache.bodies is None:
            cache.bodies = self.attached.bodies.of(network for _, network in _networks(terms))
        return cache

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *how: Any) -> None:
        """Each model makes the cache that was asked for, in its own shape; `generate` carries them as one."""
        if (scope := self.attached.scope()) is not None and scope.rows is not None:
            groups = groups_of(self.attached, scope.rows, how[1])
            cache = rows_cache(self, generation_config, groups, model_kwargs.get("cache"), how)
            model_kwargs.update({} if cache is None else {"cache": cache})
            return
        terms = self.attached.terms()
        self.attached.bodies.check()
        prefix = self.attached.acting_prefix()
        if prefix is not None:
            prefix.check_length(generation_config.max_length)
        if _without_cache(self.base, terms) is not None and model_kwargs.get("cache") is None:
            generation_config.use_cache = False  # every step reads the whole text
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
            model_kwargs["cache"].bodies = self.attached.bodies.of(network for _, network in _networks(terms))

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; each model's own preparation makes its inputs, from its own cache.

        Where one of them wants to read the whole text anew (Phi-3 where its positions change), all do.
        """
        given = {"cache": cache, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        if (scope := self.attached.scope()) is not None and scope.rows is not None:
            groups = groups_of(self.attached, scope.rows, len(input_ids), repeated=True)
            return prepared_rows(self, groups, input_ids, next_sequence_length=next_sequence_length, **given)
        if not self.attached.terms() and self.attached.acting_prefix() is None:
            own = cache.parts[BASE] if isinstance(cache, ValueAdapterCache) else cache
            given |= {"next_sequence_length": next_sequence_length, "cache": own}
            made = self.base.prepare_inputs_for_generation(input_ids, **given)
            if cache is not None and made.get("cache") is None and has_read(cache):
                cache.reset()  # the base reads everything anew
            return {**made, "cache": cache}
        steps, anew = self._own_steps(input_ids, next_sequence_length, **given)
        if anew and cache is not None and has_read(cache):
            cache.reset()
            next_sequence_length, given["is_first_iteration"] = None, True
            steps, _ = self._own_steps(input_ids, None, **given)
        common: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        if next_sequence_length is not None:
            common["input_ids"] = input_ids[:, -next_sequence_length:]
        if position_ids is not None:
            common["position_ids"] = position_ids[..., -common["input_ids"].shape[1] :]
        of_base = {key: value for key, value in steps.get(BASE, kwargs).items() if key not in _COMMON}
        about = {key: kwargs[key] for key in (*_OWN_ARGUMENTS, "use_cache", "logits_to_keep") if key in kwargs}
        made = {**of_base, **{key: one for key, one in common.items() if one is not None}}
        device = execution_device(self.base)
        made = move_to_device(made, device) if device.type != "meta" else made
        made.pop("is_first_iteration", None)
        return {**made, **about, "cache": cache, STEPS: steps}

    def _own_steps(
        self,
        input_ids: torch.Tensor,
        count: int | None,
        *,
        cache: Cache | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        **how: Any,
    ) -> tuple[dict[str, dict[str, Any]], bool]:
        """What each model's own preparation makes of a step, and whether one of them wants to read all anew.

        A model that is about to read its prefix, and a network that reads text, prepare themselves in `forward`.
        """
        terms, steps, anew = self.attached.terms(), {}, False
        own = cache if isinstance(cache, ValueAdapterCache) else None
        prefix = self.attached.acting_prefix()
        before = _prefixes(terms) | ({BASE: prefix} if prefix is not None else {})
        for part, model, ids in self._in_step(terms, input_ids):
            whole: tuple[Any, Any, Any] | None = ids, attention_mask, position_ids
            if part in before:
                whole = None
                if own is not None:
                    whole = _behind(before[part], ids, attention_mask, position_ids, cache=own, count=count)
            if whole is None:
                continue
            more = {key: value for key, value in how.items() if part == BASE and key not in _OWN_ARGUMENTS}
            more |= {key: how[key] for key in ("use_cache", "logits_to_keep", "is_first_iteration") if key in how}
            steps[part], reads_anew = prepared_by(
                model,
                whole[0],
                cache=None if own is None else own.parts[part],
                attention_mask=whole[1],
                position_ids=whole[2],
                next_sequence_length=count,
                **more,
            )
            anew = anew or reads_anew
        return steps, anew

    def _in_step(self, terms: list[Term], ids: torch.Tensor) -> list[tuple[str, PreTrainedModel, torch.Tensor]]:
        """The base, and the networks that read a token for each of its, with what they read."""
        found = {BASE: (self.base, ids)}
        for term in terms:
            if not term.reads_text:
                own = ids if term.link is None else term.link.alignment.value_ids(ids)
                width = logits_width(self.base)
                found |= {part: (network, readable(own, network, width)) for part, network in _in_term(term)}
        return [(part, model, own) for part, (model, own) in found.items()]

    def cache_of_call(
        self, use_cache: bool | None, cache: Cache | None, terms: list[Term]
    ) -> tuple[bool, ValueAdapterCache | None]:
        """Whether a call keeps a cache, by default as the base and not in training; and that cache."""
        if use_cache is None:
            own = bool(getattr(self.base.config.get_text_config(), "use_cache", True))
            use_cache = own and not self.training and _without_cache(self.base, terms) is None
        if not isinstance(cache, ValueAdapterCache):
            self.attached.bodies.check()
        return use_cache, self._cache_parts(cache, terms) if use_cache or cache is not None else None

    def steps_of_call(
        self,
        steps: Steps | None,
        input_ids: torch.Tensor | None,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        cache: ValueAdapterCache | None,
    ) -> Steps:
        """What `generate` has prepared, or the same for a call of others: of models with a preparation of their own.

        A processor that goes on from a cache, as that of `guidance_scale` does, prepares nothing.
        """
        terms = self.attached.terms()
        if steps is not None or cache is None or not terms or not isinstance(attention_mask, torch.Tensor | None):
            return steps or {}
        input_ids = cast(torch.Tensor, input_ids)
        made = {}
        for part, model, ids in self._in_step(terms, input_ids):
            if part not in cache.prefixes and prepares_otherwise(model) and has_read(cache.parts[part]):
                given = {"attention_mask": attention_mask, "position_ids": position_ids, "cache": cache.parts[part]}
                made[part], _ = prepared_by(model, ids, use_cache=True, is_first_iteration=False, **given)
        return made

    def _get_candidate_generator(
        self, *args: Any, model_kwargs: dict[str, Any], assistant_model: PreTrainedModel | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers; an assistant is given only what it can take, and a chat only if it has its template."""
        own = getattr(self, "base_tokenizer", None)
        its = getattr(assistant_model, "base_tokenizer", None)
        alike = own is not None and its is not None and own.chat_template == its.chat_template
        if not (isinstance(assistant_model, GenerationMethods) and alike) or kwargs.get("assistant_tokenizer"):
            model_kwargs = {key: value for key, value in model_kwargs.items() if key not in _OWN_ARGUMENTS}
        return cut_at_ends(
            super()._get_candidate_generator(
                *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
            )
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


NO_IDS = (
    "value networks read token ids, and only `inputs_embeds` came, which are the base's own. Pass `input_ids`, or use "
    "the base alone with disable_adapter()"
)


def _behind(
    prefix: BasePrefix,
    input_ids: torch.Tensor,
    mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    *,
    cache: ValueAdapterCache,
    count: int | None,
) -> tuple[Any, Any, Any] | None:
    """The whole text with its prefix, with which the cache begins: ids, mask and positions as the model counts them.

    Args:
        prefix: what the model reads before the text.
        input_ids: (batch, seq) the whole text, or where `count` is None what is read next.
        mask: (batch, past + seq), or None.
        position_ids: (batch, seq), or None.
        cache: the cache.
        count: how many of the tokens are read next.

    Returns:
        None where the model is about to read the prefix itself (`BasePrefix.call`).
    """
    new = input_ids if count is None else input_ids[:, -count:]
    begun, state = prefix.begin(new, mask, cache, reads_now=False)
    if state.after_padding and not has_read(cache.parts[prefix.part]):
        return None
    ids = begun
    if count is not None:
        lead = input_ids.new_tensor(prefix.ids[: state.lead]).expand(len(new), -1)
        ids = torch.cat([lead, input_ids[:, :-count], begun], dim=1)
    return ids, prefix.mask(mask, state), None if position_ids is None else position_ids + state.lead


def _networks(terms: list[Term]) -> list[tuple[str, PreTrainedModel]]:
    return list({part: network for term in terms for part, network in _in_term(term)}.items())


def _prefixes(terms: list[Term]) -> dict[str, BasePrefix]:
    """Part -> the prefix of each network that reads one in step with the base."""
    in_step = [(term, part) for term in terms if not term.reads_text for part in term.parts]
    return {part: prefix for term, part in in_step if (prefix := term.prefix_of(part)) is not None}


def _in_term(term: Term) -> list[tuple[str, PreTrainedModel]]:
    return list(zip(term.parts, term.networks, strict=True))


def _without_cache(base: PreTrainedModel, terms: list[Term]) -> PreTrainedModel | None:
    """A model among those in step that keeps no cache of transformers' kind; None where all do."""
    in_step = [network for term in terms if not term.reads_text for network in term.networks]
    return next((model for model in (base, *in_step) if not keeps_cache(model)), None)


def _check_length(name: str, model: PreTrainedModel, longest: int | None) -> None:
    limit = longest_text(model)
    if limit and longest and longest > limit:
        raise UnsupportedModeError(
            f"prompt and answer may be {longest:,} tokens long, and {name} reads {limit:,} at most; shorten the "
            "prompt, or lower max_new_tokens"
        )
