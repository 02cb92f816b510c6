"""Ends an answer in vLLM at the texts that an adapter ends answers with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from valueadapter.serving.directory import KEY, Served

SWITCH = "value_adapter_stops"
"""Of a request's `vllm_xargs`: 0 lets the answer go on."""


class StopsOfTheAdapter(AdapterLogitsProcessor):
    """After such a text only the end-of-sequence token is left.

    A request that names `stop` itself, or that ignores ends, is left alone.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        served = Served.from_json(getattr(vllm_config.model_config.hf_config, KEY))
        self.stops = served.stop_strings
        self.tokenizer: Any = cached_tokenizer_from_config(vllm_config.model_config)
        own = self.tokenizer.eos_token_id
        self.end = served.ends[0] if own is None else own  # there is one, see `export_to_vllm`

    def is_argmax_invariant(self) -> bool:
        """Whether greedy decoding may leave it out."""
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """What ends the answers to a request; None where nothing does."""
        switched_off = str((params.extra_args or {}).get(SWITCH, 1)).lower() in ("0", "false", "0.0")
        if params.stop or params.ignore_eos or switched_off:
            return None
        return self._end_after_stop

    def _end_after_stop(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        longest = max(len(stop.encode()) for stop in self.stops)  # a token has one byte at least
        said = output_ids[-longest - 1 :]
        text = self.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        end = self.end
        # where a grammar or `min_tokens` rules an end out, the answer goes on, as with texts that a request names
        if any(stop in text for stop in self.stops) and not logits[end].isneginf():
            kept = logits[end].clone()
            logits.fill_(float("-inf"))
            logits[end] = kept
        return logits
