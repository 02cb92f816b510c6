"""How an adapter meets one base: the same vocabulary, or a map and a way to read; knows no logits and runs no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.recent import Recent
from valueadapter.vocabulary.retokenizer import RetokenizingRules

_BUILT = Recent[VocabularyAlignment](8)


@dataclass(frozen=True)
class VocabularyBridge:
    """What stands between an adapter and a base of another vocabulary.

    Attributes:
        alignment: carries the value logits to the base's tokens.
        reading: how the network reads the base's text; None where ids correspond one to one.
    """

    alignment: VocabularyAlignment
    reading: RetokenizingRules | None


def connect(
    value: ModelVocabulary, base: ModelVocabulary, prebuilt: Mapping[str, VocabularyAlignment] | None = None
) -> VocabularyBridge | None:
    """Finds how an adapter's vocabulary meets a base's.

    Args:
        value: the adapter's vocabulary.
        base: the base's.
        prebuilt: maps that the adapter brings, by `alignment_name`.

    Returns:
        None where both are the same (the logits may be padded to another width).

    Raises:
        AlignmentError: a tokenizer without byte view, or a prebuilt map that is not the one of these two tokenizers.
    """
    if value.tokenizer_json == base.tokenizer_json or value.spec == base.spec:
        return None
    alignment = built(value, base)
    brought = (prebuilt or {}).get(alignment_name(base))
    if brought is not None:
        brought.check_built(alignment)
    if alignment.relation == "identity":
        return None
    return VocabularyBridge(
        alignment, RetokenizingRules.between(value, base) if alignment.relation == "static" else None
    )


def why_unreadable(connection: str, link: VocabularyBridge | None) -> str | None:
    """Why networks of this connection cannot read this base, and what to do; None where they can."""
    if connection == "residual" or link is None or link.reading is None:
        return None
    return (
        f"the connection is '{connection}', so the network reads the base's probabilities of the next token. Of a base "
        "with another vocabulary it would need them over its own tokens and where its own tokens end, and the base has "
        "them for its own only. Use a base with the adapter's vocabulary, or an adapter of connection 'residual'"
    )


def alignment_name(base: ModelVocabulary) -> str:
    """What a map to this base is called in an artifact: the first 16 hex digits of the base's byte fingerprint."""
    return base.spec.byte_fingerprint[:16]


def built(value: ModelVocabulary, base: ModelVocabulary) -> VocabularyAlignment:
    """The map for a pair; the last ones are kept for as long as the process runs, by all that they are made of.

    Raises:
        AlignmentError: see `VocabularyAlignment.build`.
    """
    found = _BUILT.get((_digest(value), _digest(base)), lambda: VocabularyAlignment.build(value, base))
    return found.copy()  # of which nobody changes what is kept


def _digest(side: ModelVocabulary) -> str:
    text = f"{side.width} {side.eos_token!r}\n{side.tokenizer_json}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
