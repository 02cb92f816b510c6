"""Builds, loads and saves value networks, ordinary causal language models; knows nothing of the base's logits.

A value network starts from a pretrained body. With its head set to zero (the default) its logits are exactly zero, so
that training starts at the base model itself; with the pretrained head, step 0 would double the base's logits.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from valueadapter.artifact import file_names
from valueadapter.artifact.config import Initialisation
from valueadapter.artifact.verification import checksums
from valueadapter.errors import ConfigError

logger = logging.getLogger(__name__)


def build_network(
    source: str | Path | PreTrainedModel,
    *,
    initialisation: Initialisation = "zero_head",
    num_layers: int | None = None,
    dropout: float | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> PreTrainedModel:
    """Makes a new value network from a causal language model.

    Args:
        source: Hub ID, directory, or loaded model that gives architecture, body and head. It is not changed.
        initialisation: `zero_head` (pretrained body, head of zeros: value logits are exactly 0), `pretrained` (body
            and head as they are), or `random` (all weights fresh, from torch's generator).
        num_layers: keep only the first N layers of the body; 1 to the model's own number. None keeps all.
        dropout: probability of every dropout that the architecture has, 0 to below 1; None leaves them as they are.
        revision: branch, tag or commit of a Hub ID.
        token: Hub token.

    Returns:
        A model of the same architecture in eval mode, its weights independent of `source`, in its dtype. How `source`
        generates, was quantized or is found on the Hub is not taken over: that is no property of a network.

    Raises:
        ConfigError: unknown initialisation, `num_layers` or `dropout` out of range, or no dropout to set; or a source
            that runs code of its own, or whose weights are quantized or part of a LoRA.
    """
    if initialisation not in get_args(Initialisation):
        raise ConfigError(
            f"initialisation must be one of {', '.join(get_args(Initialisation))}; got {initialisation!r}"
        )
    if isinstance(source, (str, Path)):
        source = AutoModelForCausalLM.from_pretrained(source, revision=revision, token=token)
    if _brings_code(source):
        raise ConfigError(
            f"{type(source).__name__} is no class of transformers', and an adapter brings no code; give a source whose "
            "architecture transformers has"
        )
    config = _cut_config(source.config, num_layers)
    for name in ("quantization_config", *_not_of_a_network(source)):
        vars(config).pop(name, None)
    if dropout is not None:
        _set_dropout(config, dropout)
    if initialisation == "zero_head":
        config.get_text_config().tie_word_embeddings = False  # the head must change alone, without the embedding
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=source.dtype)
    if initialisation != "random":
        _copy_weights(source, network)
    if initialisation == "zero_head":
        _zero_head(network)
    network.generation_config = GenerationConfig()
    return network.eval()


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


def _cut_config(config: PreTrainedConfig, num_layers: int | None) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    depth = text.num_hidden_layers
    if num_layers is None:
        return config
    if not 1 <= num_layers <= depth:
        raise ConfigError(f"num_layers must be from 1 to {depth}, the depth of {config.model_type}; got {num_layers}")
    for key, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:  # one entry per layer, e.g. `layer_types`
            setattr(text, key, value[:num_layers])
    text.num_hidden_layers = num_layers
    return config


_DROPOUTS = (
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
)


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    text = config.get_text_config()
    names = [name for name in _DROPOUTS if isinstance(getattr(text, name, None), (int, float))]
    if not 0 <= dropout < 1 or not names:
        raise ConfigError(
            f"dropout must be from 0 to below 1, for an architecture that has some; got {dropout} for "
            f"{config.model_type}, which has {', '.join(names) or 'none'}"
        )
    for name in names:
        setattr(text, name, dropout)


def _copy_weights(source: PreTrainedModel, network: PreTrainedModel) -> None:
    weights, wanted = source.state_dict(), network.state_dict()
    if missing := sorted(set(wanted) - set(weights)):
        raise ConfigError(
            f"{type(source).__name__} has no weights for {', '.join(missing[:3])}; use initialisation='random'"
        )
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape or weights[name].is_floating_point() != tensor.is_floating_point():
            raise ConfigError(
                f"the weights of {type(source).__name__} are quantized: '{name}' is {tuple(weights[name].shape)} of "
                f"{weights[name].dtype}, expected {tuple(tensor.shape)}. Load the source without quantization, or use "
                "initialisation='random'"
            )
    network.load_state_dict({name: weights[name] for name in wanted})


def _zero_head(network: PreTrainedModel) -> None:
    head = network.get_output_embeddings()
    if head is None:
        raise ConfigError(
            f"{type(network).__name__} has no output head to set to zero; use initialisation='pretrained'"
        )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()


def logits_width(model: nn.Module) -> int:
    """Columns of a model's logits: the rows of its output head, which may exceed the number of tokens."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # every causal language model has it
    return int(head.weight.shape[0])


def fit_width(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Value logits cut or filled up to `width` columns; themselves if they have that width.

    What is filled up gets the mean of the row, which says nothing of a token: a constant added to all value logits
    changes no probability, here neither.
    """
    missing = width - logits.shape[-1]
    if missing <= 0:
        return logits[..., :width]
    return torch.cat((logits, logits.mean(-1, keepdim=True).expand(*logits.shape[:-1], missing)), dim=-1)


def longest_text(model: PreTrainedModel) -> int | None:
    """Tokens that a model reads at most, as its configuration says; None where it says nothing."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None  # some say -1


def set_trainable(network: PreTrainedModel, trainable: bool) -> None:
    """Lets a network's weights take gradients, or not; of a LoRA network only the LoRA's, since only they are saved."""
    network.requires_grad_(False)
    if isinstance(getattr(network, "peft_config", None), dict):
        for name in network.active_adapters:
            network.set_requires_grad(name, requires_grad=trainable)
    else:
        network.requires_grad_(trainable)


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
    put_aside = {name: vars(config).pop(name) for name in _not_of_a_network(network) if name in vars(config)}
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = settings
        for name, value in put_aside.items():
            setattr(config, name, value)


def _not_of_a_network(model: PreTrainedModel) -> list[str]:
    """Keys of a configuration that say how a model generates, was quantized, or where code is that it needs not."""
    quantized = getattr(model, "hf_quantizer", None) is not None
    names = ["auto_map"] * (not _brings_code(model)) + ["quantization_config"] * (not quantized)
    return [*names, *model.config._get_generation_parameters()]


def _brings_code(model: PreTrainedModel) -> bool:
    return not type(model.config).__module__.startswith("transformers.")
