"""What may name an adapter, what is none, and the right call where PEFT's users type another; attaches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.errors import AdapterNameError, ConfigError

DEFAULT = "default"
"""The name of an adapter that is given none, as in PEFT."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")

_STATUS = "there are no adapter layers in the base; get_adapter_status() has one entry for each adapter"
_GRADIENTS = "attach the adapter with is_trainable=True, or freeze one: adapter.networks[0].requires_grad_(False)"
INSTEAD: Mapping[str, str] = {
    "active_peft_config": "adapter_configs[active_adapter] is the active adapter's configuration",
    "create_or_update_model_card": "save_pretrained and push_to_hub write the card",
    "disable_adapter_layers": "disable_adapters() switches all adapters off, disable_adapter() within a block",
    "enable_adapter_layers": "enable_adapters() switches the active adapters on again",
    "get_layer_status": _STATUS,
    "get_model_status": _STATUS,
    "inject_adapter": "nothing is put into the base's layers; add_adapter(adapter, name) attaches a ValueAdapter",
    "peft_config": "this is no PeftModel; adapter_configs has each adapter's configuration by name",
    "peft_type": "this is no PeftModel; adapter_configs has each adapter's configuration by name",
    "set_adapters": "set_adapter([names]) activates several, set_scale(name, scale) says how strongly each acts",
    "set_requires_grad": _GRADIENTS,
    "unmerge_adapter": "a value adapter cannot be merged, so that there is nothing to take out; see merge_and_unload",
}
"""Names of PEFT's and diffusers' that a wrapper does not have -> what to call."""


def check_name(name: object) -> None:
    """Raises unless this can name an adapter, whatever the model.

    Args:
        name: what somebody calls an adapter.

    Raises:
        AdapterNameError: it is not made of letters, digits, '_' and '-', or torch's modules have something of that
            name, as methods or as attributes.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AdapterNameError(f"an adapter's name is made of letters, digits, '_' and '-'; got {name!r}")
    of_python = name.startswith("__") and name.endswith("__")  # some are there, and hasattr says no
    if of_python or hasattr(nn.ModuleDict, name) or hasattr(nn.ModuleDict(), name):
        raise AdapterNameError(
            f"'{name}' is a method or an attribute of torch's modules, so it cannot name an adapter; choose another"
        )


def names_given(given: object) -> tuple[str, ...]:
    """One name, or several, as a tuple; whether adapters are called so is not asked here.

    Raises:
        AdapterNameError: neither a name nor a list of names.
    """
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise AdapterNameError(f"expected the name of an adapter, or a list of names; got {given!r}")
    return cast(tuple[str, ...], names)


def check_adapter(adapter: object, name: object, *, method: str = "add_adapter") -> None:
    """Raises unless this is an adapter, with the call that was meant.

    Args:
        adapter: what somebody wants to attach.
        name: what it is to be called.
        method: what was called.

    Raises:
        ConfigError: a configuration of PEFT's, a name, a network, or the two arguments in PEFT's order.
    """
    if isinstance(adapter, ValueAdapter):
        return
    given = next((one for one in (adapter, name) if hasattr(one, "peft_type")), None)
    if given is not None:
        kind, name = type(given).__name__, next((one for one in (name, adapter) if isinstance(one, str)), DEFAULT)
        raise ConfigError(
            f"{method} takes a loaded ValueAdapter; got a {kind} of PEFT's, which makes none: a value adapter is a "
            "network beside the base. Train one with `valueadapter train`, or in Python make the default pair, "
            'network = build_lora_network(base, rank=16, name="org/base-model"), adapter = '
            "ValueAdapter.from_networks([network, base], …, coefficients=[1, -1]), and attach it: "
            f'add_adapter(adapter, "{name}", is_trainable=True), as docs/training.md does. For a LoRA of your own in a '
            f"network that is attached already: peft.get_peft_model(model, {kind}(…, "
            f'target_modules=r"value_networks\\.{name}\\.0\\..*_proj"))'
        )
    if isinstance(name, ValueAdapter):
        raise ConfigError(f"the adapter comes first: {method}(adapter, {adapter!r}); got it in the name's place")
    if isinstance(adapter, (str, Path)):
        hotswap = ", hotswap=True" if method == "hotswap_adapter" else ""
        raise ConfigError(
            f"{method} takes a loaded ValueAdapter; got {str(adapter)!r}. From the Hub or a directory an adapter is "
            f"loaded and attached by load_adapter({str(adapter)!r}, {name!r}{hotswap})"
        )
    if isinstance(adapter, PreTrainedModel):
        raise ConfigError(
            f"{method} takes a ValueAdapter; got a model alone (a {type(adapter).__name__}). Make an adapter of it: "
            "ValueAdapter.from_networks([model], tokenizer, base_model_name_or_path=…)"
        )
    raise ConfigError(
        f"{method} takes a loaded ValueAdapter; got {type(adapter).__name__}. ValueAdapter.from_pretrained(…) loads "
        "one, ValueAdapter.from_networks(…) makes one"
    )
