"""Reads, verifies and replaces an adapter's directory; knows files and JSON, not tensors' meaning, models or the Hub.

`verify` is the gate: it runs before every push, after every download and on every load, and needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from valueadapter import contents, layout
from valueadapter.alignment import VocabularyAlignment
from valueadapter.config import ValueAdapterConfig
from valueadapter.errors import AlignmentError, ArtifactError, ConfigError, MissingFileError, NotAValueAdapterError
from valueadapter.vocabulary import Vocabulary

_DOWNLOAD_AGAIN = "Download or save the adapter again"
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def read_config(directory: Path) -> ValueAdapterConfig:
    """The configuration of the adapter in `directory`, whose other files are not looked at.

    Raises:
        MissingFileError: no such directory, or no config.json in it.
        NotAValueAdapterError: it holds something else; the message says what.
        ConfigError, IncompatibleVersionError: see `ValueAdapterConfig.from_json`.
    """
    if not directory.is_dir():
        raise MissingFileError(f"there is no directory '{directory}'; expected one that holds a value adapter")
    path = directory / layout.CONFIG
    if (directory / layout.PEFT_CONFIG).exists() or not os.path.lexists(path):
        raise what_is_it(os.listdir(directory), str(directory))
    contents.check_inside(directory, path)
    try:
        return ValueAdapterConfig.from_json(path.read_text(encoding="utf-8"))
    except (ConfigError, NotAValueAdapterError) as error:
        if isinstance(error, NotAValueAdapterError):
            raise what_is_it(os.listdir(directory), str(directory)) from None
        raise ConfigError(f"'{path}': {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is not UTF-8 text. {_DOWNLOAD_AGAIN}") from None


def what_is_it(names: Iterable[str], place: str) -> ArtifactError:
    """The error for a directory or repository that is no value adapter, saying what it looks like instead.

    Args:
        names: the names of the files at its root.
        place: the directory or Hub ID, for the message.
    """
    found = set(names)
    if layout.PEFT_CONFIG in found:
        return NotAValueAdapterError(
            f"'{place}' is a PEFT adapter, not a value adapter: it changes weights. Load it with peft.PeftModel"
        )
    if any(name.startswith("trainer_state") for name in found) and layout.CHECKPOINT_ADAPTER in found:
        return NotAValueAdapterError(
            f"'{place}' is a training checkpoint; its adapter lies in the subfolder '{layout.CHECKPOINT_ADAPTER}'"
        )
    if layout.CONFIG in found:
        return NotAValueAdapterError(
            f"'{place}' is a plain model, not a value adapter: load it with AutoModelForCausalLM or pass it as the base"
        )
    if any(name.endswith((".parquet", ".jsonl", ".csv", ".arrow")) for name in found):
        return NotAValueAdapterError(f"'{place}' holds data (a dataset), not a value adapter")
    if any(name.startswith(layout.SAVING) for name in found):
        return MissingFileError(
            f"an adapter is being saved to '{place}', or that was interrupted: there is no {layout.CONFIG}. Read it "
            f"again, or save there again; what was there before lies in '{layout.SAVING}…/{layout.BEFORE}'"
        )
    listing = ", ".join(sorted(found)[:5]) or "nothing"
    return MissingFileError(f"'{place}' has no {layout.CONFIG}, so it is no value adapter; it holds {listing}")


def verify(directory: Path) -> ValueAdapterConfig:
    """Checks everything about an adapter that can be checked without running it.

    Every file is where config.json says, inside the directory, of a safe format, complete, and has the recorded
    checksum; the tokenizer has the recorded fingerprints. No file is changed and no pickle is opened.

    Returns:
        The configuration.

    Raises:
        ArtifactError, ConfigError: the first fault found, naming the file, what was expected and what to do.
    """
    config = read_config(directory)
    for path in contents.files(directory):
        contents.check_inside(directory, path)
        contents.check_kind(directory, path)
    for network in config.networks:
        if network.path is not None:
            _verify_network(directory / network.path, network.sha256)
    _verify_tokenizer(directory, config)
    read_alignments(directory)
    return config


def read_alignments(directory: Path) -> dict[str, VocabularyAlignment]:
    """The vocabulary alignments that an adapter brings, by the first 16 hex digits of the base's byte fingerprint.

    Raises:
        ArtifactError: one is damaged, misnamed, or for another value vocabulary than config.json names.
    """
    expected = read_config(directory).vocabulary
    found = {}
    for path in sorted((directory / layout.ALIGNMENTS).glob("[!.]*")):
        try:
            alignment = VocabularyAlignment.load(path)
            alignment.check(expected, alignment.base)
        except AlignmentError as error:
            raise ArtifactError(f"'{path}': {error}") from error
        name = alignment.base.byte_fingerprint[:16]
        if path.name != f"{name}{layout.SAFETENSORS}":
            raise ArtifactError(f"'{path}' is for the base vocabulary {name}; it must be named {name}.safetensors")
        found[name] = alignment
    return found


def tensor_table(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of a safetensors file, read from its header.

    Raises:
        ArtifactError: truncated or not a safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        size = path.stat().st_size
        raise ArtifactError(f"'{path}' is truncated or corrupt ({size:,} bytes; {error}). {_DOWNLOAD_AGAIN}") from None


def checksums(directory: Path) -> dict[str, str]:
    """File name -> SHA-256 of the weight files in a network's directory, sorted by name."""
    return {path.name: sha256(path) for path in sorted(directory.glob(f"*{layout.SAFETENSORS}"))}


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the artifact.

    Raises:
        MissingFileError: there is no such file.
        ArtifactError: it is not a JSON object.
    """
    if not path.is_file():
        raise MissingFileError(f"'{path}' is missing. {_DOWNLOAD_AGAIN}")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"'{path}' is not JSON ({error}). {_DOWNLOAD_AGAIN}") from None
    if not isinstance(data, dict):
        raise ArtifactError(f"'{path}' must hold a JSON object; got {type(data).__name__}")
    return data


def _verify_network(directory: Path, expected: Mapping[str, str]) -> None:
    if not directory.is_dir():
        raise MissingFileError(f"the value network's directory '{directory}' is missing. {_DOWNLOAD_AGAIN}")
    found = {path.name for path in directory.glob(f"*{layout.SAFETENSORS}")}
    if missing := sorted(set(expected) - found):
        raise MissingFileError(f"'{directory / missing[0]}' is missing; config.json lists it. {_DOWNLOAD_AGAIN}")
    if extra := sorted(found - set(expected)):
        raise ArtifactError(f"'{directory / extra[0]}' is not listed in config.json; remove it")
    tables = {name: tensor_table(directory / name) for name in sorted(expected)}
    _verify_index(directory, tables)
    _verify_network_config(directory, tables)
    for name, digest in expected.items():
        if (got := sha256(directory / name)) != digest:
            raise ArtifactError(
                f"'{directory / name}' has changed since it was saved: SHA-256 is {got}, config.json says {digest}. "
                f"{_DOWNLOAD_AGAIN}"
            )


def _verify_index(directory: Path, tables: Mapping[str, Mapping[str, object]]) -> None:
    path = directory / layout.WEIGHTS_INDEX
    if not path.exists():
        if len(tables) > 1:
            raise MissingFileError(f"'{path}' is missing; {len(tables)} shards need it. {_DOWNLOAD_AGAIN}")
        return
    index = load_json(path).get("weight_map", {})
    held = {tensor: name for name, table in tables.items() for tensor in table}
    if index != held:
        wrong = sorted(t for t in {*index, *held} if index.get(t) != held.get(t))[0]
        raise ArtifactError(
            f"tensor '{wrong}' is in {held.get(wrong, 'no shard')}, but '{path}' says {index.get(wrong, 'nothing')}. "
            f"{_DOWNLOAD_AGAIN}"
        )


def _verify_network_config(directory: Path, tables: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]) -> None:
    if (directory / layout.PEFT_CONFIG).exists():
        peft = load_json(directory / layout.PEFT_CONFIG)
        if not re.fullmatch(r"[0-9a-f]{40}", str(peft.get("revision"))):
            raise ArtifactError(
                f"'{directory / layout.PEFT_CONFIG}' names '{peft.get('base_model_name_or_path')}' "
                "without a commit as 'revision'; set it to a 40-hex commit hash, so that the network cannot "
                "change under its users"
            )
        return
    config = load_json(directory / layout.CONFIG)
    if "auto_map" in config:
        raise ArtifactError(
            f"'{directory / layout.CONFIG}' asks for custom code ('auto_map'); a value adapter runs none"
        )
    expected = _DTYPES.get(str(config.get("dtype")))
    for name, table in tables.items():
        for tensor, (dtype, _) in table.items():
            if dtype != expected:
                raise ArtifactError(
                    f"tensor '{tensor}' in '{directory / name}' has dtype {dtype}; "
                    f"'{directory / layout.CONFIG}' says {config.get('dtype')} ({expected}). {_DOWNLOAD_AGAIN}"
                )


def _verify_tokenizer(directory: Path, config: ValueAdapterConfig) -> None:
    path = directory / layout.TOKENIZER
    if not path.is_file():
        raise MissingFileError(f"'{path}' is missing. {_DOWNLOAD_AGAIN}")
    if "auto_map" in load_json(directory / layout.TOKENIZER_CONFIG):
        raise ArtifactError(
            f"'{directory / layout.TOKENIZER_CONFIG}' asks for custom code ('auto_map'); remove the key"
        )
    found = Vocabulary.from_tokenizer_json(path.read_text(encoding="utf-8")).spec(config.vocabulary.logits_width)
    for name in ("byte_fingerprint", "behaviour_fingerprint"):
        got, expected = getattr(found, name), getattr(config.vocabulary, name)
        if got != expected:
            raise ArtifactError(
                f"'{path}' is another tokenizer than the adapter was saved with: {name} is {got}, "
                f"config.json says {expected}. {_DOWNLOAD_AGAIN}"
            )
