"""What `torch.compile` brings to base + adapter in `generate`, with a static cache; the first call compiles."""

from __future__ import annotations

import torch

from benchmarks.harness import Measured, interval, rounds
from benchmarks.one_body import GREEDY, PROMPT, with_default_adapter
from testkit.reference_models import smollm2_instruct

STATIC = {"cache_implementation": "static"}


def compiled() -> Measured:
    """The default adapter on SmolLM2: compiled in whole, or its base alone / not compiled; and the base by itself."""
    eager, whole, only_base = (with_default_adapter(str(smollm2_instruct())) for _ in range(3))
    whole.forward = torch.compile(whole.forward)
    only_base.base.forward = torch.compile(only_base.base.forward)
    ids = eager.base_tokenizer(PROMPT, return_tensors="pt")
    alone = {key: value for key, value in GREEDY.items() if key != "stop_strings"}
    variants = {
        "eager": lambda: eager.generate(**ids, **GREEDY),
        "eager base": lambda: eager.base.generate(**ids, **alone),
        "whole": lambda: whole.generate(**ids, **GREEDY, **STATIC),
        "base": lambda: only_base.generate(**ids, **GREEDY, **STATIC),
        "base by itself": lambda: only_base.base.generate(**ids, **alone, **STATIC),
    }
    done = rounds(variants, number=5)
    return {
        "compiled in whole / not compiled": (interval([r["whole"] / r["eager"] for r in done]), 1.0),
        "its base compiled / not compiled": (interval([r["base"] / r["eager"] for r in done]), 1.0),
        "SmolLM2 alone, compiled / not": (interval([r["base by itself"] / r["eager base"] for r in done]), 1.0),
    }


GROUPS = (compiled,)
