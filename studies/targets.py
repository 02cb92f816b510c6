"""The bases of the study, by name: where they come from and how they are related; loads none of them by itself."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from testkit.packages import sha256_of
from testkit.reference_models import MARKER
from valueadapter.adapter.tokenizer_loading import side_of
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary


@dataclass(frozen=True)
class Target:
    """A base model."""

    name: str
    """The name in cells and tables."""
    title: str
    """What a reader is told."""
    folder_of: Callable[[], Path]
    """Makes or finds the folder."""

    @functools.cached_property
    def folder(self) -> Path:
        """Its transformers folder."""
        return self.folder_of()

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return AutoTokenizer.from_pretrained(self.folder)

    @functools.cached_property
    def head(self) -> Any:
        """Its output head, kept for the whole run; the body is not."""
        return self.load().get_output_embeddings()

    @functools.cached_property
    def side(self) -> ModelVocabulary:
        """Its vocabulary."""
        return side_of(self.tokenizer, int(self.head.weight.shape[0]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of what it was made from, or else of its weights."""
        marker = self.folder / MARKER
        files = [marker] if marker.exists() else sorted(self.folder.glob("*.safetensors"))
        return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()

    def load(self) -> PreTrainedModel:
        """The model, frozen."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.folder).eval().requires_grad_(False)
        self.__dict__.setdefault("head", model.get_output_embeddings())
        return model


def _maker(module: str, function: str, part: int | None = None) -> Callable[[], Path]:
    """Finds a folder by a function of a module, imported when it is needed."""

    def make() -> Path:
        result = getattr(importlib.import_module(module), function)()
        return Path(result if part is None else result[part])

    return make


_REFERENCE, _STUDY = "testkit.reference_models", "studies.material.study_models"
TARGETS = {
    target.name: target
    for target in (
        Target(
            "smollm2_derived",
            "SmolLM2-135M without layers 14-17",
            _maker(_REFERENCE, "smollm2_derived"),
        ),
        Target("smollm2", "SmolLM2-135M-Instruct", _maker(_REFERENCE, "smollm2_instruct")),
        Target(
            "smollm2_continued",
            "SmolLM2 trained further on text",
            _maker(_STUDY, "smollm2_continued"),
        ),
        Target("gemma", "gemma-3-270m", _maker(_REFERENCE, "gemma_3_270m")),
        Target("byte", "a small model over bytes", _maker(_STUDY, "byte_model")),
        Target("scratch_small", "from scratch, small", _maker(_STUDY, "scratch_pair", 0)),
        Target("scratch_large", "from scratch, large", _maker(_STUDY, "scratch_pair", 1)),
    )
}

CORE = ("smollm2_derived", "smollm2", "gemma")
"""Every cell is scored on these."""
MORE = ("smollm2_continued", "byte")
"""And cells with `targets` of `all` on these."""
PAIR = ("scratch_small", "scratch_large")
"""Cells with a donor of these are scored on these."""


def targets_of(donor: str, which: str) -> list[Target]:
    """The bases that an adapter is scored on: its training base first."""
    if donor in PAIR:
        names: tuple[str, ...] = PAIR
    else:
        names = CORE if which == "core" else (*CORE, *MORE)
    return [TARGETS[donor], *(TARGETS[name] for name in names if name != donor)]


def relation(donor: str, target: str, other_bases: Sequence[str] = ()) -> str:
    """How a base relates to those trained on."""
    if target == donor:
        return "the training base"
    if target in other_bases:
        return "trained on as well"
    if target in ("gemma", "byte"):
        return "another vocabulary"
    if target == "smollm2_continued":
        return "another size, trained further" if donor == "smollm2_derived" else "trained further"
    return "another size" if target in PAIR else "another size (derived)"
