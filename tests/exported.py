"""Adapters, exported, beside the wrapper that they are compared with."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import byte_tokenizer, tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.artifact.standalone import export

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
PREFIX = "A:b\nC:d\n"
WITHOUT_THE_PACKAGE = """
import json, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        absent = name.split(".")[0] in ("valueadapter", *{absent!r})
        return None if absent else self.finder.find_spec(name, *more)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
sys.modules.pop("valueadapter", None)
"""
"""The beginning of a program in which this library cannot be imported; `format` it with other absent packages."""


def tiny_adapter(
    networks: Sequence[str] = ("llama",),
    *,
    coefficients: Sequence[float] | None = None,
    base_weight: float = 1.0,
    end_weight: float = 0.0,
    prefix: Any = None,
    reads_prefix: Sequence[bool] | None = None,
    width: int = 97,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ValueAdapter:
    """An adapter of tiny networks, at scale 0.7."""
    models = [tiny_model(kind, seed=2 + index, width=width) for index, kind in enumerate(networks)]
    return ValueAdapter.from_networks(
        models,
        tokenizer or byte_tokenizer(),
        base_model_name_or_path="alice/base",
        coefficients=coefficients,
        base_weight=base_weight,
        end_weight=end_weight,
        base_prefix=prefix,
        reads_prefix=reads_prefix,
        scale=0.7,
    )


ADAPTERS: dict[str, dict[str, Any]] = {
    "one network": {},
    "two networks": {"networks": ("gemma3", "gpt2"), "coefficients": (1.0, -0.5)},
    "weights": {"networks": ("gemma3", "gpt2"), "coefficients": (0.6, -0.3), "base_weight": 0.7, "end_weight": 1.5},
    "a prefix": {"networks": ("gemma3", "llama"), "coefficients": (1.0, -0.5), "prefix": PREFIX}
    | {"reads_prefix": (False, True)},
}


def exported(adapter: ValueAdapter, folder: Path, to: Any = "custom_generate") -> Path:
    """Saves and exports it; the directory."""
    adapter.save_pretrained(folder / "adapter")
    export(folder / "adapter", folder / "exported", to=to)
    return folder / "exported"


def wrapper(base: PreTrainedModel, tokenizer: Any, adapter: ValueAdapter) -> ValueAdapterForCausalLM:
    """The same base with the same adapter, by this library."""
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    model.add_adapter(adapter.copy(), "default")
    return model.eval()


def padded() -> dict[str, torch.Tensor]:
    """A batch whose second row is shorter, padded on the left."""
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1, :3], mask[1, :3] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def by_export(model: PreTrainedModel, folder: Path, tokenizer: Any, inputs: Any, **how: Any) -> Any:
    """What the exported `generate` gives, called as its users call it."""
    where = {"custom_generate": str(folder), "adapter": str(folder), "trust_remote_code": True}
    return model.generate(**inputs, **where, tokenizer=tokenizer, **{**GREEDY, **how})


def processor_of(folder: Path) -> Any:
    """The exported class of logits processors, of a package with a name of its own."""
    name = f"exported_{abs(hash(folder))}"
    place = folder / "logits_processor" / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, place, submodule_search_locations=[str(place.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.ValueLogitsProcessor
