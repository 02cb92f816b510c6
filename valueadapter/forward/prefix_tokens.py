"""A base prefix as tokens of the model that reads it; knows neither models nor caches."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedTokenizerBase

from valueadapter.artifact.config import Prefix
from valueadapter.demonstrations.messages import render
from valueadapter.errors import ConfigError


def prefix_ids(prefix: Prefix, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens a base reads for a prefix: with the token that begins a text, where its tokenizer sets one.

    Raises:
        ConfigError: messages for a tokenizer without chat template, or nothing is left of the prefix in its tokens.
    """
    if isinstance(prefix, str):
        start = [cast(int, tokenizer.bos_token_id)] if begins_texts(tokenizer) else []
        return _not_empty((*start, *_before_more(prefix, tokenizer)), prefix)
    if not tokenizer.chat_template:
        raise ConfigError(
            "the base prefix is a chat, and the base's tokenizer has no chat template; give it as text: "
            "base_prefix='…', or None for no prefix"
        )
    turns = [{"role": turn.role, "content": turn.content} for turn in prefix]
    text = render(turns, tokenizer, generation=False)
    return _not_empty(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), prefix)


def _not_empty(ids: tuple[int, ...], prefix: Prefix) -> tuple[int, ...]:
    if not ids:
        raise ConfigError(
            f"the base prefix {prefix!r} has no tokens in the tokenizer of the model that reads it; give it another "
            "one: base_prefix='…', or None for no prefix"
        )
    return ids


def _before_more(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of text that more text follows, as it is with a prefix: many tokenizers join blank lines at an end."""
    found = tokenizer(f"{text}A", add_special_tokens=False, return_offsets_mapping=True)
    kept = [
        token for token, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True) if end <= len(text)
    ]
    following = found["offset_mapping"][len(kept) :]
    if following and all(begin >= len(text) for begin, _ in following):
        return kept
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # no token begins where more text does


def begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer sets its begin-of-sequence token before every text."""
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 0 and ids[0] == tokenizer.bos_token_id
