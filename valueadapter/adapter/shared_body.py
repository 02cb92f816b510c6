"""One body for several networks: models whose weights are the same objects, but for a LoRA, as one tree of modules.

Each row of a batch is a voice's, that of a network with a LoRA or of one without, and gets its own network's LoRA.
Knows nothing of caches, texts and sums.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from valueadapter.adapter.model_state import has_hooks, settings_of
from valueadapter.adapter.shared_tensors import of_body, plain_name, twin


class _Voices(threading.local):
    """Which rows of the batch that runs now in this thread are whose."""

    def __init__(self) -> None:
        self.rows: Mapping[int, Sequence[slice]] = {}
        self.count = 0


class _VoicedLayer(nn.Module):
    """A linear layer of the body, with the LoRAs of several networks, each for its own rows.

    Args:
        layer: the layer, which the networks have in common.
        loras: number of the network -> PEFT's layer with the name of the LoRA that acts in it.
        voices: which rows are whose.
    """

    def __init__(self, layer: nn.Module, loras: Mapping[int, tuple[Any, str]], voices: _Voices) -> None:
        super().__init__()
        self.layer = layer
        # in a tuple they are no modules of this one
        self._loras = tuple((v, (lora, n, lora.lora_A[n], lora.lora_B[n])) for v, (lora, n) in loras.items())
        self._voices = voices

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out = cast(torch.Tensor, self.layer(states))
        if states.dim() != 3 or len(states) != self._voices.count:
            raise NotByRows
        for voice, (lora, name, down, up) in self._loras:
            for rows in self._voices.rows.get(voice, ()):
                low = linear(states[rows].to(down.weight.dtype), down.weight)
                out[rows].add_(linear(low, up.weight, up.bias), alpha=lora.scaling[name])
        return out


class NotByRows(RuntimeError):
    """A layer with a LoRA is not given (rows, tokens, size), as experts of a mixture are not: whose is which?"""


class SharedBody:
    """Networks of one body as one module.

    Args:
        networks: two or more, of which `of_one_body` says that they are of one body.
    """

    def __init__(self, networks: Sequence[PreTrainedModel]) -> None:
        self.networks = tuple(networks)
        self._voices = _Voices()
        self.body = without_lora(networks[0])
        loras: dict[str, dict[int, tuple[Any, str]]] = {}
        for network in networks:
            for name, layer in _lora_layers(network):
                loras.setdefault(plain_name(name), {})[id(network)] = layer, layer.active_adapters[0]
        named = [one for network in networks for one in network.named_modules()]
        self._watched = [module for name, module in named if ".lora_" not in name]
        self._layers = [cast(Any, module) for _, module in named if hasattr(module, "lora_A")]
        self._state = self._state_now()
        for name, own in loras.items():
            _put(self.body, name, _VoicedLayer(self.body.get_submodule(name), own, self._voices))

    def is_as_it_was(self) -> bool:
        """Whether what may change within a text has not: modes, hooks, which LoRA acts, whose weights they are."""
        return self._state == self._state_now()

    def _state_now(self) -> list[Any]:
        found: list[Any] = [id(next(network.parameters())) for network in self.networks]
        found += [(one.training, len(one._forward_hooks), len(one._forward_pre_hooks)) for one in self._watched]
        found += [(*layer.active_adapters, layer.disable_adapters, layer.merged) for layer in self._layers]
        return found

    @torch.no_grad()
    def goes_by_rows(self) -> bool:
        """Whether every layer with a LoRA can tell whose each row is; seen in a pass of two tokens."""
        ids = torch.zeros(len(self.networks), 2, dtype=torch.long, device=self.body.device)
        try:
            with self.speaking(self.networks, [1] * len(self.networks)) as body:
                body(input_ids=ids, use_cache=False)
        except NotByRows:
            return False
        return True

    @contextmanager
    def speaking(self, networks: Sequence[PreTrainedModel], rows: Sequence[int]) -> Iterator[PreTrainedModel]:
        """Within the block the body, each network's rows with its LoRA; in this thread.

        Args:
            networks: some of those that this was made of, one that reads two texts twice.
            rows: for each how many rows are its, in this order.
        """
        found: dict[int, list[slice]] = {}
        before = 0
        for network, count in zip(networks, rows, strict=True):
            found.setdefault(id(network), []).append(slice(before, before + count))
            before += count
        self._voices.rows, self._voices.count = found, before
        try:
            yield self.body
        finally:
            self._voices.rows, self._voices.count = {}, 0


def why_alone(network: PreTrainedModel) -> str | None:
    """What keeps a network from being one of several of a body, whatever the others are; None where nothing does."""
    from peft import PeftModel  # slow to import, and few adapters need it
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    modules = list(network.modules())
    if any(module.training for module in modules):
        return "it is being trained"
    if any(has_hooks(module) or hasattr(module, "_hf_hook") or "forward" in vars(module) for module in modules):
        return "others' hooks run with its layers"
    if getattr(network, "quantization_method", None) is not None or any(p.is_meta for p in network.parameters()):
        return "it is quantized or offloaded"
    of_peft = [one for one in modules if isinstance(one, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if of_peft and not isinstance(network, PeftModel):
        return "PEFT has put LoRA into it from outside"
    for layer in of_peft:
        plain = type(layer) is Linear and type(layer.get_base_layer()) in (nn.Linear, Conv1D)
        if not plain or layer.lora_variant or layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
            return "its LoRA is more than two matrices beside linear layers, or is merged or switched off"
    return None


def of_one_body(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    """Whether two networks, of neither of which `why_alone` says anything, differ in their LoRAs alone."""
    mine, theirs = of_body(a), of_body(b)
    if mine.keys() != theirs.keys() or any(theirs[name] is not own for name, own in mine.items()):
        return False
    one, other = without_lora(a), without_lora(b)
    return type(one) is type(other) and settings_of(one) == settings_of(other) and _same_buffers(one, other)


def without_lora(network: PreTrainedModel) -> PreTrainedModel:
    """The model that a LoRA is for, as modules of its own that hold the same tensors; of another network its twin."""
    if not isinstance(getattr(network, "peft_config", None), dict):
        return twin(network)
    body: PreTrainedModel = twin(cast(Any, network).get_base_model())
    for name, layer in list(body.named_modules()):
        if hasattr(layer, "lora_A"):
            _put(body, name, cast(Any, layer).get_base_layer())
    vars(body).pop("peft_config", None)
    return body


def stamp(network: nn.Module) -> list[Any]:
    """What a `SharedBody` is made of in a network, for comparison: which tensors, modes, hooks, LoRA."""
    found: list[Any] = []
    for module in network.modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)
        found.append((module.training, *hooks))
        found += map(id, module._parameters.values())
        found += [None if buffer is None else (buffer.dtype, buffer.device) for buffer in module._buffers.values()]
        if hasattr(module, "lora_A"):
            layer = cast(Any, module)
            found.append((*layer.active_adapters, layer.disable_adapters, layer.merged))
    return found


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, module)


def _lora_layers(network: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Name -> layer of those that PEFT has replaced and in which the LoRA acts."""
    for name, layer in network.named_modules():
        if hasattr(layer, "lora_A") and layer.active_adapters[0] in layer.lora_A:
            yield name, layer


def _same_buffers(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = dict(a.named_buffers()), dict(b.named_buffers())
    return mine.keys() == theirs.keys() and all(torch.equal(own, theirs[name]) for name, own in mine.items())
