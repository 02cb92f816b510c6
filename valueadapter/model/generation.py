"""How generation carries several models at once: one cache of parts, own inputs per model; computes no logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from valueadapter.adapter.causal_lm import execution_device, in_its_words, longest_text, moved
from valueadapter.artifact.config.prefix import RECORDED, Recorded
from valueadapter.compat import cache_by_any_name, cache_in, carried, renamed
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.forward.cache import BASE, ValueAdapterCache
from valueadapter.forward.steps import STEPS, Steps, empty, has_read, keeps_cache, prepared_by, prepares_otherwise
from valueadapter.forward.value_logits import Term
from valueadapter.model.drafting import DraftedCandidates, OwnDraft, check_no_state, own_draft
from valueadapter.model.mixed_rows import AdapterNames, groups_of, prepared_rows, rows_cache
from valueadapter.model.preparing import COMMON, OWN_ARGUMENTS, aligned, in_step, networks_of, own_steps, prefixes_of
from valueadapter.model.stopping import (
    AnswerEnds,
    Guesses,
    ends_of,
    guesses_here,
    guessing,
    stopping,
)
from valueadapter.model.wrapped import WrappedModel

_POSITIONAL = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:]
"""What `generate` takes behind the prompt, in order."""

_NOT_IDS = (
    "generate takes token ids, a tensor of (batch, seq); got {}. For a chat: generate(**model.chat_inputs(messages)), "
    "for text: generate(**tokenizer(text, return_tensors='pt'))"
)


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
        speculative: bool = False,
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
            speculative: the adapter's own network drafts tokens, which the base and the other networks verify in one
                pass each: the same answer, greedy or by the same distribution, sooner where the base is the larger
                model. For one prompt. How many it drafts follows from what was taken before; `num_assistant_tokens`
                fixes it.
            kwargs: as there.

        Raises:
            AdapterNameError: unknown names, or not one entry for each prompt.
            ConfigError: a chat or text in the place of ids; `stop_strings` that are no texts, or empty ones, which
                would end every answer at once.
            UnsupportedModeError: `inputs_embeds`, or a cache of other models, while an adapter acts; `speculative` for
                several prompts or beams, or where no adapter that acts can draft.
        """
        kwargs = renamed({**kwargs, **dict(zip(_POSITIONAL, args, strict=False))}, carried())
        ids = kwargs.get("input_ids") if inputs is None else inputs
        if ids is not None and not isinstance(ids, torch.Tensor):
            raise ConfigError(_NOT_IDS.format(type(ids).__name__))
        batch = 1 if ids is None else len(ids)
        groups = [] if adapter_names is None else groups_of(self.attached, adapter_names, batch)
        if len(groups) == 1:  # nothing is mixed, so that assistants need not know
            with self.attached.scoped(groups[0].names):
                return self.generate(inputs, stop_strings=stop_strings, speculative=speculative, **kwargs)
        if speculative:
            kwargs["assistant_model"] = self._own_draft(batch, kwargs)
        named: dict[int, tuple[str, ...]] = {row: group.names for group in groups for row in group.rows}
        rows: list[tuple[str, ...] | None] = [named[row] for row in sorted(named)] or [None]
        ends = ends_of(self.attached, rows, stop_strings, ids=ids, arguments=kwargs)
        how = stopping(kwargs, ends, [kwargs.get("generation_config"), self.generation_config])
        if adapter_names is None:
            return self._generate(inputs, **how)
        with self.attached.scoped(tuple(self.attached.active_names()), rows=adapter_names):
            return super().generate(inputs, **how)

    def _own_draft(self, rows: int, kwargs: dict[str, Any]) -> OwnDraft:
        """The network that drafts, by the settings that hold in this call."""
        names = ("use_cache", "num_assistant_tokens", "num_beams", "num_return_sequences", "prompt_lookup_num_tokens")
        given = dict(kwargs)
        for settings in (kwargs.get("generation_config"), self.generation_config):  # the second fills up the first
            given |= {name: getattr(settings, name, None) for name in names if given.get(name) is None}
        return own_draft(self, given["num_assistant_tokens"], rows=rows, others=given)

    def _generate(self, inputs: torch.Tensor | None, **kwargs: Any) -> Any:
        mixed = (scope := self.attached.scope()) is not None and scope.rows is not None
        guesses = kwargs.get("assistant_model") is not None or kwargs.get("prompt_lookup_num_tokens") is not None
        if guesses and (terms := self.attached.terms()):
            in_step = [one for one in aligned(self.base, terms).values() if keeps_cache(one)]
            check_no_state(in_step, "a guess by an assistant or from the prompt")
        ends = [one for one in kwargs.get("stopping_criteria") or () if isinstance(one, AnswerEnds)]
        cuts = guesses and bool(ends)  # which the base's own generate does not know to do with its guesses
        if mixed or cuts or self.attached.terms() or self.attached.acting_prefix() is not None:
            if kwargs.get("inputs_embeds") is not None:
                raise UnsupportedModeError(NO_IDS)
            return super().generate(inputs, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in OWN_ARGUMENTS}
        if isinstance(cache := kwargs.get(carried()), ValueAdapterCache):
            cache.check_parts([BASE])
            kwargs[carried()] = cache.parts[BASE]
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
        cache.check_parts([BASE, *networks_of(terms)])
        if cache.bodies is None:
            cache.bodies = self.attached.bodies.of(networks_of(terms).values())
        return cache

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *how: Any) -> None:
        """Each model makes the cache that was asked for, in its own shape; `generate` carries them as one."""
        if (scope := self.attached.scope()) is not None and scope.rows is not None:
            groups = groups_of(self.attached, scope.rows, how[1])
            cache = rows_cache(self, generation_config, groups, model_kwargs.get(carried()), how)
            model_kwargs.update({} if cache is None else {carried(): cache})
            return
        terms = self.attached.terms()
        self.attached.bodies.check()
        before = prefixes_of(self, terms)
        if BASE in before:
            before[BASE].check_length(generation_config.max_length)
        if _without_cache(self.base, terms) is not None and model_kwargs.get(carried()) is None:
            generation_config.use_cache = False  # every step reads the whole text
        if terms:
            for part, model in aligned(self.base, terms).items():
                _check_length("the base" if part == BASE else part, model, generation_config.max_length)
            for reader in before.values():
                reader.check_length(generation_config.max_length)
        if model_kwargs.get(carried()) is not None:
            model_kwargs[carried()] = self._cache_parts(model_kwargs[carried()], terms)
            model_kwargs[carried()]._is_user_defined = True  # generate then leaves it alone
            return
        parts: dict[str, Any] = {}
        readers = {part: term.reader(part) for term in terms if term.reads_text for part in term.parts}
        for part, model in [(BASE, self.base), *networks_of(terms).items()]:
            if part in readers:
                readers[part].longest = generation_config.max_length
                parts.update({part: readers[part]} if parts else {})
                continue
            prepared: dict[str, Any] = {}
            more = len(before[part].ids) if part in before else 0
            model._prepare_cache_for_generation(generation_config, prepared, *how[:-1], how[-1] + more)
            if (cache := cache_in(prepared)) is not None:
                parts[part] = cache
        if parts:
            model_kwargs[carried()] = ValueAdapterCache(parts)
            model_kwargs[carried()].longest = generation_config.max_length
            model_kwargs[carried()].bodies = self.attached.bodies.of(networks_of(terms).values())

    @cache_by_any_name
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
        guesses = guesses_here()  # an assistant's own steps have a cache of their own
        if guesses is not None and next_sequence_length is None and guesses.cache is cache is not None:
            read = cache.read_by(BASE)  # of an earlier answer, of which transformers' assisted decoding knows nothing
            next_sequence_length = input_ids.shape[1] - read if read > 0 else None
        if not self.attached.terms() and self.attached.acting_prefix() is None:
            own = cache.parts[BASE] if isinstance(cache, ValueAdapterCache) else cache
            given |= {"next_sequence_length": next_sequence_length, "cache": own}
            given = in_its_words(self.base, given, "prepare_inputs_for_generation")
            made = self.base.prepare_inputs_for_generation(input_ids, **given)
            if cache is not None and cache_in(made) is None and has_read(cache):
                empty(cache)  # the base reads everything anew
            return {**renamed(made, "cache"), "cache": cache}
        steps, anew = own_steps(self, input_ids, next_sequence_length, **given)
        if anew and cache is not None and has_read(cache):
            empty(cache)
            next_sequence_length, given["is_first_iteration"] = None, True
            steps, _ = own_steps(self, input_ids, None, **given)
        common: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        if next_sequence_length is not None:
            common["input_ids"] = input_ids[:, -next_sequence_length:]
        if position_ids is not None:
            common["position_ids"] = position_ids[..., -common["input_ids"].shape[1] :]
        of_base = {key: value for key, value in steps.get(BASE, kwargs).items() if key not in COMMON}
        about = {key: kwargs[key] for key in (*OWN_ARGUMENTS, "use_cache", "logits_to_keep") if key in kwargs}
        made = {**of_base, **{key: one for key, one in common.items() if one is not None}}
        device = execution_device(self.base)
        made = moved(made, device) if device.type != "meta" else made
        made.pop("is_first_iteration", None)
        return {**made, **about, "cache": cache, STEPS: steps}

    def cache_of_call(
        self, use_cache: bool | None, cache: Cache | None, terms: list[Term]
    ) -> tuple[bool, ValueAdapterCache | None]:
        """Whether a call keeps a cache, by default as this model or else its base is set; and that cache."""
        if use_cache is None:
            own = getattr(self.config, "use_cache", None)  # a Trainer sets it, whose packed rows a cache would join
            own = getattr(self.base.config.get_text_config(), "use_cache", True) if own is None else own
            use_cache = bool(own) and not self.training and _without_cache(self.base, terms) is None
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
        for part, model, ids in in_step(self, terms, input_ids):
            if part not in cache.prefixes and prepares_otherwise(model) and has_read(cache.parts[part]):
                given = {"attention_mask": attention_mask, "position_ids": position_ids, "cache": cache.parts[part]}
                made[part], _ = prepared_by(model, ids, use_cache=True, is_first_iteration=False, **given)
        return made

    def _get_candidate_generator(
        self, *args: Any, model_kwargs: dict[str, Any], assistant_model: PreTrainedModel | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers; an assistant is given only what it can take, and a chat only if it has its template."""
        guesses = cast(Guesses, guesses_here())
        if isinstance(assistant_model, OwnDraft):
            how = (kwargs["generation_config"], kwargs["logits_processor"], guesses)
            return guesses.cutting(DraftedCandidates(self, assistant_model, *how))
        own = getattr(self, "base_tokenizer", None)
        its = getattr(assistant_model, "base_tokenizer", None)
        alike = own is not None and its is not None and own.chat_template == its.chat_template
        if not (isinstance(assistant_model, GenerationMethods) and alike) or kwargs.get("assistant_tokenizer"):
            model_kwargs = {key: value for key, value in model_kwargs.items() if key not in OWN_ARGUMENTS}
        generator = super()._get_candidate_generator(
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )
        return guesses.cutting(generator)

    def _assisted_decoding(self, input_ids: torch.Tensor, **how: Any) -> Any:
        """As in transformers; what is accepted ends where plain decoding would, and an error leaves no guess behind."""
        with guessing(how["stopping_criteria"], how["generation_config"], how.get(carried())):
            return super()._assisted_decoding(input_ids, **how)

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


def _without_cache(base: PreTrainedModel, terms: list[Term]) -> PreTrainedModel | None:
    """A model among those in step that keeps no cache of transformers' kind; None where all do."""
    return next((model for model in aligned(base, terms).values() if not keeps_cache(model)), None)


def _check_length(name: str, model: PreTrainedModel, longest: int | None) -> None:
    limit = longest_text(model)
    if limit and longest and longest > limit:
        raise UnsupportedModeError(
            f"prompt and answer may be {longest:,} tokens long, and {name} reads {limit:,} at most; shorten the "
            "prompt, or lower max_new_tokens"
        )
