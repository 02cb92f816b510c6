"""Writes a network to a directory as it would be found on the Hub; what is written depends on the network alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from valueadapter.adapter.causal_lm import not_of_a_network
from valueadapter.adapter.lora import has_injected_layers
from valueadapter.artifact import file_names
from valueadapter.artifact.verification import checksums
from valueadapter.errors import ConfigError


def save_network(
    network: PreTrainedModel,
    directory: Path,
    *,
    max_shard_size: int | str = "5GB",
    state_dict: dict[str, torch.Tensor] | None = None,
) -> dict[str, str]:
    """Writes a network as an ordinary transformers (or PEFT) checkpoint, its own weights or those of `state_dict`.

    Returns:
        File name -> SHA-256 of the weight files.

    Raises:
        ConfigError: PEFT has put LoRA into the network from outside, see `valueadapter.adapter.injected_lora`.
    """
    if has_injected_layers(network):
        raise ConfigError(
            "PEFT has put LoRA into this network's layers; save it from the model that it is attached to: "
            "model.save_pretrained(directory)"
        )
    if isinstance(getattr(network, "peft_config", None), dict):
        # "auto" would ask the Hub whether the base's embedding was resized; an adapter is saved offline too
        network.save_pretrained(directory, state_dict=state_dict, save_embedding_layers=False)
    else:
        with _nothing_but_the_network(network):
            network.save_pretrained(directory, max_shard_size=max_shard_size, state_dict=state_dict)
    (directory / file_names.GENERATION_CONFIG).unlink(missing_ok=True)
    (directory / file_names.CARD).unlink(missing_ok=True)  # PEFT writes a card of its own
    return checksums(directory)


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
