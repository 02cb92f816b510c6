"""Adapters on the Hub that go with a base, found by the tags of their model cards; reads none of them.

A card says by itself what its adapter was trained on (`base_model`, of which the Hub makes a tag), and has a tag of its
own for the vocabulary, so that adapters made on other models of the same vocabulary are found as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from valueadapter.artifact import card
from valueadapter.errors import IncompatibleBaseError
from valueadapter.hub.download import resolve_commit
from valueadapter.hub.failures import Asked, readable
from valueadapter.hub.names import MODEL, is_directory
from valueadapter.hub.small_files import SmallFiles, base_side

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Relation = Literal["trained on it", "same vocabulary", "another vocabulary", "vocabulary not told"]
"""How an adapter stands to the base; a card from before this version tells no vocabulary."""
_BASE, _VOCABULARY, _DATA = "base_model:", "vocab:", "dataset:"


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter on the Hub, as its card's tags tell of it."""

    name: str
    """Hub ID."""
    relation: Relation
    """How it stands to the base that was asked for."""
    trained_on: str | None
    """Hub ID of its training base; None where the card names none."""
    about: tuple[str, ...]
    """What it is for, as far as tags tell: datasets, and what its author wrote."""
    downloads: int | None
    """As the Hub counts them; None where it does not say."""


@dataclass(frozen=True)
class Findings:
    """What was looked for, where, and what was found."""

    found: tuple[FoundAdapter, ...]
    """Trained on the base first, then of its vocabulary, then the others; each by downloads."""
    tags: tuple[tuple[str, ...], ...]
    """The sets of tags that were looked for, one after the other; a model has to have all of one set."""
    endpoint: str
    """The Hub that was asked."""
    vocabulary_unknown: str | None
    """Why the base's vocabulary could not be read, so that only its name was looked for; None where it was."""


def find_adapters(
    base: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    limit: int = 20,
    others: bool = False,
) -> Findings:
    """Adapters that were trained on a base or have its vocabulary; downloads the base's small files and nothing else.

    Args:
        base: Hub ID, or a directory, of which only the vocabulary is looked for.
        revision: branch, tag or commit of the base.
        token: Hub token; private adapters are found by those who may read them.
        limit: how many to find at most.
        others: whether to go on, up to the limit, with adapters that need a map to another vocabulary.

    Raises:
        MissingFileError: the base is neither a directory nor the form of a Hub ID.
        IncompatibleBaseError: a directory without tokenizer or configuration, which then leads to nothing.
        huggingface_hub.errors: no such base and no adapter for one of this name, no Hub to ask, …
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    here = is_directory(base, of=MODEL)
    own, unknown = _vocabulary_tag(base, revision, token, here=here)
    why = None if unknown is None else str(unknown)
    wanted: list[tuple[str, ...]] = [] if here else [(card.TAG, f"{_BASE}{base}")]
    wanted += [] if own is None else [(card.TAG, own)]
    wanted += [(card.TAG,)] if others else []
    asked = Asked(base, revision, token)
    found: dict[str, FoundAdapter] = {}
    with readable(asked):
        for tags in wanted:
            for info in _listed(asked, tags, limit=limit + len(found)):
                if len(found) < limit and info.id not in found:
                    found[info.id] = _described(info, None if here else base, own)
    if not found and type(unknown) is RepositoryNotFoundError:
        raise unknown  # nobody knows this name
    order: Sequence[Relation] = ("trained on it", "same vocabulary", "another vocabulary", "vocabulary not told")
    ranked = sorted(found.values(), key=lambda one: order.index(one.relation))
    return Findings(tuple(ranked), tuple(wanted), asked.api.endpoint, why)


def _vocabulary_tag(
    base: str, revision: str | None, token: str | bool | None, *, here: bool
) -> tuple[str | None, Exception | None]:
    """The tag of the base's vocabulary, or why it is not known: then the base's name alone leads to adapters."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        commit = None if here else resolve_commit(base, revision, token=token)
        with readable(Asked(base, revision, token)):
            return card.vocabulary_tag(base_side(SmallFiles(base, commit, token=token)).spec), None
    except (GatedRepoError, RepositoryNotFoundError, IncompatibleBaseError) as error:
        if here:
            raise
        return None, error


def _listed(asked: Asked, tags: tuple[str, ...], *, limit: int) -> Iterator[ModelInfo]:
    yield from asked.api.list_models(filter=list(tags), sort="downloads", limit=limit)


def _described(info: ModelInfo, base: str | None, own: str | None) -> FoundAdapter:
    tags = list(info.tags or ())
    named = [tag.removeprefix(_BASE) for tag in tags if tag.startswith(_BASE) and tag.count(":") == 1]
    vocabularies = [tag for tag in tags if tag.startswith(_VOCABULARY)]
    relation: Relation = "another vocabulary" if vocabularies and own else "vocabulary not told"
    if own in vocabularies:
        relation = "same vocabulary"
    if base in named:
        relation = "trained on it"
    return FoundAdapter(info.id, relation, next(iter(named), None), tuple(_about(info, tags)), info.downloads)


def _about(info: ModelInfo, tags: list[str]) -> Iterator[str]:
    """What tags tell beyond what every adapter has."""
    yield from (tag.removeprefix(_DATA) for tag in tags if tag.startswith(_DATA))
    usual = {card.TAG, "valueadapter", "safetensors", "custom_generate", info.pipeline_tag, info.library_name}
    yield from (tag for tag in tags if ":" not in tag and tag not in usual)
