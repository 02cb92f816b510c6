"""What is asked of any causal language model: where it runs, how wide its logits are, how long a text it reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from valueadapter.compat import CACHE_NAMES, cache_name
from valueadapter.errors import UnsupportedModeError


def execution_device(model: Any) -> torch.device:
    """Where a causal language model takes its input.

    Weights that accelerate has offloaded (`device_map` with "cpu" or "disk") lie on the device "meta" and are brought
    to another one to run; everybody else's are where they run.
    """
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    for one in (*getattr(hook, "hooks", ()), hook):
        if (place := getattr(one, "execution_device", None)) is not None:
            return torch.device(place)
    weight: torch.Tensor = embedding.weight
    return weight.device


def is_placed(model: nn.Module) -> bool:
    """Whether others decide where a model's weights are and of which dtype: accelerate's hooks, or a quantizer."""
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    return hooked or getattr(model, "quantization_method", None) is not None


def is_sharded(model: nn.Module) -> bool:
    """Whether this process has a part of a model's weights, which come together layer by layer (FSDP2, ZeRO-3)."""
    return any(hasattr(one, "full_tensor") or hasattr(one, "ds_id") for one in model.parameters()) or any(
        hasattr(module, "unshard") for module in model.modules()
    )


def moved(inputs: Any, device: torch.device) -> Any:
    """Tensors, and those in mappings, on a device; anything else as it is."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: moved(value, device) for key, value in inputs.items()}
    return inputs


def logits_width(model: nn.Module) -> int:
    """Columns of a model's logits: the rows of its output head, which may exceed the number of tokens."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # every causal language model has it
    told = getattr(head, "logits_width", None)  # by one whose matrix would have to be put together
    return int(head.weight.shape[0] if told is None else told)


def fit_width(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Value logits cut or filled up to `width` columns; themselves if they have that width.

    What is filled up gets the mean of the row, which says nothing of a token: a constant added to all value logits
    changes no probability, here neither.
    """
    missing = width - logits.shape[-1]
    if missing <= 0:
        return logits[..., :width]
    return torch.cat((logits, logits.mean(-1, keepdim=True).expand(*logits.shape[:-1], missing)), dim=-1)


def longest_text(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Tokens that a model reads at most, as its configuration says; None where it says nothing."""
    config = getattr(model, "config", model)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None  # some say -1


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's own is untyped
def takes(model: Any, argument: str) -> bool:
    """Whether a model's `forward` names an argument; many swallow what they do not know."""
    names = CACHE_NAMES if argument == "cache" else (argument,)
    return any(name in _taken_by(model, "forward") for name in names)


def _taken_by(model: Any, method: str) -> frozenset[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return _arguments(cast(Hashable, type(inner)), method)


@functools.cache
def _arguments(kind: Hashable, method: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(kind, method)).parameters)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cache_name(model: Any, method: str) -> str:
    return cache_name(_taken_by(model, method))


def in_its_words(model: Any, arguments: Mapping[str, Any], method: str = "forward") -> dict[str, Any]:
    """Arguments of a model's method, the cache by the name that the model has for it."""
    name = _cache_name(model, method) if "cache" in arguments else "cache"
    return {name if key == "cache" else key: value for key, value in arguments.items()}


def set_trainable(network: PreTrainedModel, trainable: bool) -> None:
    """Lets a network's weights take gradients, or not; of a LoRA network only the LoRA's, since only they are saved."""
    network.requires_grad_(False)
    if isinstance(getattr(network, "peft_config", None), dict):
        for name in network.active_adapters:
            network.set_requires_grad(name, requires_grad=trainable)
    else:
        network.requires_grad_(trainable)


def to_train(networks: Sequence[PreTrainedModel], coefficients: Sequence[float]) -> list[PreTrainedModel]:
    """Those of an adapter's networks that its training changes: what has a LoRA and is added, or all without any."""
    added = [one for one, weight in zip(networks, coefficients, strict=True) if weight > 0]
    return [one for one in added if isinstance(getattr(one, "peft_config", None), dict)] or list(networks)


def not_of_a_network(model: PreTrainedModel) -> list[str]:
    """Keys of a configuration that say how a model generates, was quantized, or where code is that it needs not."""
    quantized = getattr(model, "hf_quantizer", None) is not None
    names = ["auto_map"] * (not brings_code(model)) + ["quantization_config"] * (not quantized)
    return [*names, *model.config._get_generation_parameters()]


def brings_code(model: PreTrainedModel) -> bool:
    return not type(model.config).__module__.startswith("transformers.")


def check_no_virtual_tokens(model: Any) -> None:
    """Refuses a base that PEFT has tuned a prompt or a prefix for, whose tokens stand in no text and in every cache.

    Raises:
        UnsupportedModeError: always for such a model, naming what to do instead.
    """
    configs = getattr(model, "peft_config", None)
    kinds = [one for one in configs.values() if one.is_prompt_learning] if isinstance(configs, dict) else []
    if kinds:
        raise UnsupportedModeError(
            f"the base has a tuned prompt ({kinds[0].peft_type}, PEFT), which stands before every text that it reads "
            "and is counted in none, so that base and networks would not go on from one place. Give the base without "
            "it, a prefix as text (base_prefix=…), or a LoRA on the base"
        )
