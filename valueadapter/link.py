"""How an adapter meets one base: the same vocabulary, or a map and a way to read; knows no logits and runs no model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from valueadapter.alignment import Side, VocabularyAlignment
from valueadapter.config import Connection
from valueadapter.context import Reading
from valueadapter.errors import AlignmentError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """What stands between an adapter and a base of another vocabulary.

    Attributes:
        alignment: carries the value logits to the base's tokens.
        reading: how the network reads the base's text; None where ids correspond one to one.
    """

    alignment: VocabularyAlignment
    reading: Reading | None


def connect(value: Side, base: Side, prebuilt: Mapping[str, VocabularyAlignment] | None = None) -> Link | None:
    """Finds how an adapter's vocabulary meets a base's.

    Args:
        value: the adapter's vocabulary.
        base: the base's.
        prebuilt: maps that the adapter brings, by `alignment_name`.

    Returns:
        None where both are the same (the logits may be padded to another width).

    Raises:
        AlignmentError: a tokenizer without byte view, or a prebuilt map that does not fit.
    """
    if value.tokenizer_json == base.tokenizer_json or value.spec == base.spec:
        return None
    alignment = (prebuilt or {}).get(alignment_name(base))
    if alignment is None:
        alignment = _cached(value, base)
    alignment.check(value.spec, base.spec)
    if alignment.relation == "identity":
        return None
    return Link(alignment, Reading.between(value, base) if alignment.relation == "static" else None)


def why_unreadable(connection: Connection, link: Link | None) -> str | None:
    """Why networks of this connection cannot read this base, and what to do; None where they can."""
    if connection == "residual" or link is None or link.reading is None:
        return None
    return (
        f"the connection is '{connection}', so the network reads the base's probabilities of the next token. Of a base "
        "with another vocabulary it would need them over its own tokens and where its own tokens end, and the base has "
        "them for its own only. Use a base with the adapter's vocabulary, or an adapter of connection 'residual'"
    )


def alignment_name(base: Side) -> str:
    """What a map to this base is called in an artifact: the first 16 hex digits of the base's byte fingerprint."""
    return base.spec.byte_fingerprint[:16]


def alignment_cache() -> Path:
    """Where maps that no adapter brought are kept, beside the Hub's cache."""
    return Path(constants.HF_HUB_CACHE).parent / "valueadapter" / "alignments"


def _cached(value: Side, base: Side) -> VocabularyAlignment:
    """The map for a pair, from the cache or built and put there."""
    names = [spec.byte_fingerprint[:16] + spec.behaviour_fingerprint[:8] for spec in (value.spec, base.spec)]
    path = alignment_cache() / f"{'-'.join(names)}.safetensors"
    if path.exists():
        try:
            alignment = VocabularyAlignment.load(path)
            alignment.check(value.spec, base.spec)
            return alignment
        except AlignmentError as error:
            logger.warning("the cached vocabulary alignment is not usable and is built anew: %s", error)
    alignment = VocabularyAlignment.build(value, base)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            alignment.save(Path(folder, path.name))
            os.replace(Path(folder, path.name), path)
    except OSError as error:
        logger.warning("the vocabulary alignment could not be cached and will be built again: %s", error)
    return alignment
