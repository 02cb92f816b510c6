"""LoRA networks: a base with a LoRA, whose value logits are what the LoRA changes; knows no trainer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from valueadapter.errors import ConfigError


def build_lora_network(
    source: PreTrainedModel, *, rank: int, name: str, revision: str | None = None
) -> PreTrainedModel:
    """Makes a value network of which only a LoRA is trained and, where `revision` pins the rest, saved: a few MB.

    Its logits are those of `source` until it is trained, so an adapter holds it at +1 and `source` at -1: together they
    are 0 at first, and afterwards what the training moved (as in proxy-tuning, Liu et al. 2024, arXiv 2401.08565).

    Args:
        source: the causal language model that the LoRA is for. It is copied.
        rank: of the LoRA, on every linear layer of the body; at least 1.
        name: Hub ID of `source`, for the record in the LoRA's own configuration.
        revision: its commit, 40 hex digits; without one the LoRA cannot be saved apart, see `merged`.

    Raises:
        ConfigError: a rank below 1.
    """
    if rank < 1:
        raise ConfigError(f"the rank of a LoRA must be at least 1; got {rank}")
    own = copy.deepcopy(source)
    own.generation_config = GenerationConfig()
    for module in own.modules():  # what someone hung on the source is not the network's
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    network = with_lora(own, rank, revision=revision)
    network.peft_config["default"].base_model_name_or_path = name
    return network.eval()


def with_lora(model: PreTrainedModel, rank: int, *, revision: str | None = None) -> Any:
    """The model as a `PeftModel` with a new LoRA on every linear layer of its body, scaled by 2.

    Args:
        model: a causal language model; it is changed in place.
        rank: of the LoRA, at least 1.
        revision: commit of the model, for the LoRA's record.
    """
    from peft import LoraConfig, get_peft_model  # slow to import, and few adapters need it

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's linear layers
        task_type="CAUSAL_LM",
        revision=revision,
    )
    with quiet_peft():
        return get_peft_model(model, config)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks models by a name that transformers 5.24 renames; the warning is for PEFT, not for our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def has_injected_layers(network: PreTrainedModel) -> bool:
    """Whether PEFT has replaced layers of a network that is no `PeftModel` itself."""
    if isinstance(getattr(network, "peft_config", None), dict):
        return False
    return any(hasattr(module, "base_layer") for module in network.modules())


def merged(network: PreTrainedModel) -> PreTrainedModel:
    """A LoRA network as an ordinary one, with the LoRA in its weights; another network as it is."""
    if not isinstance(getattr(network, "peft_config", None), dict):
        return network
    plain: PreTrainedModel = network.merge_and_unload()
    return plain.eval()
