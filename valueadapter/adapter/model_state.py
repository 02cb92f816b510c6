"""What a model computes with at a moment: its weights, and what its modules are set to; runs no model.

A model changes in place: weights are trained, swapped and loaded, PEFT's adapters come and go, tensors are moved.
So whatever is kept of what a model has computed is kept beside what this module says of it, never by its identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import is_sharded

_WHOLE = 2**14
"""Bytes up to which every element of a tensor is looked at. Of a larger one it is one row and one column of each of its
matrices' common layout, so that looking costs little beside a forward pass; its version counter tells the rest."""
_SILENT = (frozenset(vars(nn.Module())) - {"training"}) | {
    "name_or_path",
    "warnings_issued",
    "gradient_checkpointing",
    "hf_device_map",
    "loss_type",
    "_is_hf_initialized",
}
"""Attributes that say nothing of what is computed; nor do the private ones of transformers' models."""
_SCALARS = (bool, int, float, str, type(None))
_NOTHING = object()
_LEFT_OUT = ("_name_or_path", "_commit_hash", "transformers_version", "architectures", "use_cache", "dtype")
"""Keys of a configuration, the same."""
_HARMLESS = ("transformers.", "accelerate.", "peft.", "torch.")
"""Whose hooks only watch, or are known by what they are set to."""


class Moment(NamedTuple):
    """All that a model computes with, for comparison with the same model at another time."""

    settings: str
    """Configuration, PEFT's state, attributes of the modules."""
    surroundings: tuple[Any, ...]
    """Autocast, and how matrices are multiplied."""
    held: tuple[Any, ...]
    """Where the tensors lie, their versions; functions that were put over the modules' own; numbers of hooks."""
    content: str
    """SHA-256 over elements of the tensors."""


@torch.no_grad()
def moment(model: PreTrainedModel) -> Moment | None:
    """What a model computes with now; None where that cannot be told, so that nothing it computes may be kept.

    It cannot be told while a module is in training mode (dropout), where somebody's own hook may change what a layer
    gives, and of weights whose elements are out of reach, or lie in several processes. A change is seen by the tensors'
    version counters and addresses and by their elements; what hides from all three is a write past autograd (`.data`)
    to a part of a large tensor that touches neither the row nor the column in its middle.
    """
    modules = list(model.named_modules())
    if is_sharded(model) or any(module.training or has_hooks(module) for name, module in modules if name):
        return None
    held: list[Any] = [tuple(_hooks(model))]
    parts: dict[torch.device, list[torch.Tensor]] = {}
    try:
        for name, tensor, waiting in tensors_of(modules, on_disk=False):
            place = None if waiting or tensor.is_inference() else (tensor.data_ptr(), tensor._version)
            held.append((name, place, tuple(tensor.shape), tensor.dtype, tensor.device))
            parts.setdefault(tensor.device, []).append(_some_bytes(tensor))
        digest = hashlib.sha256()
        for found in parts.values():
            digest.update(memoryview(cast(Any, torch.cat(found).cpu().numpy())))
    except (RuntimeError, NotImplementedError, TypeError):  # a kind of tensor that shows no elements
        return None
    held += [vars(module)["forward"] for _, module in modules if "forward" in vars(module)]
    devices = sorted({"cpu", *(device.type for device in parts)})
    return Moment(_settings(model, modules, _SILENT), surroundings(*devices), tuple(held), digest.hexdigest())


def surroundings(*devices: str) -> tuple[Any, ...]:
    """What decides about precision besides the model: autocast on these types of device, and TF32."""
    autocast = tuple(
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None for device in devices
    )
    return (*devices, *autocast, torch.get_float32_matmul_precision())


def module_settings(model: nn.Module, *, of_training: bool = True) -> str:
    """What the configuration and the modules' plain attributes say, as JSON.

    PEFT's layers hold there which adapters are active, disabled or merged, and how strongly each acts.

    Args:
        model: the model.
        of_training: whether training mode counts.
    """
    passed_over = _SILENT if of_training else _SILENT | {"training"}
    return _settings(model, model.named_modules(), passed_over)


def _settings(model: nn.Module, modules: Iterable[tuple[str, nn.Module]], passed_over: frozenset[str]) -> str:
    found: list[Any] = list(_config_of(model))
    for name, module in modules:
        private = isinstance(module, PreTrainedModel)
        told = {
            key: said
            for key, value in sorted(vars(module).items())
            if key not in passed_over
            and not (private and key.startswith("_"))
            and (said := _said(value)) is not _NOTHING
        }
        found.append([name, type(module).__name__, told] if told else name)
    return json.dumps(found)


