"""Where an answer ends: the tokens and texts at which a model stops, and what its rows are filled up with behind.

A chat model's generation settings name the tokens that end a turn, its tokenizer the one that ends a sequence; many
models have both, and say either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from valueadapter.vocabulary.byte_view import byte_of_character


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


def end_tokens(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    stop_strings: Sequence[str],
    *,
    width: int,
    answers: Sequence[str] = (),
) -> list[int]:
    """The tokens by which an answer ends: stop tokens, and tokens that begin with one of some texts.

    Where a tokenizer splits such a text (a blank line in two line ends), the first of its tokens counts as well, if no
    right answer holds what that token says. What follows it cannot be told from one token, so an end may cost more than
    these tokens together say.

    Args:
        model: whatever has a `generation_config`.
        tokenizer: the model's.
        stop_strings: texts that end an answer.
        width: columns of the model's logits.
        answers: the right answers.
    """
    found = stop_tokens(model, tokenizer)
    for stop in stop_strings:
        found |= beginning_with(stop, tokenizer)
        first = _first_token_of(stop, tokenizer)
        if first is not None and not any(first[1] in answer.strip() for answer in answers):
            found.add(first[0])
    return sorted(token for token in found if token < width)


def beginning_with(text: str, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens whose text begins with a text; control tokens are no text."""
    byte = text.encode()[:1]
    starts = {text[0], *(letter for letter, value in byte_of_character().items() if bytes([value]) == byte)}
    likely = {token for name, token in tokenizer.get_vocab().items() if name[:1] in starts}
    likely -= set(tokenizer.all_special_ids)
    return {token for token in likely if _text_of(token, tokenizer).startswith(text)}


def _first_token_of(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str] | None:
    """The token with which a text begins between others, and what it says; None where it is the whole text or more."""
    encoded = tokenizer(f"A{text}A", add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return next(
        ((token, text[: end - 1]) for token, (begin, end) in pairs if begin == 1 and 1 < end <= len(text)), None
    )


def _text_of(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def until(text: str, stop_strings: Sequence[str]) -> str:
    """A text up to the first of the texts that end it; all of it where there is none."""
    return text[: min((place for one in stop_strings if (place := text.find(one)) >= 0), default=len(text))]


class StreamedAnswer:
    """An answer that comes piece by piece, up to where it ends; what may be the beginning of an end is held back.

    Args:
        stop_strings: texts that end it.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.stop_strings, self._held = tuple(stop_strings), ""
        self.is_over = False
        """Whether one of them has come."""

    def add(self, piece: str, *, last: bool = False) -> str:
        """What can be shown after a piece more; after the last one, all that is left."""
        text = "" if self.is_over else self._held + piece
        shown = until(text, self.stop_strings)
        if len(shown) < len(text):
            self.is_over = True
        elif not last:
            begun = (one[:size] for one in self.stop_strings for size in range(1, len(one)))
            shown = shown[: len(shown) - max((len(start) for start in begun if text.endswith(start)), default=0)]
        self._held = text[len(shown) :]
        return shown


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
