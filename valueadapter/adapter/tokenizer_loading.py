"""Tokenizers of transformers: their byte view, and the one of an opened artifact, which must be the recorded one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from valueadapter.artifact import file_names, tokenizer_settings, verification
from valueadapter.artifact.verification import OpenedArtifact
from valueadapter.errors import AlignmentError, ArtifactError, ConfigError
from valueadapter.vocabulary.byte_view import Vocabulary
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary, view_of


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The byte view of a transformers tokenizer.

    Raises:
        AlignmentError: a tokenizer without a fast (`tokenizers`) backend.
    """
    return view_of(_text_of(tokenizer))


def side_of(tokenizer: PreTrainedTokenizerBase, width: int) -> ModelVocabulary:
    """A tokenizer as a model with `width` columns of logits uses it.

    Raises:
        AlignmentError: a tokenizer without a fast (`tokenizers`) backend.
    """
    return ModelVocabulary(_text_of(tokenizer), width, tokenizer.eos_token)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that would come back from a directory as another one.

    Raises:
        AlignmentError: a tokenizer without a fast (`tokenizers`) backend.
        ConfigError: it names a control token that is none in its backend, which becomes one when it is loaded.
    """
    named = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    named |= {f"extra {number} _token": str(value) for number, value in enumerate(tokenizer.extra_special_tokens)}
    try:
        tokenizer_settings.check_settings(
            json.loads(_text_of(tokenizer)), {file_names.TOKENIZER_CONFIG: named}, place="the tokenizer"
        )
    except ArtifactError as error:
        raise ConfigError(
            f"this tokenizer comes back as another one when it is saved and loaded: {error}. Name a control token that "
            "it has, or add it: tokenizer.add_special_tokens({…})"
        ) from None


class LoadedTokenizer(NamedTuple):
    """The tokenizer of an artifact."""

    tokenizer: PreTrainedTokenizerBase
    side: ModelVocabulary
    """Its vocabulary, as the artifact's networks use it."""


def load_tokenizer(opened: OpenedArtifact) -> LoadedTokenizer:
    """The tokenizer of an opened artifact, made of the files that were checked.

    Raises:
        ArtifactError: transformers makes another tokenizer of them than the one that the adapter records.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in opened.tokenizer_files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            text = _text_of(tokenizer)
        except Exception as error:  # whatever a tokenizer's class makes of impossible settings
            raise ArtifactError(
                f"transformers can make no tokenizer of '{opened.directory / file_names.TOKENIZER}' "
                f"({type(error).__name__}: {error}). Download or save the adapter again"
            ) from error
    tokenizer.name_or_path = str(opened.directory)
    tokenizer.init_kwargs["name_or_path"] = str(opened.directory)
    side, mine = opened.side, side_of(tokenizer, opened.side.width)
    if _is_alike(text, side.tokenizer_json):
        vars(mine)["vocabulary"] = side.vocabulary  # which takes seconds to make
    elif differences := _differences(mine, side):
        raise ArtifactError(
            f"the settings in '{opened.directory / file_names.TOKENIZER_CONFIG}' make another tokenizer "
            f"({type(tokenizer).__name__}) than the adapter was saved with: "
            f"{differences}. Download or save the adapter again"
        )
    if tokenizer.eos_token != side.eos_token:
        raise ArtifactError(
            f"'{opened.directory}' makes a tokenizer that ends a text with {tokenizer.eos_token!r}; its files say "
            f"{side.eos_token!r}. Download or save the adapter again"
        )
    return LoadedTokenizer(tokenizer, mine)


def _is_alike(text: str, saved: str) -> bool:
    """Whether two texts are one tokenizer: as its library writes it, or value by value where it writes it otherwise."""
    return text == Tokenizer.from_str(saved).to_str() or json.loads(text) == json.loads(saved)


def _differences(mine: ModelVocabulary, recorded: ModelVocabulary) -> str:
    """What makes one vocabulary another one; empty where nothing does."""
    try:
        if mine.vocabulary == recorded.vocabulary:
            return ""
    except AlignmentError as error:
        return str(error)
    found = mine.vocabulary.differences(mine.width, recorded.vocabulary, recorded.width)
    return "; ".join(found) or "tokens beyond its logits, or how plain text is split"


def _text_of(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise AlignmentError(
            f"{type(tokenizer).__name__} has no fast backend, so its vocabulary has no byte view; "
            "save it with a tokenizer.json and load that"
        )
    return str(backend.to_str())


def forget_where_it_was_loaded_from(path: Path) -> None:
    """transformers records the circumstances of loading in what it saves; equal tokenizers must give equal bytes."""
    settings = verification.load_json(path)
    for key in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
