"""The small files of a model or an adapter, in a directory or on the Hub, and the vocabulary they tell of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valueadapter.artifact import file_names
from valueadapter.artifact.config import MODEL_TYPE, ValueAdapterConfig
from valueadapter.compat import http
from valueadapter.errors import ConfigError, IncompatibleBaseError, MissingFileError
from valueadapter.hub.names import MODEL, is_directory
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary


# -- from names to vocabularies ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SmallFiles:
    """Where the small files of a model or an adapter are."""

    name: str
    """Directory or Hub ID."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; the default branch by default."""
    subfolder: str = ""
    """Directory inside it."""
    token: str | bool | None = None
    """Hub token; by default the stored one."""
    cache_dir: str | Path | None = None
    """The cache; by default the Hub client's."""
    local_files_only: bool = False
    """Take files from the cache, without asking the Hub."""

    def file(self, name: str) -> Path | None:
        """A local path of one file, downloaded if need be; None if there is none.

        Raises:
            MissingFileError: neither a directory nor the form of a Hub ID.
            huggingface_hub.errors: the repository or revision is not there, private, gated, not in the cache, …
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        if is_directory(self.name, of=MODEL):
            path = Path(self.name, self.subfolder, name)
            return path if path.is_file() else None
        try:
            found = hf_hub_download(
                self.name,
                name,
                subfolder=self.subfolder or None,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        except RemoteEntryNotFoundError:
            return None
        return Path(found)

    def settings(self, name: str) -> dict[str, Any]:
        """A JSON file, {} where there is none.

        Raises:
            ConfigError: it holds no JSON object.
            MissingFileError, huggingface_hub.errors: as `file`.
        """
        path = self.file(name)
        return {} if path is None else _json(path)

    def weight_bytes(self) -> int | None:
        """Size of the model's safetensors weights; None where it cannot be told."""
        inside = f"{self.subfolder}/model" if self.subfolder else "model"
        sizes = self._sizes()
        return sum(s for n, s in sizes.items() if n.startswith(inside) and n.endswith(file_names.SAFETENSORS)) or None

    def _sizes(self) -> dict[str, int]:
        """Path -> size; empty where the Hub cannot be asked, since a size is no reason to fail."""
        from huggingface_hub import HfApi

        if (root := Path(self.name)).is_dir():
            files = Path(root, self.subfolder).glob(f"*{file_names.SAFETENSORS}")
            return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
        if self.local_files_only:
            return {}
        try:
            info = HfApi(token=self.token).model_info(self.name, revision=self.revision, files_metadata=True)
        except (http().HTTPError, OSError):
            return {}
        return {file.rfilename: file.size or 0 for file in info.siblings or []}


def sides(adapter: SmallFiles, base: SmallFiles) -> tuple[ModelVocabulary, ModelVocabulary]:
    """The vocabularies of an adapter and of a base, from their small files only.

    Raises:
        MissingFileError, ConfigError: the adapter lacks its tokenizer or configuration.
        IncompatibleBaseError: the base has no tokenizer.json, or does not say how wide its logits are.
        huggingface_hub.errors: see `SmallFiles.file`.
    """
    return adapter_side(adapter), base_side(base)


def adapter_side(place: SmallFiles) -> ModelVocabulary:
    """The adapter's part of `sides`."""
    paths = {name: place.file(name) for name in (file_names.CONFIG, file_names.TOKENIZER)}
    if missing := [name for name, path in paths.items() if path is None]:
        raise MissingFileError(f"adapter '{place.name}' has no {missing[0]}; save or push it again")
    config, tokenizer = (path.read_text(encoding="utf-8") for path in paths.values() if path is not None)
    return ModelVocabulary(tokenizer, ValueAdapterConfig.from_json(config).vocabulary.logits_width, _eos_token(place))


def base_side(place: SmallFiles) -> ModelVocabulary:
    """The base's part of `sides`."""
    config = place.file(file_names.CONFIG)
    if config is None:
        raise IncompatibleBaseError(
            f"base model '{place.name}' has no {file_names.CONFIG}; name a causal language model"
        )
    width = _vocab_size(config, place)
    tokenizer = place.file(file_names.TOKENIZER)
    if tokenizer is None:
        raise IncompatibleBaseError(
            f"the tokenizer of base model '{place.name}' was not found: it has no {file_names.TOKENIZER}. Name a model "
            "that has one; Python users can pass tokenizer= to ValueAdapterForCausalLM.from_pretrained"
        )
    return ModelVocabulary(tokenizer.read_text(encoding="utf-8"), width, _eos_token(place))


def _vocab_size(path: Path, place: SmallFiles) -> int:
    """Columns of a model's logits as its config.json says, or as its model type has them by default."""
    config = _json(path)
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else {}).get("vocab_size", config.get("vocab_size"))
    if size is None and config.get("model_type") != MODEL_TYPE:
        size = _default_vocab_size(path.parent)
    if not isinstance(size, int) or size < 1:
        raise IncompatibleBaseError(
            f"base model '{place.name}': its {file_names.CONFIG} (model_type {config.get('model_type')!r}) has no "
            f"usable vocab_size (got {size!r}), so the width of its logits is unknown; name a causal language model"
        )
    return size


def _default_vocab_size(directory: Path) -> object:
    from transformers import AutoConfig  # seldom needed: some multimodal models leave the key out

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return getattr(config.get_text_config(decoder=True), "vocab_size", None)
    except (OSError, ValueError):
        return None


def _eos_token(place: SmallFiles) -> str | None:
    """The token that ends a text; older repositories name it in special_tokens_map.json only."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for name in (file_names.TOKENIZER_CONFIG, "special_tokens_map.json"):
        try:
            path = place.file(name)
        except LocalEntryNotFoundError:  # offline; whatever is required is there already
            continue
        token = _json(path).get("eos_token") if path is not None else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON ({error}); download or save it again") from None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a JSON object; got {type(data).__name__}")
    return data
