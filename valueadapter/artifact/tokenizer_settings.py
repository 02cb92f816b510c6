"""What the files beside tokenizer.json may say: nothing that changes its tokens or their ids. Needs no transformers.

transformers adds the tokens that `tokenizer_config.json` and two older files name, makes them control tokens, and
builds another splitter by some keys; then the tokenizer is not the one whose fingerprints the adapter records.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from valueadapter.artifact import file_names
from valueadapter.errors import ArtifactError

SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_OTHER_TOKENIZER = (
    "auto_map",
    "fast_tokenizer_files",
    "gguf_file",
    "init_inputs",
    "merges",
    "post_processor",
    "tokenizer_file",
    "tokenizer_object",
    "tokenizer_padding",
    "tokenizer_truncation",
    "tokenizer_type",
    "vocab",
    "vocab_file",
)
"""Keys that lead to code, or to a tokenizer from elsewhere."""
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def check_settings(tokenizer: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], *, place: str) -> None:
    """Refuses settings that name tokens which tokenizer.json does not have as they say.

    Args:
        tokenizer: tokenizer.json.
        files: name -> content of those of `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` that
            are there.
        place: the adapter's directory, for messages.

    Raises:
        ArtifactError: naming file, key and token.
    """
    entries = {str(entry.get("content")): entry for entry in tokenizer.get("added_tokens") or ()}
    for name, settings in files.items():
        if name == ADDED_TOKENS:
            for content, token in settings.items():
                _check_id(entries, content, token, where=f"'{place}/{name}'")
            continue
        if found := [key for key in _OTHER_TOKENIZER if settings.get(key) not in (None, False, [])]:
            raise ArtifactError(
                f"'{place}/{name}' asks for custom code or for another tokenizer ('{found[0]}'); remove the key"
            )
        for key, token in _named(settings):
            _check_control(entries, token, where=f"'{key}' in '{place}/{name}'")
        decoder = settings.get("added_tokens_decoder") or {}
        if not isinstance(decoder, Mapping):
            raise _other(f"'added_tokens_decoder' in '{place}/{name}'", "no object")
        for token, entry in decoder.items():
            where = f"'added_tokens_decoder' in '{place}/{name}'"
            if not isinstance(entry, Mapping):
                raise _other(where, f"{str(entry)[:60]!r} for token {token}")
            held = _check_id(entries, entry.get("content"), token, where=where)
            if wrong := [flag for flag in _FLAGS if flag in entry and entry[flag] != held.get(flag)]:
                raise _other(where, f"{wrong[0]!r} of {entry['content']!r} is {entry[wrong[0]]}")
        _check_splitting(tokenizer, settings, where=f"'{place}/{name}'")


def eos_token(files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The token that ends a text; older repositories name it in special_tokens_map.json only.

    Args:
        files: as `check_settings` takes them.
    """
    for name in (file_names.TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
        token = files.get(name, {}).get("eos_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str):
            return token
    return None


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Key and name of every token that transformers takes for a control token."""
    for key, value in settings.items():
        if key in _LISTS:
            found = value.values() if isinstance(value, Mapping) else value or ()
            yield from ((key, token) for token in ([found] if isinstance(found, str) else found))
        elif key.endswith("_token") and value is not None and not isinstance(value, bool):
            yield key, value


def _check_control(entries: Mapping[str, Mapping[str, Any]], token: Any, *, where: str) -> None:
    flags = token if isinstance(token, Mapping) else {}
    content = flags.get("content") if flags else token
    held = entries.get(content) if isinstance(content, str) else None
    if held is None or not held.get("special"):
        raise _other(where, f"{str(content)[:60]!r}, which is no control token there")
    if wrong := [flag for flag in _FLAGS if flag in flags and flag != "special" and flags[flag] != held.get(flag)]:
        raise _other(where, f"{wrong[0]!r} of {content!r} is {flags[wrong[0]]}")


def _check_id(entries: Mapping[str, Mapping[str, Any]], content: Any, token: Any, *, where: str) -> Mapping[str, Any]:
    held = entries.get(content) if isinstance(content, str) else None
    if held is None or str(held.get("id")) != str(token):
        raise _other(where, f"{str(content)[:60]!r} as token {str(token)[:20]}")
    return held


def _check_splitting(tokenizer: Mapping[str, Any], settings: Mapping[str, Any], *, where: str) -> None:
    if settings.get("add_prefix_space") and not _puts_space_first(tokenizer):
        raise _other(where, "'add_prefix_space': true")
    if settings.get("split_special_tokens"):
        raise _other(where, "'split_special_tokens': true, by which control tokens are read as text")


def _puts_space_first(tokenizer: Mapping[str, Any]) -> bool:
    steps = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return any(mark in steps for mark in ('"add_prefix_space": true', '"Prepend"', '"prepend_scheme": "'))


def _other(where: str, what: str) -> ArtifactError:
    return ArtifactError(
        f"{where} says {what}; {file_names.TOKENIZER} says otherwise, so it would be another tokenizer than the "
        "adapter was saved with. Download or save the adapter again"
    )