def settings_of(model: PreTrainedModel) -> str:
    """What a model computes besides its weights: its configuration, which LoRA acts in it and how, and the like."""
    return module_settings(model, of_training=False)


def same_model(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    """Whether two loaded models compute the same logits: one kind, set alike, equal weights."""
    if type(a) is not type(b) or settings_of(a) != settings_of(b):
        return False
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(_equal(tensor, theirs[name]) for name, tensor in mine.items())


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def has_hooks(module: nn.Module) -> bool:
    """Whether someone's own function runs with a module: it may change what the module gives, and do so at will."""
    own = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith(_HARMLESS) for hook in own)


def tensors_of(
    modules: Iterable[tuple[str, nn.Module]], *, on_disk: bool = True
) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Parameters, buffers and other tensors of the modules, each once, as plain tensors.

    What accelerate has offloaded is taken from where it waits; a tensor made of others (quantized) as those.

    Args:
        modules: `named_modules()` of a model.
        on_disk: whether to read what is offloaded to a disk, where nobody changes it in place.

    Yields:
        Name, tensor, and whether it is offloaded, so that its address says nothing.

    Raises:
        NotImplementedError: one is on the device "meta" and its elements are nowhere.
    """
    seen: set[int] = set()
    for path, module in modules:
        own = [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]
        for name, tensor in own:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                waiting = tensor.device.type == "meta"
                at_hand = _offloaded(module, name, on_disk=on_disk) if waiting else tensor
                for inner in plain_tensors(at_hand) if at_hand is not None else ():
                    yield f"{path}.{name}".lstrip("."), inner, waiting


def _offloaded(module: nn.Module, name: str, *, on_disk: bool) -> torch.Tensor | None:
    """A tensor that accelerate brings when it is needed; None where it lies on a disk and that is not asked for."""
    hook = getattr(module, "_hf_hook", None)
    for one in (*getattr(hook, "hooks", ()), hook):
        if (waiting := getattr(one, "weights_map", None)) is None:
            continue
        loader, key = getattr(waiting, "dataset", waiting), f"{getattr(waiting, 'prefix', '')}{name}"
        in_memory: Mapping[str, torch.Tensor] = getattr(loader, "state_dict", loader)
        if key in in_memory:
            return in_memory[key]
        return cast(torch.Tensor, loader[key]) if on_disk else None
    raise NotImplementedError(f"the elements of '{name}' are nowhere")


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor without gradients, or the tensors that a quantized one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor.detach().as_subclass(torch.Tensor)


def _some_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes that stand for a tensor's, (some,) of uint8."""
    if tensor.numel() * tensor.element_size() <= _WHOLE:
        part = tensor.reshape(-1)
    elif tensor.dim() == 1:
        part = tensor[:: max(1, len(tensor) // 4096)]
    else:
        matrix = tensor.flatten(0, -2)
        part = torch.cat([matrix[len(matrix) // 2], matrix[:, matrix.shape[1] // 2]])
    return part.contiguous().view(torch.uint8)


def _config_of(model: Any) -> list[Any]:
    """The configuration, with what `to_dict` leaves out, and those of PEFT's adapters."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return []
    said = {key: value for key, value in config.to_dict().items() if key not in _LEFT_OUT}
    hidden = ("_attn_implementation", "_experts_implementation")
    for one in (config, config.get_text_config()):
        said |= {f"{type(one).__name__}.{key}": getattr(one, key, None) for key in hidden}
    lora = {name: one.to_dict() for name, one in (getattr(model, "peft_config", None) or {}).items()}
    lora = {name: {key: value for key, value in one.items() if key != "inference_mode"} for name, one in lora.items()}
    return [
        {key: str(value) if (plain := _said(value)) is _NOTHING else plain for key, value in sorted(one.items())}
        for one in (said, *(lora[name] for name in sorted(lora)))
    ]


def _said(value: Any) -> Any:
    """A plain value as JSON can hold it, in one order; `_NOTHING` for what is not plain, or holds such."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        inner = {str(key): _said(value[key]) for key in sorted(value, key=str)}
        return _NOTHING if _NOTHING in inner.values() else inner
    if isinstance(value, (list, tuple)):
        items = list(map(_said, value))
        return _NOTHING if _NOTHING in items else items
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (*_SCALARS, torch.dtype, torch.device)):
        return str(value)
    return _NOTHING


def _hooks(module: nn.Module) -> Iterator[int]:
    yield from module._forward_hooks
    yield from module._forward_pre_hooks
