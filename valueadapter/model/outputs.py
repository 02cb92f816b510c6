"""What the wrapper shows transformers: its configuration, and what `forward` returns; computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from valueadapter.artifact.config import MODEL_TYPE
from valueadapter.compat import cache_in, carried


class ValueAdapterModelConfig(PreTrainedConfig):
    """What transformers sees as the wrapper's configuration: the base's, under `text_config`.

    It also lets `AutoConfig` recognise an adapter's config.json, whose meaning `ValueAdapterConfig` holds.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]

    def __init__(self, text_config: PreTrainedConfig | None = None, **kwargs: Any) -> None:
        self.text_config = text_config
        super().__init__(**kwargs)


@dataclass
class ValueAdapterOutput(CausalLMOutputWithPast):
    """What `forward` returns; `hidden_states` and `attentions` are the base's.

    Attributes:
        value_logits: what was added to the base's logits, (batch, seq, base_vocab); only with
            `output_value_logits=True`.
        each: the same adapter by adapter, by name, with `output_value_logits="each"`; with "networks" the logits of
            `base` and of each network (`<adapter>.<index>`), before any weight.
    """

    value_logits: torch.Tensor | None = None
    each: dict[str, torch.Tensor] | None = None


if carried() != "cache":
    ValueAdapterOutput.cache = property(cache_in)  # the field has its older name there
