"""A vocabulary as a model uses it: tokenizer, width of the logits, and the token that ends a text; knows no model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from valueadapter.vocabulary.byte_view import Vocabulary
from valueadapter.vocabulary.recent import Recent
from valueadapter.vocabulary.spec import VocabularySpec
from valueadapter.vocabulary.text_encoder import TextEncoder

_VIEWS, _ENCODERS = Recent[Vocabulary](4), Recent[TextEncoder](4)
"""Of large tokenizers each takes seconds to make, and several adapters and loads have them in common."""


def view_of(tokenizer_json: str, state: dict[str, Any] | None = None) -> Vocabulary:
    """The byte view of a tokenizer; the last ones are kept for as long as the process runs.

    Args:
        tokenizer_json: the text of its `tokenizer.json`.
        state: the same parsed, where somebody has done so.

    Raises:
        AlignmentError: see `Vocabulary.from_tokenizer_json`.
    """
    return _VIEWS.get(tokenizer_json, lambda: Vocabulary.from_tokenizer_json(tokenizer_json, state))


@dataclasses.dataclass(frozen=True)
class ModelVocabulary:
    """A vocabulary as a model uses it.

    Attributes:
        tokenizer_json: the text of its `tokenizer.json`.
        width: columns of the model's logits.
        eos_token: the control token that ends a text, as the tokenizer's configuration names it.
    """

    tokenizer_json: str
    width: int
    eos_token: str | None = None

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The byte view of the tokenizer."""
        return view_of(self.tokenizer_json)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """How the tokenizer splits text."""
        return _ENCODERS.get(self.tokenizer_json, lambda: TextEncoder(self.tokenizer_json, self.vocabulary))

    @property
    def stops(self) -> tuple[int, ...]:
        """Control tokens with a row that end a text or a turn."""
        return tuple(token for token in self.vocabulary.stops(self.eos_token) if token < self.width)

    @property
    def eos(self) -> int | None:
        """The control token that ends a text; None if there is none."""
        named = (self.eos_token or "").encode()
        return next((token for token in self.stops if self.vocabulary.tokens[token] == named), None)

    @functools.cached_property
    def spec(self) -> VocabularySpec:
        """Width and fingerprints."""
        return self.vocabulary.spec(self.width)
