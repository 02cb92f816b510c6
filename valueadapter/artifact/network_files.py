"""A network of an artifact, opened: its small files read, its weight files held open; knows no torch.

What is checked here is what the network is loaded from, also where another process replaces the directory meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valueadapter.artifact import file_names
from valueadapter.artifact.config.parts import COMMIT
from valueadapter.artifact.json_file import parse_object
from valueadapter.artifact.network_settings import check_lora, check_settings
from valueadapter.artifact.weight_file import WeightFile
from valueadapter.errors import ArtifactError, MissingFileError

_DOWNLOAD_AGAIN = "Download or save the adapter again"
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass
class OpenedNetwork:
    """What the directory of one network held when it was opened.

    Attributes:
        directory: where it lies, for messages.
        checksums: weight file -> SHA-256 that config.json records.
        files: name -> content of the JSON files.
        weights: name -> opened weight file, by rising name.
    """

    directory: Path
    checksums: Mapping[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    weights: dict[str, WeightFile] = field(default_factory=dict)

    @property
    def is_lora(self) -> bool:
        """Whether it is a PEFT checkpoint."""
        return file_names.PEFT_CONFIG in self.files

    @property
    def settings(self) -> dict[str, Any]:
        """Its configuration, PEFT's or that of the model."""
        name = file_names.PEFT_CONFIG if self.is_lora else file_names.CONFIG
        if name not in self.files:
            raise MissingFileError(f"'{self.directory / name}' is missing. {_DOWNLOAD_AGAIN}")
        return parse_object(self.files[name], self.directory / name)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape, over all weight files."""
        return {name: one.shape for file in self.weights.values() for name, one in file.tensors.items()}

    def check_weights(self) -> None:
        """Compares the checksum of every weight file.

        Raises:
            ArtifactError: one has changed since it was saved.
        """
        for name, file in self.weights.items():
            file.check(self.checksums[name])

    def close(self) -> None:
        """Closes the weight files."""
        for file in self.weights.values():
            file.close()


def open_network(directory: Path, checksums: Mapping[str, str], *, width: int) -> OpenedNetwork:
    """Opens and checks all files of a network, but the checksums of its weights, which need them to be read.

    Args:
        directory: where it lies.
        checksums: weight file -> SHA-256, as config.json has them.
        width: columns of the adapter's value logits.

    Raises:
        MissingFileError, ArtifactError: the first fault found.
    """
    if not directory.is_dir():
        raise MissingFileError(f"the value network's directory '{directory}' is missing. {_DOWNLOAD_AGAIN}")
    found = {path.name for path in directory.glob(f"[!.]*{file_names.SAFETENSORS}")}
    if missing := sorted(set(checksums) - found):
        raise MissingFileError(f"'{directory / missing[0]}' is missing; config.json lists it. {_DOWNLOAD_AGAIN}")
    if extra := sorted(found - set(checksums)):
        raise ArtifactError(f"'{directory / extra[0]}' is not listed in config.json; remove it")
    network = OpenedNetwork(directory, checksums)
    try:
        for path in sorted(directory.glob("[!.]*.json")):
            network.files[path.name] = path.read_bytes()
        for name in sorted(checksums):
            network.weights[name] = WeightFile(directory / name)
        _check_index(network)
        _check_settings(network, width)
    except BaseException:
        network.close()
        raise
    return network


def _check_index(network: OpenedNetwork) -> None:
    path = network.directory / file_names.WEIGHTS_INDEX
    if file_names.WEIGHTS_INDEX not in network.files:
        if len(network.weights) > 1:
            raise MissingFileError(f"'{path}' is missing; {len(network.weights)} shards need it. {_DOWNLOAD_AGAIN}")
        return
    index = parse_object(network.files[file_names.WEIGHTS_INDEX], path).get("weight_map", {})
    held = {tensor: name for name, file in network.weights.items() for tensor in file.tensors}
    if not isinstance(index, dict):
        raise ArtifactError(f"'weight_map' in '{path}' must be an object; got {type(index).__name__}")
    if index != held:
        wrong = sorted(t for t in {*index, *held} if index.get(t) != held.get(t))[0]
        raise ArtifactError(
            f"tensor '{wrong}' is in {held.get(wrong, 'no shard')}, but '{path}' says {index.get(wrong, 'nothing')}. "
            f"{_DOWNLOAD_AGAIN}"
        )
    if sum(len(file.tensors) for file in network.weights.values()) != len(held):
        raise ArtifactError(f"several shards in '{network.directory}' have a tensor of one name. {_DOWNLOAD_AGAIN}")


def _check_settings(network: OpenedNetwork, width: int) -> None:
    config, directory = network.settings, network.directory
    if network.is_lora:
        path = directory / file_names.PEFT_CONFIG
        if not COMMIT.fullmatch(str(config.get("revision"))):
            raise ArtifactError(
                f"'{path}' names '{config.get('base_model_name_or_path')}' "
                "without a commit as 'revision'; set it to a 40-hex commit hash, so that the network cannot "
                "change under its users"
            )
        if list(network.weights) != [file_names.PEFT_WEIGHTS]:
            raise ArtifactError(
                f"a LoRA's weights lie in '{directory / file_names.PEFT_WEIGHTS}' alone. {_DOWNLOAD_AGAIN}"
            )
        check_lora(config, network.shapes, place=path)
        return
    expected = _DTYPES.get(str(config.get("dtype")))
    for name, file in network.weights.items():
        for tensor, (dtype, _) in file.table.items():
            if dtype != expected:
                raise ArtifactError(
                    f"tensor '{tensor}' in '{directory / name}' has dtype {dtype}; "
                    f"'{directory / file_names.CONFIG}' says {config.get('dtype')} ({expected}). {_DOWNLOAD_AGAIN}"
                )
    check_settings(config, network.shapes, place=directory / file_names.CONFIG, width=width)
