"""What loading a base with an adapter costs beside loading as many plain models (P9)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import Measured, interval, peak_memory, rounds
from testkit.reference_models import smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.artifact.verification import sha256

_PLACE = "VALUEADAPTER_BENCH_PLACE"
"""Where the adapter lies, for processes of their own."""
CACHED = f"models--bench--adapter/snapshots/{'0' * 40}"


def loading() -> Measured:
    """P9: loading base + adapter / two plain AutoModel loads and a tokenizer; and the same up to the first logits.

    From a directory every byte is hashed; from the Hub's cache it was, once, when it had been downloaded. Plain models
    are mapped, so that their weights are read when a text is: what loading costs somebody shows with the first logits.
    """
    with tempfile.TemporaryDirectory() as place:
        network = AutoModelForCausalLM.from_pretrained(smollm2_instruct())
        network.model.norm.weight.data *= 1.01  # another model than the base, which would be held once
        tokenizer = AutoTokenizer.from_pretrained(smollm2_instruct())
        adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
        for name in ("directory", CACHED):
            adapter.save_pretrained(Path(place, name))
        _as_cached(Path(place, CACHED))
        os.environ[_PLACE] = place
        names = ("plain", "directory", CACHED)
        done = rounds({name: load(name) for name in names}, number=7)
        first = rounds({name: speak(name) for name in names}, number=7)
        memory = {name: peak_memory(speak, name).peak for name in names}
    found: Measured = {}
    for name, title in (("directory", "a directory"), (CACHED, "the Hub's cache")):
        found[f"P9 loading from {title} / plain"] = interval([r[name] / r["plain"] for r in done]), 1.15
        found[f"P9 up to the first logits from {title} / plain"] = interval([r[name] / r["plain"] for r in first]), 1.15
        found[f"P9 memory then, from {title} / plain"] = (memory[name] / memory["plain"],) * 3, 1.05
    return found


def load(variant: str) -> Callable[[], list[Any]]:
    """Loads plain models, or base and adapter from a place that the environment names."""
    folder, place = smollm2_instruct(), os.environ[_PLACE]
    if variant != "plain":
        return lambda: [ValueAdapterForCausalLM.from_pretrained(folder, Path(place, variant))]

    def plain() -> list[Any]:
        AutoTokenizer.from_pretrained(folder)
        return [AutoModelForCausalLM.from_pretrained(folder) for _ in range(2)]

    return plain


def speak(variant: str) -> Callable[[], object]:
    """The same, and the logits of a few tokens."""
    loaded = load(variant)
    return lambda: [model(torch.arange(5, 13)[None]).logits for model in loaded()]


def _as_cached(directory: Path) -> None:
    """Has weights lie as the Hub's cache keeps them: under their checksum, with a link in the adapter's directory."""
    blobs = directory.parent.parent / "blobs"
    blobs.mkdir()
    for path in directory.rglob("*.safetensors"):
        blob = blobs / sha256(path)
        path.rename(blob)
        path.symlink_to(blob)


GROUPS = (loading,)
