"""LoRA that PEFT has put into a network's layers from outside: `get_peft_model` on the whole wrapper.

Gives such networks back as what can be saved: a `PeftModel` of their own where the rest of them lies at a pinned commit
on the Hub, else a plain network with the LoRA in its weights. Knows nothing of the base.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from valueadapter.adapter.lora import has_injected_layers, quiet_peft, untie
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.config.parts import NetworkSpec
from valueadapter.errors import ConfigError

States = Sequence[dict[str, torch.Tensor]]


def as_saveable(
    adapter: ValueAdapter, configs: Mapping[str, Any], states: States | None
) -> tuple[ValueAdapter, States | None]:
    """The adapter as it can be saved; itself where PEFT has put nothing into its networks.

    Args:
        adapter: what is attached.
        configs: PEFT's name -> `LoraConfig`, as `get_peft_model` leaves it on the wrapper.
        states: for each network weights to save in place of its own.

    Returns:
        The adapter, its networks with LoRA replaced by copies, and the weights that are still to be put in place.

    Raises:
        ConfigError: several LoRAs in one network, or one that PEFT cannot take out of it.
    """
    if not any(has_injected_layers(network) for network in adapter.networks):
        return adapter, states
    networks, specs = list(adapter.networks), list(adapter.config.networks)
    left = None if states is None else list(states)
    for index, (network, spec) in enumerate(zip(networks, specs, strict=True)):
        if not has_injected_layers(network):
            continue
        own = copy.deepcopy(network)
        if left is not None:
            own.load_state_dict(left[index])
        name = _only_lora(own)
        if spec.repo is None:
            networks[index] = _with_lora_in_weights(own, name)
        else:
            networks[index] = _as_peft_model(own, name, configs.get(name), spec)
            specs[index] = dataclasses.replace(spec, repo=None, revision=None, path=file_names.network_directory(index))
        if left is not None:
            left[index] = networks[index].state_dict()
    config = dataclasses.replace(adapter.config, networks=tuple(specs))
    return adapter.replaced(config, networks), left


def check_no_lora_on_lora(networks: Mapping[str, PreTrainedModel], configs: Mapping[str, Any]) -> None:
    """Refuses `get_peft_model` over a network that is a LoRA of its own, which PEFT begins anew without a word.

    Args:
        networks: name of the module on the wrapper -> network.
        configs: as for `apart`.

    Raises:
        ConfigError: one of the configurations' targets is in such a network.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    for prefix, network in networks.items():
        if not isinstance(getattr(network, "peft_config", None), dict):
            continue
        names = [f"{prefix}.{name}" for name, module in network.named_modules() if hasattr(module, "base_layer")]
        if any(check_target_module_exists(config, name) for config in configs.values() for name in names):
            raise ConfigError(
                f"the network '{prefix}' is a LoRA already, and peft.get_peft_model has begun it anew. Load the "
                "adapter again and train that LoRA: add_adapter(…, is_trainable=True); or attach the network merged: "
                "network.merge_and_unload()"
            )


def _tuned(network: PreTrainedModel) -> dict[str, Any]:
    """Name -> layer of everything that PEFT has replaced in a network."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # slow to import, and few adapters need it
    from peft.utils import AuxiliaryTrainingWrapper

    found = {n: m for n, m in network.named_modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))}
    if other := [name for name, layer in found.items() if isinstance(layer, AuxiliaryTrainingWrapper)]:
        raise ConfigError(
            f"PEFT trains '{other[0]}' as a whole (modules_to_save), which a LoRA checkpoint of one network cannot "
            "hold; leave modules_to_save out, or train the whole network: add_adapter(…, is_trainable=True)"
        )
    return found


def _only_lora(network: PreTrainedModel) -> str:
    names = sorted({name for layer in _tuned(network).values() for name in layer.active_adapters})
    if len(names) != 1:
        raise ConfigError(
            f"a network is saved with one LoRA; active in it are {names or 'none'}. Choose it with set_adapter of the "
            "PeftModel"
        )
    return str(names[0])


def _with_lora_in_weights(network: PreTrainedModel, name: str) -> PreTrainedModel:
    untie(network)
    for path, layer in _tuned(network).items():
        layer.merge(safe_merge=True, adapter_names=[name])
        network.set_submodule(path, layer.get_base_layer())
    return network


def _as_peft_model(network: PreTrainedModel, name: str, config: Any, spec: NetworkSpec) -> Any:
    """A `PeftModel` over the network as it was, with the LoRA that PEFT had put into it."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if config is None:
        raise ConfigError(
            f"there is no configuration of the LoRA '{name}' on this model; make it with peft.get_peft_model(model, …)"
        )
    layers = _tuned(network)
    network.peft_config = {name: config}  # where PEFT looks for it
    state = get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False)
    del network.peft_config
    for path, layer in layers.items():
        network.set_submodule(path, layer.get_base_layer())
    own = dataclasses.replace(config, target_modules=sorted(layers), revision=spec.revision, task_type="CAUSAL_LM")
    with quiet_peft():
        model = get_peft_model(network, own, adapter_name="default")
    model.peft_config["default"].base_model_name_or_path = spec.repo
    result = set_peft_model_state_dict(model, {f"base_model.model.{key}": value for key, value in state.items()})
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise ConfigError(
            f"the LoRA '{name}' does not fit one network alone ({[*missing, *result.unexpected_keys][0]}); leave "
            "rank_pattern and alpha_pattern out of its configuration"
        )
    return model.eval()
