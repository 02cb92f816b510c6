"""What a model card shows beside what config.json says: intervals, held-out prompts with their answers, a picture.

It lies in two files of its own, which no adapter computes with. Knows nothing of how it was measured or drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from valueadapter.artifact import file_names
from valueadapter.artifact.config import EvaluationRecord
from valueadapter.artifact.json_file import parse_object
from valueadapter.errors import ArtifactError, ConfigError
from valueadapter.vocabulary.strict_json import OMIT, from_json, to_json

VERSION = 1
MOST_PROMPTS = 3
"""Held-out prompts that are shown of one base and held-out set."""
LONGEST = 600
"""Characters that are shown of a prompt or an answer."""
LONGEST_DESCRIPTION = 300
"""Characters of a description."""
_LARGEST_PICTURE = 4 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Measure:
    """A figure and its interval."""

    value: float
    """Over all examples."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.value, self.low, self.high))):
            raise ConfigError(f"a figure and its interval must be finite; got {self.value}, {self.low}, {self.high}")


@dataclass(frozen=True)
class CardArm:
    """One of the things that were compared on a base."""

    arm: str
    """`base`, `fewshot`, `donor`, `adapted`, `calibrated` or `finetuned`."""
    label: str
    """What a person reads."""
    bits_per_byte: Measure | None = None
    """Of the responses; null where it was asked for and could not be measured."""
    exact_match: Measure | None = None
    """Share of exact answers, 0 to 1; null where not measured."""


@dataclass(frozen=True)
class CardPrompt:
    """A held-out prompt, and what was said to it."""

    prompt: str
    """The prompt; the turns of a chat as `role: text`."""
    expected: str
    """The held-out answer."""
    answers: dict[str, str]
    """Arm -> what it said."""

    def __post_init__(self) -> None:
        for text in (self.prompt, self.expected, *self.answers.values()):
            if len(text) > LONGEST:
                raise ConfigError(f"a text on the card has at most {LONGEST} characters; got {len(text):,}")


@dataclass(frozen=True)
class CardResult:
    """What was measured on one base with one held-out set."""

    base: str
    """Hub ID or name of the base, as in the record of config.json that this belongs to."""
    relation: str
    """How it relates to the training base, in words."""
    data: str
    """Hub ID or name of the held-out set."""
    num_examples: int
    """Held-out examples."""
    arms: tuple[CardArm, ...]
    """Those that were asked for."""
    prompts: tuple[CardPrompt, ...] = field(default=(), metadata=OMIT)
    """The first of the held-out prompts; left out where they are not to be shown."""

    def __post_init__(self) -> None:
        if len(self.prompts) > MOST_PROMPTS:
            raise ConfigError(f"at most {MOST_PROMPTS} prompts are shown of one base; got {len(self.prompts)}")


@dataclass(frozen=True)
class _File:
    version: int
    results: tuple[CardResult, ...]
    description: str | None = field(default=None, metadata=OMIT)


@dataclass(frozen=True)
class CardResults:
    """What the card of an adapter shows of its evaluation."""

    results: tuple[CardResult, ...] = ()
    """One per base and held-out set."""
    picture: bytes | None = None
    """A PNG of all of them."""
    description: str | None = None
    """What the adapter does, in one line; None where nobody said it."""

    def __post_init__(self) -> None:
        text = self.description
        if text is not None and (not text.strip() or len(text) > LONGEST_DESCRIPTION or not text.isprintable()):
            raise ConfigError(
                f"a description says in one line of at most {LONGEST_DESCRIPTION} characters what the adapter does; "
                f"got {text[:80]!a} ({len(text):,} characters)"
            )

    def true_to(self, records: Iterable[EvaluationRecord]) -> CardResults:
        """Without what belongs to no record of the configuration; without the picture, if that shows such a thing."""
        there = {(record.base, record.data) for record in records}
        kept = tuple(one for one in self.results if (one.base, one.data) in there)
        return self if kept == self.results else CardResults(kept, None, self.description)

    def files(self) -> dict[str, bytes]:
        """Name -> content of the two files, as far as there is something in them."""
        found: dict[str, bytes] = {}
        if self.results or self.description:
            whole = to_json(_File(VERSION, self.results, self.description))
            text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
            found[file_names.CARD_RESULTS] = f"{text}\n".encode()
        if self.results and self.picture is not None:
            found[file_names.CARD_PICTURE] = self.picture
        return found


def read_card_results(directory: Path) -> CardResults:
    """What lies in an adapter's directory; nothing where it has none, or one of a newer version.

    Raises:
        ArtifactError: a file is damaged, or is something else.
    """
    path, picture = directory / file_names.CARD_RESULTS, directory / file_names.CARD_PICTURE
    if not path.is_file():
        return CardResults()
    data = parse_object(path.read_bytes(), path)
    version = data.get("version")
    if type(version) is int and version > VERSION:
        return CardResults()
    try:
        found = from_json(_File, data, file_names.CARD_RESULTS)
        shown = _read_picture(picture) if picture.is_file() else None
        return CardResults(found.results, shown, found.description)
    except ConfigError as error:
        raise ArtifactError(f"'{path}': {error}. Remove the file, or evaluate the adapter again") from None


def _read_picture(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST_PICTURE + 1)
    if not data.startswith(_PNG) or len(data) > _LARGEST_PICTURE:
        raise ArtifactError(
            f"'{path}' is no PNG of at most {_LARGEST_PICTURE // 2**20} MiB; remove it, or evaluate the adapter again"
        )
    return data
