"""What is trained, in a checkpoint that can hold no adapter: the base of a LoRA lies in a directory and has no commit.

Knows the parameters that take gradients, whatever networks they are of; nothing of artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from valueadapter.artifact import file_names
from valueadapter.errors import CheckpointError


def save_trained(networks: Sequence[PreTrainedModel], directory: Path) -> None:
    """Writes the parameters of networks that take gradients, and no others; the file is whole or not there."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{file_names.TRAINED_WEIGHTS}"
    save_file({name: own.detach().cpu().contiguous().clone() for name, own in _trained(networks).items()}, new)
    new.replace(directory / file_names.TRAINED_WEIGHTS)


@torch.no_grad()
def load_trained(networks: Sequence[PreTrainedModel], directory: Path) -> None:
    """Puts what `save_trained` wrote into networks built and trained as they were then.

    Raises:
        CheckpointError: it is damaged, missing, or of other networks.
    """
    path, own = directory / file_names.TRAINED_WEIGHTS, _trained(networks)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint '{directory.parent}' cannot be resumed: '{path}' ({error})") from error
    check_shapes(directory.parent, saved, own)
    for name, parameter in own.items():
        parameter.copy_(saved[name])


def check_shapes(checkpoint: Path, saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Raises a CheckpointError where a checkpoint's tensors are not those of a network, by name and shape."""
    theirs, mine = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (saved, own))
    if mine != theirs:
        name = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))[0]
        raise CheckpointError(
            f"checkpoint '{checkpoint}' does not fit the network: tensor '{name}' has shape {theirs.get(name)}, "
            f"expected {mine.get(name)}. Build the network as it was built for that run"
        )


def _trained(networks: Sequence[PreTrainedModel]) -> dict[str, torch.Tensor]:
    """Number of the network and name -> parameter."""
    return {
        f"{index}.{name}": parameter
        for index, network in enumerate(networks)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
