"""A base and the networks of value adapters in one vLLM engine; the sum is that of `valueadapter.forward.sum`.

All of them read one stream of tokens, and each has keys and values of its own in the engine's cache, so that batching,
chunked prefill and prefix caching hold for the whole. `forward` returns their hidden states side by side, and
`compute_logits`, which sees only the rows that are sampled from, adds up their logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model

from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.serving.directory import KEY, SCALE_KEY, WEIGHTS, Checkpoint, Served
from valueadapter.serving.voices import check_keeps_keys_and_values, served_voices


class ValueAdaptedForCausalLM(nn.Module):
    """What vLLM runs for a directory that `valueadapter export --to vllm` wrote.

    Raises:
        ConfigError: a scale that is no number, or a LoRA on what vLLM has no linear layer for.
        UnsupportedModeError: an architecture that vLLM serves by other interfaces.
    """

    allow_patterns_overrides = (WEIGHTS,)
    """The directory's own weights; the base's and the bodies' are `secondary_weights`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.served = served = Served.from_json(getattr(self.config, KEY))
        self.scale = _scale(getattr(self.config, SCALE_KEY, 1.0))
        self.base = init_vllm_registered_model(
            vllm_config, prefix=prefix, hf_config=self.config, architectures=list(served.architectures)
        )
        check_keeps_keys_and_values(self.base, "the base")
        self.voices = served_voices(served, vllm_config, self.base)
        self.value_networks = nn.ModuleList(self.voices)
        self.hidden_sizes: list[int] = []  # of the last call; a model may give others than its config.json says
        checkpoints = {"base": served.base}
        for index, (voice, given) in enumerate(zip(self.voices, served.voices, strict=True)):
            if voice.owns_body and given.body is not None:
                checkpoints[f"voice_{index}"] = given.body
        self.secondary_weights = [
            DefaultModelLoader.Source(one.name, one.revision, prefix=f"{name}/") for name, one in checkpoints.items()
        ]
        self.ends: torch.Tensor
        self.register_buffer("ends", torch.tensor(served.ends, dtype=torch.long), persistent=False)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The base's own, which vLLM asks for and `forward` does not use."""
        embeddings: torch.Tensor = self.base.embed_input_ids(input_ids)
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of the base and then of each network, (tokens, sum of their hidden sizes).

        Raises:
            UnsupportedModeError: embeddings in place of tokens, of which networks have their own.
        """
        if input_ids is None or inputs_embeds is not None:
            raise UnsupportedModeError("value networks read tokens; give a prompt of text or tokens, no embeddings")
        states = [self.base(input_ids, positions, intermediate_tensors, None)]
        states += [voice(input_ids, positions) for voice in self.voices]
        self.hidden_sizes = [one.shape[-1] for one in states]
        return torch.cat(states, dim=-1)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """base + scale · ((base_weight - 1) · base + Σ weight · network + end), (rows, vocab).

        None on devices that vLLM gathers no logits on.
        """
        each = torch.split(hidden_states, self.hidden_sizes, dim=-1)
        logits: torch.Tensor | None = self.base.compute_logits(each[0].contiguous())
        # every device takes part in each gathering, whatever it gets
        said = [v.model.compute_logits(h.contiguous()) for v, h in zip(self.voices, each[1:], strict=True)]
        if logits is None:
            return None
        served = self.served
        if (own := 1 + self.scale * (served.base_weight - 1)) != 1:  # what the base rules out stays ruled out
            logits = (own * logits).where(~logits.isneginf(), logits)
        for given, value in zip(served.voices, said, strict=True):
            logits = logits.add(_fit(value, logits.shape[-1]), alpha=self.scale * given.weight)
        if served.end_weight:
            logits[..., self.ends] += self.scale * served.end_weight
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the directory's own tensors and what `secondary_weights` names."""
        loaded: set[int] = set()
        for part, group in itertools.groupby(weights, key=lambda pair: pair[0].partition("/")[0]):
            seen: dict[str, torch.Tensor] = {}
            own = self._seen(((name.partition("/")[2], tensor) for name, tensor in group), seen)
            if part == "base":
                names = self.base.load_weights(own)
                params = dict(self.base.named_parameters(remove_duplicate=False))
                loaded |= {id(params[name]) for name in (params if names is None else names) if name in params}
                self._check_order(self.served.base, seen)
                continue
            kind, index = part.rsplit("_", 1)
            voice = self.voices[int(index)]
            loaded |= voice.load_lora(own) if kind == "lora" else voice.load_body(own)
            if kind != "lora":
                self._check_order(voice.body, seen)
        return {name for name, parameter in self.named_parameters() if id(parameter) in loaded}

    def _seen(
        self, weights: Iterable[tuple[str, torch.Tensor]], seen: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights, of which those are kept in `seen` whose order is checked once they are loaded."""
        wanted = {f"{name}.weight" for voice in self.voices for name in voice.orders_matter()}
        for name, tensor in weights:
            if any(one.endswith(name) for one in wanted):
                seen[name] = tensor
            yield name, tensor

    def _check_order(self, body: Checkpoint | None, seen: dict[str, torch.Tensor]) -> None:
        for voice in self.voices:
            if voice.body == body:
                voice.check_order(seen)

    def process_weights_after_loading(self) -> None:
        """What the models do after loading, which vLLM asks of the whole model alone."""
        for model in (self.base, *(voice.model for voice in self.voices)):
            if hasattr(model, "process_weights_after_loading"):
                model.process_weights_after_loading()


def _fit(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Cut, or filled up with the row's mean, to `width` columns: what is beyond belongs to no token."""
    missing = width - logits.shape[-1]
    if missing <= 0:
        return logits[..., :width]
    return torch.cat((logits, logits.mean(-1, keepdim=True).expand(*logits.shape[:-1], missing)), dim=-1)


def _scale(given: object) -> float:
    if not isinstance(given, (int, float)) or not abs(given) < float("inf"):
        raise ConfigError(f"'{SCALE_KEY}' must be a finite number; got {given!r}")
    return float(given)
