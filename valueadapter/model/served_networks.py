"""The networks of adapters as an engine runs them: whose weights they have, their LoRAs, what each counts for."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import logits_width
from valueadapter.adapter.lora import merged
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.config import Weights
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.serving.directory import Checkpoint, Voice

IN_TRANSFORMERS = "generate with transformers: ValueAdapterForCausalLM.from_pretrained(base, adapter)"
"""What goes where an engine does not."""


class ServedNetworks:
    """The terms of a sum, put together adapter by adapter.

    Attributes:
        voices: each network, and its weight.
        tensors: those that are the adapters' own, each under `voice_<index>/<name>` or `lora_<index>/<name>`.
        models: the loaded network of each voice.
        base_weight: of the base's logits.
        end_weight: added to the logits of the tokens that end a text, in nats.
    """

    def __init__(self) -> None:
        self.voices: list[Voice] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.models: list[PreTrainedModel] = []
        self.base_weight, self.end_weight = 1.0, 0.0

    def add(self, adapter: ValueAdapter, weights: Weights, scale: float) -> None:
        """Adds an adapter's terms; a body without LoRA that is there already counts for more.

        Raises:
            ConfigError: a LoRA of another kind than two factors on linear layers.
        """
        self.base_weight += scale * (weights.base - 1)
        self.end_weight += scale * weights.end
        for network, spec, weight in zip(adapter.networks, adapter.config.networks, weights.networks, strict=True):
            factors = lora_of(network)
            body = None if spec.repo is None else Checkpoint(spec.repo, spec.revision)
            if factors:
                lora: Any = network.peft_config[network.active_adapter]
                body = Checkpoint(lora.base_model_name_or_path, lora.revision)
            elif (index := self._plain(body)) is not None:
                old = self.voices[index]
                self.voices[index] = Voice(old.config, old.weight + scale * weight, old.body)
                continue
            self._append(network, scale * weight, body, factors)

    def save_draft(self, place: Path, width: int) -> None:
        """Writes the network that counts for most, LoRA in its weights.

        Args:
            place: a new directory.
            width: columns of the base's logits.

        Raises:
            UnsupportedModeError: the network has another number of columns.
        """
        best = max(range(len(self.voices)), key=lambda index: self.voices[index].weight)
        if (own := logits_width(self.models[best])) != width:
            raise UnsupportedModeError(
                f"the network that would draft has logits of {own:,} columns and the base of {width:,}, and vLLM "
                "drafts with equal ones alone; export without --draft"
            )
        merged(copy.deepcopy(self.models[best])).save_pretrained(place)

    def _plain(self, body: Checkpoint | None) -> int | None:
        """Where a body is without LoRA."""
        found = (i for i, one in enumerate(self.voices) if body and one.body == body and not one.lora_ranks)
        return next(found, None)

    def _append(self, network: Any, weight: float, body: Checkpoint | None, factors: Factors) -> None:
        index, own = len(self.voices), _without_lora(network)
        config = {**own.config.to_dict(), "architectures": [type(own).__name__]}
        ranks = {name: a.shape[0] for name, (a, _) in factors.items()}
        self.voices.append(Voice(json.loads(json.dumps(config)), weight, body, ranks))
        self.models.append(network)
        for name, (a, b) in factors.items():
            self.tensors |= {f"lora_{index}/{name}.lora_A": a, f"lora_{index}/{name}.lora_B": b}
        if body is None:
            self.tensors |= {f"voice_{index}/{name}": tensor for name, tensor in _own_tensors(own).items()}


Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module of the body -> A (rank, in) and B (out, rank), scaled."""


def lora_of(network: Any) -> Factors:
    """The LoRA of a network; empty for one that is none.

    Raises:
        ConfigError: a LoRA of another kind than two factors on linear layers.
    """
    if not isinstance(getattr(network, "peft_config", None), dict):
        return {}
    from peft.tuners.lora import LoraLayer  # slow to import, and few adapters need it

    name = network.active_adapter
    lora = network.peft_config[name]
    kinds = ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "bias")
    others = [kind for kind in kinds if getattr(lora, kind, None) not in (None, False, "none")]
    layers = {path: one for path, one in _without_lora(network).named_modules() if isinstance(one, LoraLayer)}
    others += [f"a LoRA on '{path}' ({type(one).__name__})" for path, one in layers.items() if name not in one.lora_A]
    head = _without_lora(network).get_output_embeddings()
    others += [f"a LoRA on '{path}', the output head" for path, one in layers.items() if one is head]
    if others or not layers:
        raise ConfigError(
            f"this LoRA has {', '.join(others) or 'no layer'}, which vLLM's layers cannot carry; put it into its body "
            f"(network.merge_and_unload()) and save the adapter so, or {IN_TRANSFORMERS}"
        )
    found = {}
    for path, layer in layers.items():
        a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
        found[path] = (a.contiguous(), (b * layer.scaling[name]).contiguous())
    return found


def _without_lora(network: Any) -> Any:
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def _own_tensors(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A network's weights as its file has them: what is tied is there once."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, max_shard_size="1000GB")
        return load_file(Path(folder, file_names.WEIGHTS))
