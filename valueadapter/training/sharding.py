"""Training where each process holds a part of every weight: FSDP2 and ZeRO-3, through accelerate.

Models are whole when they are attached, and from when `train` begins on they lie in parts. Knows how a network is put
together again, and taken apart; nothing of what is trained.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from valueadapter.adapter.causal_lm import is_sharded
from valueadapter.errors import CheckpointError, ConfigError

OPTIMIZER = "optimizer_0"
"""Directory of an optimizer's state in a checkpoint."""
_CHECKPOINTING = "_checkpoint_wrapped_module."
"""What activation checkpointing puts into the names of a layer's parameters."""


class Shards:
    """The networks of a training, which may come to lie in parts.

    Args:
        networks: whole ones, before the training begins.
    """

    def __init__(self, networks: Sequence[PreTrainedModel]) -> None:
        self.networks = tuple(networks)
        self._without_weights = [_copy(one, lambda own: own.detach().to("meta")) for one in networks]

    def whole(self, *, on_each_process: bool) -> list[PreTrainedModel]:
        """Copies of the networks with whole weights, on the CPU; every process must ask for them.

        Args:
            on_each_process: or else on the first one alone, and without weights (device "meta") on the others.
        """
        keep = on_each_process or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        found = []
        for network, empty in zip(self.networks, self._without_weights, strict=True):
            own = _named(network)
            weights = {id(parameter): _whole(own[name], keep=keep) for name, parameter in _named(empty).items()}
            found.append(_copy(empty, lambda one, weights=weights: weights[id(one)]))
        return found

    @torch.no_grad()
    def put(self, whole: Sequence[PreTrainedModel]) -> None:
        """Takes whole weights into the parts, in what is trained.

        Args:
            whole: what `whole(on_each_process=True)` gave, with other weights perhaps.
        """
        for network, other in zip(self.networks, whole, strict=True):
            new = _named(other)
            for name, own in _named(network).items():
                if own.requires_grad:
                    own.copy_(_in_parts_as(own, new[name]))


def taken_apart(model: nn.Module) -> bool:
    """Whether a model lies in parts over the processes, as from here on it does again in all its modules.

    FSDP leaves some together after a forward for which there was no backward, an evaluation's.
    """
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]  # of an FSDPModule
    return is_sharded(model)


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Writes an optimizer's state, each process its part.

    Args:
        model: what it trains, in parts (FSDP2).
        optimizer: the optimizer.
        checkpoint: the directory of a checkpoint.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    save(get_optimizer_state_dict(model, optimizer), checkpoint_id=checkpoint / OPTIMIZER)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Reads what `save_optimizer` wrote.

    Raises:
        CheckpointError: it is not there, or is of another training.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    state = get_optimizer_state_dict(model, optimizer)  # with states of the right shapes, to be filled
    try:
        load(state, checkpoint_id=checkpoint / OPTIMIZER)
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint '{checkpoint}' has no state of this optimizer: {error}") from error
    set_optimizer_state_dict(model, optimizer, state)


def check_sharding(trainer: Trainer) -> None:
    """Refuses what leaves a process without whole models before the training begins, or flattens weights.

    Raises:
        ConfigError: FSDP of version 1, or models that are not whole on every process.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise ConfigError(
            f"FSDP of version {plugin.fsdp_version} puts weights of frozen and trained models into one, from which no "
            "adapter can be saved; take version 2 (fsdp_version: 2 in accelerate's configuration)"
        )
    _check_fsdp_loading()
    if is_sharded(cast(nn.Module, trainer.model)):
        raise ConfigError(_TAKEN_APART)


@contextmanager
def whole_models(arguments: TrainingArguments) -> Iterator[None]:
    """Within the block models are loaded and made whole on every process, also with ZeRO-3, which takes them apart.

    Args:
        arguments: which have told transformers of ZeRO-3 when they were made.

    Raises:
        ConfigError: FSDP is set to load weights on the first process alone.
    """
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    _check_fsdp_loading()
    plugin = getattr(arguments, "deepspeed_plugin", None)
    config = getattr(arguments, "hf_deepspeed_config", None) or getattr(plugin, "dschf", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


_TAKEN_APART = (
    "ZeRO-3 has taken base or networks apart while they were made, and each process must look at them whole before the "
    "training begins; load the base and attach the adapter before the training arguments are made, or within "
    "valueadapter.training.sharding.whole_models(arguments)"
)


def _check_fsdp_loading() -> None:
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if fsdp and os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower() == "true":
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading gives models their weights on the first process alone, and each must look "
            "at base and networks before the training begins; set fsdp_cpu_ram_efficient_loading: false"
        )


def is_on(arguments: TrainingArguments) -> bool:
    """Whether weights will lie in parts."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or arguments.fsdp:
        return True
    plugin = getattr(arguments, "deepspeed_plugin", None)
    return plugin is not None and plugin.zero_stage == 3


def _named(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name.replace(_CHECKPOINTING, ""): one for name, one in network.named_parameters()}


def _copy(network: Any, weights: Any) -> Any:
    """A network's modules with other parameters, each made of the one that stands there."""
    new = {id(own): nn.Parameter(weights(own), requires_grad=own.requires_grad) for own in network.parameters()}
    return copy.deepcopy(network, new)  # what is in the memo is not copied


def _whole(parameter: Any, *, keep: bool) -> torch.Tensor:
    """All of a parameter, of which this process may have a part; without elements where they are not to be kept."""
    if hasattr(parameter, "full_tensor"):
        found = parameter.full_tensor().detach()
    elif hasattr(parameter, "ds_id"):
        import deepspeed  # type: ignore[import-not-found]  # whoever trains with it has it

        with deepspeed.zero.GatheredParameters([parameter]):
            found = parameter.detach().clone()
    else:
        found = parameter.detach().clone()
    return cast(torch.Tensor, found.cpu() if keep else found.to("meta"))


def _in_parts_as(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    if not hasattr(parameter, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
