"""The networks of a served directory as vLLM's own models: a body's weights are held once, whatever reads with them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.utils import init_vllm_registered_model

from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.serving.directory import Checkpoint, Served, Voice
from valueadapter.serving.parallel_lora import LoRALinear


class ServedVoice(nn.Module):
    """One network, with keys and values of its own.

    Attributes:
        model: vLLM's model of its architecture.
        body: where the weights of its body lie; None in the served directory.
        width: columns of its logits.
        owns_body: whether its body's weights are loaded for it, and not another model's.
    """

    def __init__(self, voice: Voice, index: int, vllm_config: VllmConfig, first: nn.Module | None) -> None:
        super().__init__()
        name = f"voice_{index}"  # a number alone would be taken for a layer's
        config = AutoConfig.for_model(**copy.deepcopy(voice.config))
        self.width = int(config.get_text_config().vocab_size)
        self.owns_body = first is None
        own = _settings_of(config, vllm_config)
        # vLLM keeps compiled code, which names layers, by its settings: no two networks may have the same
        more = vllm_config.additional_config
        more = more if isinstance(more, dict) else {"settings": more.compute_hash()}
        own.additional_config = {**more, name: voice.lora_ranks}
        with set_model_tag(name):
            self.model = init_vllm_registered_model(own, prefix=name)
        if first is not None:
            _share(self.model, first, name)
        self.body = voice.body
        self.loras = self._with_lora(voice, vllm_config.model_config.dtype)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states, (tokens, hidden). A token that it has no row for is read as its id 0."""
        known = input_ids.masked_fill(input_ids >= self.width, 0)
        states: torch.Tensor = self.model(known, positions)
        return states

    def load_body(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[int]:
        """Loads everything but the LoRA.

        Returns:
            The id of each parameter that has its weights.
        """
        with self._without_lora():
            names = self.model.load_weights(weights)
            own = dict(self.model.named_parameters(remove_duplicate=False))
            return {id(own[name]) for name in (own if names is None else names) if name in own}

    def check_order(self, checkpoint: Mapping[str, torch.Tensor]) -> None:
        """Checks that vLLM keeps the rows of layers with a LoRA in the order in which the LoRA has them.

        Args:
            checkpoint: tensors of the body, under their names in its files; those of `orders_matter` at least.

        Raises:
            ConfigError: its way of loading has changed the order, as with queries, keys and values by heads.
        """
        for name, (layer, _) in self.loras.items():
            given = next((one for key, one in checkpoint.items() if f"{name}.weight".endswith(key)), None)
            if given is not None and not layer.keeps_order(given):
                raise ConfigError(
                    f"the LoRA is on '{name}', whose rows vLLM's {type(self.model).__name__} keeps in another order "
                    "than transformers; merge the LoRA into its body and export that, or generate with transformers"
                )

    def orders_matter(self) -> frozenset[str]:
        """Names of the layers with a LoRA that are several projections in one tensor."""
        return frozenset(name for name, (layer, _) in self.loras.items() if layer.is_fused)

    def load_lora(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[int]:
        """Loads the LoRA, whose tensors are named `<module>.lora_A` and `<module>.lora_B`; returns as `load_body`.

        Raises:
            ConfigError: other tensors than the configuration names.
        """
        found = dict(weights)
        wanted = {f"{name}.lora_{factor}" for name in self.loras for factor in "AB"}
        if found.keys() != wanted:
            raise ConfigError(
                f"the LoRA's tensors are not those that config.json names (for one, "
                f"'{min(found.keys() ^ wanted)}'); export the adapter again"
            )
        factors: dict[LoRALinear, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
        for name, (layer, part) in self.loras.items():
            factors.setdefault(layer, {})[part] = found[f"{name}.lora_A"], found[f"{name}.lora_B"]
        for layer, own in factors.items():
            layer.load(own)
        return {id(factor.weight) for layer in factors for factor in (layer.lora_a, layer.lora_b)}

    def _with_lora(self, voice: Voice, dtype: torch.dtype) -> dict[str, tuple[LoRALinear, int]]:
        """Puts the LoRA's layers in; module, as transformers names it, -> its layer, and which projection of it."""
        places = {name: self._place(name) for name in voice.lora_ranks}
        found: dict[str, tuple[LoRALinear, int]] = {}
        for path, names in itertools.groupby(sorted(places, key=lambda name: places[name][0]), lambda n: places[n][0]):
            here = list(names)
            ranks = [0] * places[here[0]][2]
            for name in here:
                ranks[places[name][1]] = voice.lora_ranks[name]
            layer = LoRALinear(self.model.get_submodule(path), ranks, dtype)
            _put(self.model, path, layer)
            found |= {name: (layer, places[name][1]) for name in here}
        return found

    def _place(self, name: str) -> tuple[str, int, int]:
        """Where vLLM has a module of transformers': path, which projection of how many."""
        parent, _, leaf = name.rpartition(".")
        packed: Mapping[str, list[str]] = getattr(self.model, "packed_modules_mapping", {})
        ways = [(leaf, [leaf]), *((one, parts) for one, parts in packed.items() if leaf in parts)]
        for own, parts in ways:
            path = f"{parent}.{own}"
            layer: Any = self.model
            for step in path.split("."):
                layer = getattr(layer, step, None)
            if isinstance(layer, LinearBase):
                return path, parts.index(leaf), len(parts)
        raise ConfigError(
            f"the LoRA is on '{name}', and vLLM's {type(self.model).__name__} has no linear layer for it; merge the "
            "LoRA into its body and export that, or generate with transformers"
        )

    @contextmanager
    def _without_lora(self) -> Iterator[None]:
        """The model as vLLM made it, whose names its way of loading knows."""
        layers = {path: one for path, one in self.model.named_modules() if isinstance(one, LoRALinear)}
        for path, layer in layers.items():
            _put(self.model, path, layer.base_layer)
        yield
        for path, layer in layers.items():
            _put(self.model, path, layer)


def _settings_of(config: PreTrainedConfig, vllm_config: VllmConfig) -> VllmConfig:
    """The engine's settings with a network's own where vLLM has taken the base's: heads, window, quantisation."""
    own = vllm_config.with_hf_config(config)
    own.model_config.hf_text_config = config.get_text_config()
    own.model_config.model_arch_config = own.model_config.get_model_arch_config()
    # as vLLM has it: one window for all layers, which is left out where layers have their own or none
    kinds = getattr(own.model_config.hf_text_config, "layer_types", None)
    own.cache_config = copy.copy(own.cache_config)
    one_window = kinds is None or all(kind == "sliding_attention" for kind in kinds)
    own.cache_config.sliding_window = own.model_config.get_sliding_window() if one_window else None
    own.quant_config = None  # how the base is quantised says nothing of the networks, whose weights are whole
    return own


def served_voices(served: Served, vllm_config: VllmConfig, base: nn.Module) -> list[ServedVoice]:
    """The networks of a served directory; what has the same body, be it the base's, holds its weights once.

    Raises:
        UnsupportedModeError: an architecture that keeps another state than keys and values.
        ConfigError: a LoRA on what vLLM has no linear layer for.
    """
    first: dict[Checkpoint, nn.Module] = {} if vllm_config.quant_config else {served.base: base}
    voices = []
    for index, voice in enumerate(served.voices):
        made = ServedVoice(voice, index, vllm_config, first.get(voice.body) if voice.body else None)
        check_keeps_keys_and_values(made.model, f"value network {index}")
        if voice.body:
            first.setdefault(voice.body, made.model)
        voices.append(made)
    return voices


def check_keeps_keys_and_values(model: nn.Module, name: str) -> None:
    """Refuses models that vLLM serves by an interface which a sum of models does not have.

    Raises:
        UnsupportedModeError: a recurrent state, no attention at all, or input that is not text.
    """
    for flag, what in (
        ("is_hybrid", "it keeps a recurrent state"),
        ("is_attention_free", "it has no attention"),
        ("supports_multimodal", "it reads more than text"),
        ("supports_mrope", "its positions have several axes"),
    ):
        if getattr(model, flag, False):
            raise UnsupportedModeError(
                f"{name} ({type(model).__name__}) is not served with a value adapter: {what}, and vLLM plans memory "
                "for one model of that kind. Generate with transformers, or take another base"
            )


def _share(own: nn.Module, first: nn.Module, name: str) -> None:
    """Takes the modules of an equal model in the place of one's own, all but those that keep keys and values.

    What only holds other modules stays its own, so that a LoRA can be put into it.
    """
    own._buffers.update(first._buffers)
    for child_name, child in own.named_children():
        twin = getattr(first, child_name)
        twin = twin.base_layer if isinstance(twin, LoRALinear) else twin
        weights = next(child.parameters(recurse=isinstance(child, AttentionLayerBase)), None)
        holds = next(child.children(), None) is not None
        if isinstance(child, AttentionLayerBase) or holds:
            if weights is not None:
                raise UnsupportedModeError(
                    f"{name} has weights in a {type(child).__name__} itself, which two networks of one body cannot "
                    "share in vLLM; generate with transformers"
                )
            if not isinstance(child, AttentionLayerBase):
                _share(child, twin, name)
        else:
            own._modules[child_name] = twin


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module
