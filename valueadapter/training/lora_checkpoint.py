"""A LoRA in a training checkpoint where no adapter can hold it: its base lies in a directory and has no commit.

Knows PEFT's file of weights; nothing of what is trained or of artifacts.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from valueadapter.adapter.lora import is_unpinned
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.errors import CheckpointError


def unpinned_lora(adapter: ValueAdapter) -> PreTrainedModel | None:
    """The LoRA network whose base has no commit, so that no adapter can name it; None where there is none."""
    return next((network for network in adapter.networks if is_unpinned(network)), None)


def save_lora(network: PreTrainedModel, directory: Path) -> None:
    """Writes the LoRA's weights alone, a few MB; the file is whole or not there."""
    from peft import get_peft_model_state_dict  # slow to import, and few trainings need it

    directory.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(network, save_embedding_layers=False)
    new = directory / f".{file_names.PEFT_WEIGHTS}"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, new)
    new.replace(directory / file_names.PEFT_WEIGHTS)


def load_lora(network: PreTrainedModel, directory: Path) -> None:
    """Puts the weights that `save_lora` wrote into a network built as it was then.

    Raises:
        CheckpointError: they are damaged, missing, or those of another LoRA.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    path = directory / file_names.PEFT_WEIGHTS
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint '{directory.parent}' cannot be resumed: '{path}' ({error})") from error
    own = get_peft_model_state_dict(network, save_embedding_layers=False)
    mine, theirs = ({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (own, saved))
    if mine != theirs:
        name = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))[0]
        raise CheckpointError(
            f"checkpoint '{directory.parent}' does not fit the network: tensor '{name}' has shape {theirs.get(name)}, "
            f"expected {mine.get(name)}. Build the network as it was built for that run"
        )
    set_peft_model_state_dict(network, saved)
