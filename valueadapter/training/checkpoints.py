"""Puts the weights of a training checkpoint into the adapter being trained; knows no optimizer and no trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedModel

from valueadapter.adapter.lora import active_lora, is_unpinned
from valueadapter.adapter.network_loading import load_network
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.config import NetworkSpec, TrainingRecord, ValueAdapterConfig
from valueadapter.artifact.network_files import OpenedNetwork
from valueadapter.errors import ArtifactError, CheckpointError, ConfigError
from valueadapter.training.trained_weights import check_shapes, load_trained


def take_weights(own: ValueAdapter, checkpoint: Path) -> TrainingRecord | None:
    """Puts a checkpoint's weights into the networks of the adapter being trained.

    Args:
        own: the adapter being trained.
        checkpoint: the Trainer's directory; its adapter lies inside, or what is trained of one that has a LoRA whose
            base has no commit.

    Returns:
        The record of the training up to there, if the checkpoint has one.

    Raises:
        CheckpointError: anything is missing, damaged or does not fit; never a fresh start.
    """
    if any(map(is_unpinned, own.networks)):
        load_trained(own.networks, checkpoint / file_names.CHECKPOINT_LORA)
        return None
    place = checkpoint / file_names.CHECKPOINT_ADAPTER
    try:
        with verification.open_artifact(place) as opened:
            opened.check_weights()
            _check_fits(opened.config, own.config, place)
            for spec, mine, held, network in zip(
                opened.config.networks, own.config.networks, opened.networks, own.networks, strict=True
            ):
                if held is None:
                    _check_named(spec, mine, place)
                elif held.is_lora and hasattr(network, "peft_config"):  # the rest is pinned, and is there already
                    _load_lora(network, held.directory, place)
                else:
                    _load(held, network, place)
            return opened.config.training
    except (ArtifactError, ConfigError) as error:
        raise CheckpointError(f"checkpoint '{checkpoint}' cannot be resumed: {error}") from error


def _check_fits(config: ValueAdapterConfig, own: ValueAdapterConfig, place: Path) -> None:
    if _paths(config.networks) != _paths(own.networks):
        raise CheckpointError(f"checkpoint '{place}' holds other networks than the adapter being trained")
    if config.connection != own.connection:
        raise CheckpointError(
            f"checkpoint '{place}' has connection '{config.connection}', the adapter being trained "
            f"'{own.connection}'. Resume with the connection that the run began with"
        )
    if config.vocabulary != own.vocabulary:
        raise CheckpointError(f"checkpoint '{place}' speaks another vocabulary than the adapter being trained")


def _paths(specs: Sequence[NetworkSpec]) -> list[str | None]:
    return [spec.path for spec in specs]


def _check_named(spec: NetworkSpec, mine: NetworkSpec, place: Path) -> None:
    """A network that lies on the Hub at a commit: nothing of it is trained, and it must be the same one."""
    if (spec.repo, spec.revision) != (mine.repo, mine.revision):
        raise CheckpointError(
            f"checkpoint '{place}' has the network {spec.repo}@{spec.revision}, the adapter being trained "
            f"{mine.repo}@{mine.revision}. Resume on the commit that the run began with"
        )


def _load(held: OpenedNetwork, network: PreTrainedModel, place: Path) -> None:
    saved = load_network(held, dtype=network.dtype).state_dict()
    check_shapes(place, saved, network.state_dict())
    network.load_state_dict(saved)


def _load_lora(network: PreTrainedModel, directory: Path, place: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict  # slow to import, and few trainings need it

    saved, name = load_file(directory / file_names.PEFT_WEIGHTS), active_lora(network)
    check_shapes(place, saved, get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False))
    set_peft_model_state_dict(network, saved, adapter_name=name)
