"""One call of the wrapped model, step by step, so that steps of several calls can be one forward pass.

First the base, then networks that others' calls have as well, then the rest and the sum. Knows nothing of generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.cache import BASE
from valueadapter.forward.one_pass import NetworkSaid, Pass
from valueadapter.forward.positions import PACKING, check_not_packed
from valueadapter.forward.prefix_reading import BaseCall
from valueadapter.forward.row_plan import Prompt
from valueadapter.forward.steps import STEPS, logits_of
from valueadapter.forward.sum import BASE_LOGITS, Apart, kept_positions, summed
from valueadapter.forward.value_logits import Inputs, of_part, passes_of_bodies, shared_parts
from valueadapter.model.chat import Messages, prompts_of
from valueadapter.model.generation import GenerationMethods
from valueadapter.model.outputs import ValueAdapterOutput


class Call:
    """A call whose models have not run yet; arguments as `ValueAdapterForCausalLM.forward`.

    Attributes:
        terms: the adapters that act.
        inputs: what they and the base read.
    """

    def __init__(
        self,
        model: GenerationMethods,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | Mapping[str, Any] | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_value_logits: Apart = False,
        messages: Messages | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **more: Any,
    ) -> None:
        model.check_base()
        self.model, self.apart, self.messages = model, output_value_logits, messages
        self.terms = model.attached.terms()
        use_cache, parts = model.cache_of_call(use_cache, cache, self.terms)
        self.inputs = Inputs(
            input_ids=cast(torch.Tensor, input_ids),
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            use_cache=use_cache,
            cache=parts,
            packing={key: more[key] for key in PACKING if more.get(key) is not None},
            shared=shared_parts(self.terms),
            steps=model.steps_of_call(more.pop(STEPS, None), input_ids, attention_mask, position_ids, parts),
        )
        if parts is not None:
            self.inputs.said_by_part |= parts.take_ahead()
        self._everywhere = any(term.reads_prediction for term in self.terms)  # a network reads the base at every token
        keep = 0 if self._everywhere else logits_to_keep
        self._base_call = BaseCall({"inputs_embeds": inputs_embeds}) if input_ids is None else self._reads(keep)
        arguments: dict[str, Any] = {"use_cache": use_cache, "logits_to_keep": keep}
        if position_ids is not None:
            arguments["position_ids"] = position_ids
        arguments |= of_part(BASE, attention_mask, parts)
        arguments |= {**self._base_call.arguments, **self.inputs.steps.get(BASE, {}), **more}
        self.base_pass = Pass(model.base, arguments, NetworkSaid)

    def _reads(self, keep: int | torch.Tensor) -> BaseCall:
        """What the base is called with besides its mask and cache: the prompt, or prefix and prompt."""
        inputs, prefix = self.inputs, self.model.attached.acting_prefix()
        if prefix is not None:
            check_not_packed(inputs.packing, len(inputs.input_ids))
            return prefix.call(inputs.input_ids, inputs.attention_mask, inputs.position_ids, inputs.cache, keep)
        if inputs.cache is not None and BASE in inputs.cache.prefixes:
            raise UnsupportedModeError(
                "this cache was begun with a base prefix, and now none acts. Start with a new cache after changing the "
                "prefix or the active adapters"
            )
        return BaseCall({"input_ids": inputs.input_ids})

    def run_base(self, logits: torch.Tensor | None = None) -> None:
        """Runs the base, or takes what it said in a pass with others: (batch, read, base_vocab)."""
        if logits is not None:
            self._base_output: Any = CausalLMOutputWithPast(logits=logits)
        else:
            with torch.no_grad():
                self._base_output = logits_of(self.model.base, self.base_pass.arguments or {})
        own = self._base_call.cut(self._base_output.logits)
        self.inputs.base_logits = kept_positions(own, self.inputs.logits_to_keep) if self._everywhere else own
        self.inputs.prediction = own if self._everywhere else None
        self._prompts = [None] * len(self.terms) if self.messages is None else self._read_prompts(self.messages)

    def _read_prompts(self, messages: Messages) -> list[list[Prompt] | None]:
        """For each adapter each row's prompt as its networks read it."""
        count, tokenizer = len(self.inputs.base_logits), self.model.attached.tokenizer
        return [prompts_of(messages, term, count, tokenizer, self.inputs.cache) for term in self.terms]

    def passes(self) -> dict[str, Pass]:
        """The calls of networks that may be of one body with others, by name; to be run, or left to `finish`."""
        return passes_of_bodies(self.terms, self.inputs, self._prompts)

    def finish(
        self, said: Mapping[str, NetworkSaid], loss_of: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> ValueAdapterOutput:
        """Runs the networks that have not spoken, and adds up.

        Args:
            said: what some of `passes` gave, by name.
            loss_of: the loss of the sum, where one is wanted.
        """
        self.inputs.said_by_part |= said
        logits, added = summed(self.terms, self.inputs, self._prompts, apart=self.apart)
        return ValueAdapterOutput(
            None if loss_of is None else loss_of(logits),
            logits,
            self.inputs.cache,
            self._base_output.get("hidden_states"),
            self._base_output.get("attentions"),
            _all_added(added, logits) if self.apart else None,
            added if self.apart in ("each", "networks") else None,
        )


def _all_added(added: dict[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """The value logits, from what `summed` gives beside the sum."""
    if BASE_LOGITS in added:
        own = added[BASE_LOGITS]
        return (logits - own).where(~own.isneginf(), 0.0)
    return sum(added.values(), torch.zeros_like(logits))
