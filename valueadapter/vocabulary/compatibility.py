"""Says how an adapter and a base will get on before any weight is read; knows tokenizers and small files, no models.

What two vocabularies share is measured on a sample text, pushed through the map and the reading that generation uses.
The tokenizers come from a directory or from single files on the Hub.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from valueadapter.errors import ConfigError, IncompatibleBaseError
from valueadapter.vocabulary.alignment import EXACT, NONE, PADDING, Relation, VocabularyAlignment
from valueadapter.vocabulary.bridge import connect, why_unreadable
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.retokenizer import Retokenizer, RetokenizingRules

logger = logging.getLogger(__name__)

SAMPLE = """\
The committee met again on Tuesday, but nobody could explain why the bridge had been closed; its engineers, who'd \
warned of cracks for years, weren't surprised. "We told them," said one, "and they didn't listen."

Natalia sold 48 clips in April and half as many in May: 48 / 2 = 24, so she sold 48 + 24 = 72 clips. At $1.25 each \
that makes 72 * 1.25 = $90.00, or 12.5% of 720.

def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 0:
        return (ordered[middle - 1] + ordered[middle]) / 2
    return ordered[middle]  # the one in between

昨日は雨が降っていましたが、今日は朝からよく晴れています。
"""
"""What the shares are measured on by default: prose, arithmetic, code, and a sentence in another script."""


@dataclass(frozen=True)
class Compatibility:
    """What to expect of an adapter on a base.

    Attributes:
        relation: `identity` (equal ids), `permuted` (the same vocabulary under other ids) or `static` (a map).
        coverage: the base's rows by what they get (`VocabularyAlignment.coverage`).
        text_coverage: share of the text's base tokens that have a value token of the same bytes.
        same_event_share: share of the text's base tokens at which base and network predict the same thing: the network
            took nothing back, and the first value token that it read there is the one that the map gives the token.
        value_tokens_per_base_token: what the network reads for each base token, tokens read again included.
        special_without_counterpart: control tokens of the base that get nothing from the adapter.
    """

    relation: Relation
    coverage: dict[str, int]
    text_coverage: float
    same_event_share: float
    value_tokens_per_base_token: float
    special_without_counterpart: tuple[str, ...]

    @property
    def advice(self) -> str:
        """What follows from it, in one sentence."""
        if self.relation == "identity":
            return "identity: ids pass through"
        if self.relation == "permuted":
            return "permuted: the same vocabulary under other ids, nothing is lost"
        if self.same_event_share >= 0.97:
            return "static map, close to exact"
        if self.same_event_share >= 0.7:
            return "static map; expect some loss, and compare with the base alone before you rely on it"
        if self.same_event_share >= 0.5:
            return "static map; expect much loss: text is split in two very different ways"
        return "static map; not advisable on such text: base and network seldom predict the same thing"

    def to_dict(self) -> dict[str, Any]:
        """Fields and advice, for JSON."""
        return {**dataclasses.asdict(self), "advice": self.advice}


def assess(
    value: ModelVocabulary, base: ModelVocabulary, *, alignment: VocabularyAlignment | None = None, text: str = SAMPLE
) -> Compatibility:
    """Measures how an adapter's vocabulary meets a base's; seconds for large ones, and no weights.

    Args:
        value: the adapter's vocabulary.
        base: the base's.
        alignment: the map between them; built by default.
        text: text of the kind that will be generated.

    Raises:
        AlignmentError: a tokenizer without byte view, or a map for other vocabularies.
        ConfigError: a text without tokens.
    """
    ids = base.encoder.encode(text, start=True)
    if not ids:
        raise ConfigError("the sample text has no tokens in the base's vocabulary; pass a longer text")
    if alignment is None:
        alignment = _same(value, base) or VocabularyAlignment.build(value, base)
    else:
        alignment.check(value.spec, base.spec)
    same_events, read = (
        _walk(ids, alignment, RetokenizingRules.between(value, base))
        if alignment.relation == "static"
        else (len(ids), len(ids))
    )
    special = base.vocabulary.special
    nothing = [token for token in np.flatnonzero(alignment.kind == NONE).tolist() if token in special]
    return Compatibility(
        relation=alignment.relation,
        coverage=alignment.coverage(),
        text_coverage=len([t for t in ids if t < base.width and alignment.kind[t] == EXACT]) / len(ids),
        same_event_share=same_events / len(ids),
        value_tokens_per_base_token=read / len(ids),
        special_without_counterpart=tuple(base.vocabulary.tokens[t].decode("utf-8", "replace") for t in nothing),
    )


def say_how_they_meet(
    value: ModelVocabulary,
    base: ModelVocabulary,
    name: str,
    prebuilt: Mapping[str, VocabularyAlignment] | None = None,
    *,
    connection: str = "residual",
) -> None:
    """Logs, before any weight is read, how well an adapter's vocabulary meets a base's; nothing if it is the same.

    Args:
        value: the adapter's vocabulary.
        base: the base's.
        name: the base's name.
        prebuilt: maps that the adapter brings, as `bridge.connect` takes them.
        connection: what the adapter's networks read.

    Raises:
        AlignmentError: a prebuilt map that does not fit.
        IncompatibleBaseError: the networks read the base's prediction, which is of another vocabulary.
    """
    if value.tokenizer_json == base.tokenizer_json:
        return
    if not (value.vocabulary.spells_text and base.vocabulary.spells_text):
        return  # an error, which attaching explains
    link = connect(value, base, prebuilt)
    if (reason := why_unreadable(connection, link)) is not None:
        raise IncompatibleBaseError(f"base model '{name}' and this adapter do not go together: {reason}")
    if link is not None:
        found = assess(value, base, alignment=link.alignment)
        logger.warning(
            "%s has another vocabulary than the adapter: %s; %.1f %% of a sample text's tokens are the same event "
            "for both, %.2f value tokens per base token (`valueadapter inspect … --base …` tells more)",
            name,
            found.advice,
            100 * found.same_event_share,
            found.value_tokens_per_base_token,
        )


def _same(value: ModelVocabulary, base: ModelVocabulary) -> VocabularyAlignment | None:
    """The map of a vocabulary to itself, which needs no byte view; padded widths may differ."""
    if value.tokenizer_json != base.tokenizer_json and value.spec != base.spec:
        return None
    kind = np.full(base.width, PADDING, dtype=np.uint8)
    kind[[token for token in base.vocabulary.tokens if token < base.width]] = NONE
    shared = [token for token in base.vocabulary.tokens if token < min(value.width, base.width)]
    kind[shared] = EXACT
    source = np.full(base.width, -1, dtype=np.int32)
    source[shared] = shared
    return VocabularyAlignment(source, kind, value=value.spec, base=base.spec, relation="identity", stops=())


def _walk(ids: list[int], alignment: VocabularyAlignment, reading: RetokenizingRules) -> tuple[int, int]:
    """Base tokens that are the same event for the network, and value tokens that it reads, over a text."""
    row = Retokenizer(reading)
    same = read = 0
    for token in ids:
        taken_back, new = row.push([token])
        read += len(new)
        mapped = alignment.source[token] if token < len(alignment.source) else -1
        same += int(taken_back == 0 and new[:1] == [mapped])
    return same, read
