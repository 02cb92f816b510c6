"""Builds value networks, ordinary causal language models, from pretrained ones; knows nothing of the base's logits.

A value network starts from a pretrained body. With its head set to zero (the default) its logits are exactly zero, so
that training starts at the base model itself; with the pretrained head, step 0 would double the base's logits.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import get_args

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from valueadapter.adapter.causal_lm import brings_code, not_of_a_network
from valueadapter.artifact.config import Initialisation
from valueadapter.artifact.config.number import finite, whole
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
    _check_code(source)
    config = _cut_config(source.config, num_layers)
    for name in ("quantization_config", *not_of_a_network(source)):
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


def _check_code(source: PreTrainedModel) -> None:
    if brings_code(source):
        raise ConfigError(
            f"{type(source).__name__} is no class of transformers', and an adapter brings no code; give a source whose "
            "architecture transformers has"
        )


def _cut_config(config: PreTrainedConfig, num_layers: int | None) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    depth = text.num_hidden_layers
    if num_layers is None:
        return config
    if not 1 <= (num_layers := whole("num_layers", num_layers)) <= depth:
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
    if not 0 <= (dropout := finite("dropout", dropout)) < 1 or not names:
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
