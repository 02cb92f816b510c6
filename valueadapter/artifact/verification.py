"""Reads, verifies and replaces an adapter's directory; knows files and JSON, not tensors' meaning, models or the Hub.

`verify` is the gate: it runs before every push, after every download and on every load, and needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valueadapter.artifact import contents, file_names, tokenizer_settings
from valueadapter.artifact.card_results import CardResults, read_card_results
from valueadapter.artifact.config import ValueAdapterConfig
from valueadapter.artifact.json_file import parse_object
from valueadapter.artifact.network_files import OpenedNetwork, open_network
from valueadapter.artifact.weight_file import WeightFile
from valueadapter.errors import AlignmentError, ArtifactError, ConfigError, MissingFileError, NotAValueAdapterError
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary, view_of
from valueadapter.vocabulary.spec import VocabularySpec

_DOWNLOAD_AGAIN = "Download or save the adapter again"
_ATTEMPTS = 30


def read_config(directory: Path) -> ValueAdapterConfig:
    """The configuration of the adapter in `directory`, whose other files are not looked at.

    Raises:
        MissingFileError: no such directory, or no config.json in it.
        NotAValueAdapterError: it holds something else; the message says what.
        ConfigError, IncompatibleVersionError: see `ValueAdapterConfig.from_json`.
    """
    if not directory.is_dir():
        raise MissingFileError(f"there is no directory '{directory}'; expected one that holds a value adapter")
    path = directory / file_names.CONFIG
    if (directory / file_names.PEFT_CONFIG).exists() or not os.path.lexists(path):
        raise not_an_adapter_error(os.listdir(directory), str(directory))
    contents.check_inside(directory, path)
    try:
        return ValueAdapterConfig.from_json(path.read_text(encoding="utf-8"))
    except (ConfigError, NotAValueAdapterError) as error:
        if isinstance(error, NotAValueAdapterError):
            raise not_an_adapter_error(os.listdir(directory), str(directory)) from None
        raise ConfigError(f"'{path}': {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is not UTF-8 text. {_DOWNLOAD_AGAIN}") from None


def not_an_adapter_error(names: Iterable[str], place: str) -> ArtifactError:
    """The error for a directory or repository that is no value adapter, saying what it looks like instead.

    Args:
        names: the names of the files at its root.
        place: the directory or Hub ID, for the message.
    """
    found = set(names)
    if file_names.PEFT_CONFIG in found:
        return NotAValueAdapterError(
            f"'{place}' is a PEFT adapter, not a value adapter: it changes weights. Load it with peft.PeftModel"
        )
    if any(name.startswith("trainer_state") for name in found) and file_names.CHECKPOINT_ADAPTER in found:
        return NotAValueAdapterError(
            f"'{place}' is a training checkpoint; its adapter lies in the subfolder '{file_names.CHECKPOINT_ADAPTER}'"
        )
    if file_names.CONFIG in found:
        return NotAValueAdapterError(
            f"'{place}' is a plain model, not a value adapter: load it with AutoModelForCausalLM or pass it as the base"
        )
    if any(name.endswith((".parquet", ".jsonl", ".csv", ".arrow")) for name in found):
        return NotAValueAdapterError(f"'{place}' holds data (a dataset), not a value adapter")
    if any(name.startswith(file_names.SAVING) for name in found):
        return MissingFileError(
            f"an adapter is being saved to '{place}', or that was interrupted: there is no {file_names.CONFIG}. "
            "Read it again, or save there again; what was there before lies in "
            f"'{file_names.SAVING}…/{file_names.BEFORE}'"
        )
    listing = ", ".join(sorted(found)[:5]) or "nothing"
    return MissingFileError(f"'{place}' has no {file_names.CONFIG}, so it is no value adapter; it holds {listing}")


def verify(directory: Path) -> ValueAdapterConfig:
    """Checks everything about an adapter that can be checked without running it.

    Every file is where config.json says, inside the directory, of a safe format, complete, and has the recorded
    checksum; networks ask for no code, and for no size that their tensors lack; the tokenizer has the recorded
    fingerprints, and nothing beside it changes its tokens; maps fit it. No file is changed and no pickle is opened.

    Returns:
        The configuration.

    Raises:
        ArtifactError, ConfigError: the first fault found, naming the file, what was expected and what to do.
    """
    with open_artifact(directory) as opened:
        opened.check_weights()
        return opened.config


def open_artifact(directory: Path) -> OpenedArtifact:
    """Opens an adapter once, for all that is to be read of it, and checks all but the checksums of its weights.

    These need the weights to be read: `check_weights` does, and so does whoever loads them, see `WeightFile.read`.
    Where another process saves an adapter to the directory meanwhile, what is opened is all of the old or all of the
    new one: config.json is the last file of an adapter to be put in place and the first to be taken away, so what was
    opened between two looks at the same config.json belongs to it.

    Raises:
        ArtifactError, ConfigError: as `verify`.
    """
    for attempt in range(_ATTEMPTS):
        with contextlib.ExitStack() as held:
            look = _Look(directory, held)
            try:
                opened = _open(directory, held)
                failure = None
            except (ArtifactError, ConfigError, OSError) as error:
                failure = error
            if look.still_there():
                if failure is not None:
                    raise failure
                opened.held = held.pop_all()
                return opened
        time.sleep(min(0.001 * 2**attempt, 0.05))
    raise ArtifactError(
        f"'{directory}' was replaced each of the {_ATTEMPTS} times that it was read; another process saves there all "
        "the time. Read it again"
    ) from failure


@dataclass
class OpenedArtifact:
    """An adapter that was opened once; `with` closes it.

    Attributes:
        directory: where it lies, for messages.
        config: its configuration.
        networks: one for each of `config.networks`; None for one on the Hub.
        tokenizer_files: path inside the adapter -> content of what a tokenizer is loaded from.
        side: its vocabulary, as tokenizer.json has it.
        alignments: the maps that it brings, by the first 16 hex digits of the base's byte fingerprint.
        card_results: what its card shows of an evaluation.
        held: what closing closes.
    """

    directory: Path
    config: ValueAdapterConfig
    networks: tuple[OpenedNetwork | None, ...]
    tokenizer_files: Mapping[str, bytes]
    side: ModelVocabulary
    alignments: Mapping[str, VocabularyAlignment]
    card_results: CardResults
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> OpenedArtifact:
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def check_weights(self) -> None:
        """Compares the checksum of every weight file.

        Raises:
            ArtifactError: one has changed since it was saved.
        """
        for network in self.networks:
            if network is not None:
                network.check_weights()


class _Look:
    """Which config.json is in a directory; it is held open, so that no other file gets its number."""

    def __init__(self, directory: Path, held: contextlib.ExitStack) -> None:
        self._path = directory / file_names.CONFIG
        try:
            self._seen: os.stat_result | None = os.fstat(held.enter_context(self._path.open("rb")).fileno())
        except OSError:
            self._seen = None

    def still_there(self) -> bool:
        """Whether it is the same file, unchanged; also where there was none and is none."""
        try:
            now = os.stat(self._path)
        except OSError:
            return self._seen is None
        then = self._seen
        return (
            then is not None
            and os.path.samestat(now, then)
            and (now.st_mtime_ns, now.st_size)
            == (
                then.st_mtime_ns,
                then.st_size,
            )
        )


def _open(directory: Path, held: contextlib.ExitStack) -> OpenedArtifact:
    config = read_config(directory)
    for path in contents.files(directory):
        contents.check_inside(directory, path)
        contents.check_kind(directory, path)
    networks: list[OpenedNetwork | None] = []
    for spec in config.networks:
        network = None
        if spec.path is not None:
            network = open_network(directory / spec.path, spec.sha256, width=config.vocabulary.logits_width)
            held.callback(network.close)
        networks.append(network)
    files = _tokenizer_files(directory)
    side = _side(directory, files, config.vocabulary)
    alignments = _alignments(directory, side, config.vocabulary)
    shown = read_card_results(directory)
    return OpenedArtifact(directory, config, tuple(networks), files, side, alignments, shown)


def _tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Path -> content of config.json and of what a tokenizer's `save_pretrained` writes, as far as it is there."""
    paths = [directory / name for name in (file_names.CONFIG, *file_names.TOKENIZER_FILES)]
    paths += sorted((directory / file_names.CHAT_TEMPLATES).glob(f"[!.]*{file_names.CHAT_TEMPLATE}"))
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def _side(directory: Path, files: Mapping[str, bytes], recorded: VocabularySpec) -> ModelVocabulary:
    path = directory / file_names.TOKENIZER
    for name in (file_names.TOKENIZER, file_names.TOKENIZER_CONFIG):
        if name not in files:
            raise MissingFileError(f"'{directory / name}' is missing. {_DOWNLOAD_AGAIN}")
    for name in files:
        if name.endswith(file_names.CHAT_TEMPLATE):
            _text(files[name], directory / name)
    settings = {
        name: parse_object(files[name], directory / name)
        for name in (
            file_names.TOKENIZER_CONFIG,
            tokenizer_settings.SPECIAL_TOKENS_MAP,
            tokenizer_settings.ADDED_TOKENS,
        )
        if name in files
    }
    text = _text(files[file_names.TOKENIZER], path)
    state = parse_object(text, path)
    side = ModelVocabulary(text, recorded.logits_width, tokenizer_settings.eos_token(settings))
    try:
        view_of(text, state)  # parsed once: what `side` makes of the text is kept
        found = side.spec
    except AlignmentError as error:
        raise ArtifactError(f"'{path}': {error}. {_DOWNLOAD_AGAIN}") from None
    for name in ("byte_fingerprint", "behaviour_fingerprint"):
        got, expected = getattr(found, name), getattr(recorded, name)
        if got != expected:
            raise ArtifactError(
                f"'{path}' is another tokenizer than the adapter was saved with: {name} is {got}, "
                f"config.json says {expected}. {_DOWNLOAD_AGAIN}"
            )
    tokenizer_settings.check_settings(state, settings, place=str(directory))
    return side


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"'{path}' is not UTF-8 text. {_DOWNLOAD_AGAIN}") from None


