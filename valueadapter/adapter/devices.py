"""Where a model runs, and bringing its inputs there; knows nothing of what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


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


def moved(inputs: Any, device: torch.device) -> Any:
    """Tensors, and those in mappings, on a device; anything else as it is."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: moved(value, device) for key, value in inputs.items()}
    return inputs
