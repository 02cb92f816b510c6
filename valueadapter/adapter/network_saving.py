"""Writes a network to a directory as it would be found on the Hub; what is written depends on the network alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from valueadapter.adapter.causal_lm import not_of_a_network
from valueadapter.adapter.lora import (
    active_lora,
    check_switched_on,
    described,
    has_injected_layers,
    is_unpinned,
    merged,
)
from valueadapter.adapter.shared_tensors import copy_of_its_own
from valueadapter.artifact import file_names
from valueadapter.artifact.verification import checksums
from valueadapter.errors import ConfigError

logger = logging.getLogger(__name__)


def save_network(
    network: PreTrainedModel,
    directory: Path,
    *,
    max_shard_size: int | str = "5GB",
    state_dict: dict[str, torch.Tensor] | None = None,
) -> dict[str, str]:
    """Writes a network as an ordinary transformers (or PEFT) checkpoint, its own weights or those of `state_dict`.

    A LoRA is written alone where its base is named at a commit, from which the rest is loaded again; else the whole
    network, with the LoRA in its weights, and the log says so.

    Returns:
        File name -> SHA-256 of the weight files.

    Raises:
        ConfigError: PEFT has put LoRA into the network from outside, see `valueadapter.adapter.injected_lora`; its own
            LoRA is switched off, or is several that act together and cannot be written as one.
    """
    if has_injected_layers(network):
        raise ConfigError(
            "PEFT has put LoRA into this network's layers; save it from the model that it is attached to: "
            "model.save_pretrained(directory)"
        )
    is_lora = isinstance(getattr(network, "peft_config", None), dict)
    if is_lora:
        check_switched_on(network)
    if is_lora and not is_unpinned(network):
        _save_lora(network, directory, state_dict)
    else:
        network, state_dict = (_whole(network, state_dict), None) if is_lora else (network, state_dict)
        with _nothing_but_the_network(network):
            network.save_pretrained(directory, max_shard_size=max_shard_size, state_dict=state_dict)
    (directory / file_names.GENERATION_CONFIG).unlink(missing_ok=True)
    (directory / file_names.CARD).unlink(missing_ok=True)  # PEFT writes a card of its own
    return checksums(directory)


def _save_lora(network: PreTrainedModel, directory: Path, state_dict: dict[str, torch.Tensor] | None) -> None:
    """Writes the LoRA that acts, whatever PEFT calls it, where PEFT looks for the only one."""
    name = active_lora(network)
    how: dict[str, Any] = {"selected_adapters": [name], "state_dict": state_dict}
    # "auto" would ask the Hub whether the base's embedding was resized; an adapter is saved offline too
    network.save_pretrained(directory, save_embedding_layers=False, **how)
    if (apart := directory / name).is_dir():  # where PEFT puts one that is not called "default"
        for path in apart.iterdir():
            path.replace(directory / path.name)
        apart.rmdir()


def _whole(network: PreTrainedModel, state_dict: dict[str, torch.Tensor] | None) -> PreTrainedModel:
    """A copy of a LoRA network with the LoRA in its weights."""
    logger.warning(
        "%s: its base is not named at a commit of the Hub, from which others could load it, so that it is saved whole, "
        "with the LoRA in its weights; build_lora_network(…, name=…, revision=…) names one, and then the LoRA is saved "
        "alone",
        described(network),
    )
    own: PreTrainedModel = copy_of_its_own(network)
    if state_dict is not None:
        own.load_state_dict(state_dict)
    return merged(own)


@contextmanager
def _nothing_but_the_network(network: PreTrainedModel) -> Iterator[None]:
    """Within the block a model is without what it may have from the one it was made of, and a network never uses."""
    config, settings = network.config, network.generation_config
    put_aside = {name: vars(config).pop(name) for name in not_of_a_network(network) if name in vars(config)}
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = settings
        for name, value in put_aside.items():
            setattr(config, name, value)
