"""Finished measurements, kept on disk until the run that they belong to is complete; a stopped run goes on with them.

What is kept is called by a digest of all that it depends on: weights, settings and tokenizer of every model as they
are loaded, records, how they are scored, versions. Whatever of it changes, it is measured anew. Measures nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from valueadapter.evaluation.score import Example, Score
from valueadapter.forward.stops import stop_tokens
from valueadapter.hub.own_cache import own_cache
from valueadapter.version import __version__

logger = logging.getLogger(__name__)
FORMAT = 1


def default_place() -> Path:
    """Where measurements are kept, beside the Hub's cache."""
    return own_cache("evaluations")


class Kept:
    """The finished measurements of a run.

    Args:
        place: the directory; made when something is kept.
        again: pass over what is there, and measure anew.

    Attributes:
        place: the directory.
        number: how many measurements of this run are kept now.
    """

    def __init__(self, place: str | Path, *, again: bool = False) -> None:
        self.place, self._again = Path(place), again
        self._paths: list[Path] = []

    @property
    def number(self) -> int:
        return len(self._paths)

    def find(self, key: str) -> Any:
        """What is kept under a key, as JSON values; None where nothing is, or nothing whole."""
        path = self._path(key)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if self._again or not isinstance(found, dict) or found.get("key") != key:
            return None
        self._paths.append(path)
        return found.get("value")

    def keep(self, key: str, value: Any) -> None:
        """Keeps JSON values under a key; a directory that cannot be written costs a warning, and no work."""
        path = self._path(key)
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.place, suffix=".part", encoding="utf-8", delete=False
            ) as file:
                json.dump({"key": key, "value": value}, file)
            os.replace(file.name, path)
        except OSError as error:
            logger.warning("what was measured cannot be kept in %s (%s); a stopped run begins anew", self.place, error)
            return
        self._paths.append(path)

    def forget(self) -> None:
        """Removes what this run has kept, once its results are where they belong."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    def _path(self, key: str) -> Path:
        return self.place / f"{key}.json"


def kept_score(kept: Kept | None, key: Callable[[], Mapping[str, Any]], measure: Callable[[], Score]) -> Score:
    """A score from an earlier run that was stopped, or measured now and kept.

    Args:
        kept: None measures.
        key: all that the score depends on; called only where something is kept.
        measure: makes it.
    """
    if kept is None:
        return measure()
    name = digest(key())
    if (found := kept.find(name)) is not None:
        return _score_of(found)
    score = measure()
    kept.keep(name, [dataclasses.asdict(example) for example in score.examples])
    return score


def _score_of(found: list[dict[str, Any]]) -> Score:
    return Score(
        tuple(
            Example(
                {metric: (float(total), int(count)) for metric, (total, count) in one["totals"].items()},
                tuple(one["predicted"]),
                one["answer"],
            )
            for one in found
        )
    )


def digest(parts: Mapping[str, Any]) -> str:
    """32 hex digits over JSON values, versions of the libraries that compute included."""
    versions = [FORMAT, __version__, torch.__version__, transformers.__version__]
    text = json.dumps([versions, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def state_of(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What a model says depends on, as it stands: weights by their bytes, settings, tokenizer, what acts."""
    generation = getattr(model, "generation_config", None)
    state = {
        "class": type(model).__name__,
        "config": model.config.to_dict(),
        "generation": generation.to_dict() if generation is not None else None,
        "stops": sorted(stop_tokens(model, tokenizer)),
        "weights": _weights(model),
        "device": str(model.device),
        "tokenizer": _tokenizer(tokenizer) if tokenizer is not None else None,
    }
    if not hasattr(model, "attached"):
        return state
    prefix = model.attached.acting_prefix()
    return {
        **state,
        "base": [type(model.base).__name__, model.base.config.to_dict()],
        "prefix": None if prefix is None else [list(prefix.ids), prefix.start],
        "adapters": [_term(term, model.adapters[term.name]) for term in model.attached.terms()],
    }


def _term(term: Any, adapter: Any) -> list[Any]:
    """An adapter that acts: how, and by which map."""
    maps = None
    if term.link is not None:
        one = term.link.alignment
        maps = hashlib.sha256(one.source.tobytes() + one.kind.tobytes() + str(list(one.stops)).encode()).hexdigest()
    prefixes = [None if one is None else [list(one.ids), one.start] for one in term.prefixes]
    networks = [[type(one).__name__, one.config.to_dict()] for one in term.networks]
    refinement = "chain" if term.refinement else None
    how = [term.scale, repr(term.weights), list(term.ends), term.connection, refinement, prefixes, maps]
    return [term.name, how, networks, _tokenizer(adapter.tokenizer)]


def _weights(model: Any) -> str:
    found = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tensor!r}\n".encode())
            continue
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.is_meta:  # offloaded by accelerate, whose bytes lie elsewhere: never found again
            found.update(os.urandom(32))
            continue
        held: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        found.update(held)
    return found.hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = [str(getattr(tokenizer, name, None)) for name in names]
    return [type(tokenizer).__name__, hashlib.sha256(text.encode()).hexdigest(), special, tokenizer.chat_template]
