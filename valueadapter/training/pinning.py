"""A base in a directory under its name on the Hub: whether that is the same model, so that its commit can be recorded.

Knows checkpoints and configurations; what is compared is `hub`'s business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import nn

from valueadapter import hub
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.config import NetworkSpec


def commit_of_base(
    name: str, directory: Path, revision: str | None, checkpoint: Path | None, *, say: Callable[[str], object]
) -> str | None:
    """The commit at which a base in a directory lies on the Hub; None where the same model does not.

    A run that goes on has decided that when it began, and does not ask again.

    Args:
        name: Hub ID that the base is recorded under.
        directory: where it lies.
        revision: branch, tag or commit to compare with.
        checkpoint: what the run goes on from; None where it begins.
        say: called with a line on what was found.

    Raises:
        ArtifactError, ConfigError: the checkpoint's adapter is damaged.
    """
    if checkpoint is not None:
        place = checkpoint / file_names.CHECKPOINT_ADAPTER
        return verification.read_config(place).base_model_revision if place.is_dir() else None
    found = hub.commit_of_same(directory, name, revision=revision)
    if found.commit is not None:
        say(f"'{directory}' is {name} at commit {found.commit[:12]}, byte for byte, and is not stored again")
    else:
        say(f"the networks are stored whole, since '{directory}' is not known to be {name} on the Hub: {found.reason}")
    return found.commit


def named_at(adapter: ValueAdapter, index: int, *, repo: str, revision: str) -> ValueAdapter:
    """The adapter with one of its networks, loaded from a copy here, named by its place on the Hub.

    Args:
        adapter: the adapter.
        index: of the network.
        repo: Hub ID where the same model lies.
        revision: its commit there, 40 hex digits.
    """
    specs = [*adapter.config.networks]
    there = NetworkSpec(specs[index].coefficient, repo=repo, revision=revision)
    specs[index] = dataclasses.replace(there, reads_prefix=specs[index].reads_prefix)
    return adapter.with_config(networks=tuple(specs))


def in_float32(networks: nn.Module) -> None:
    """Holds what is trained in float32, beside weights that are not: steps are smaller than what bfloat16 can hold."""
    for parameter in networks.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()