def read_alignments(directory: Path) -> dict[str, VocabularyAlignment]:
    """The vocabulary alignments that an adapter brings, by the first 16 hex digits of the base's byte fingerprint.

    Raises:
        ArtifactError: as `open_artifact`; for a map that is damaged, misnamed, or for another value vocabulary.
    """
    with open_artifact(directory) as opened:
        return dict(opened.alignments)


def _alignments(directory: Path, side: ModelVocabulary, recorded: VocabularySpec) -> dict[str, VocabularyAlignment]:
    found = {}
    for path in sorted((directory / file_names.ALIGNMENTS).glob("[!.]*")):
        try:
            alignment = VocabularyAlignment.load(path)
            alignment.check(recorded, alignment.base)
            alignment.check_value_side(side)
        except AlignmentError as error:
            raise ArtifactError(f"'{path}': {error}") from error
        name = alignment.base.byte_fingerprint[:16]
        if path.name != f"{name}{file_names.SAFETENSORS}":
            raise ArtifactError(f"'{path}' is for the base vocabulary {name}; it must be named {name}.safetensors")
        found[name] = alignment
    return found


def tensor_table(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of a safetensors file, read from its header.

    Raises:
        ArtifactError: truncated or not a safetensors file.
    """
    with WeightFile(path) as file:
        return file.table


def checksums(directory: Path) -> dict[str, str]:
    """File name -> SHA-256 of the weight files in a network's directory, sorted by name."""
    return {path.name: sha256(path) for path in sorted(directory.glob(f"*{file_names.SAFETENSORS}"))}


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
    return parse_object(path.read_bytes(), path)
