"""Where an answer ends: the tokens at which a model stops, and what its rows are filled up with behind them.

A chat model's generation settings name the tokens that end a turn, its tokenizer the one that ends a sequence; many
models have both, and say either.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> set[int]:
    """The tokens that end an answer: those of the model's generation settings, and the tokenizer's end of sequence.

    Args:
        model: whatever has a `generation_config`.
        tokenizer: the model's; None where it is not known.
    """
    settings = getattr(model, "generation_config", None)
    found = as_set(getattr(settings, "eos_token_id", None))
    own = getattr(tokenizer, "eos_token_id", None)
    return found if own is None else found | {int(own)}


def as_set(tokens: Any) -> set[int]:
    """Stop tokens as `generate` takes them (one, several, a tensor, or None), as a set."""
    if tokens is None:
        return set()
    if hasattr(tokens, "tolist"):
        tokens = tokens.tolist()
    return {int(token) for token in (tokens if isinstance(tokens, (list, tuple, set)) else [tokens])}


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """What the shorter rows of a batch are filled up with: the padding token, else the end of sequence, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
