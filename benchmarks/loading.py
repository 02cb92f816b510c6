"""What loading a base with an adapter costs beside loading as many plain models (P9)."""

from __future__ import annotations

import tempfile

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import Measured, interval, rounds
from testkit.reference_models import smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM


def loading() -> Measured:
    """P9: loading base + adapter / two plain AutoModel loads, of the same weights."""
    folder = smollm2_instruct()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as place:
        network = AutoModelForCausalLM.from_pretrained(folder)
        ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base").save_pretrained(place)

        def plain() -> object:
            tokens = AutoTokenizer.from_pretrained(folder)
            return tokens, AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)

        variants = {"plain": plain, "wrapper": lambda: ValueAdapterForCausalLM.from_pretrained(folder, place)}
        ratios = [r["wrapper"] / r["plain"] for r in rounds(variants, number=5)]
    return {"P9 loading / two plain loads and a tokenizer": (interval(ratios), 1.05)}


GROUPS = (loading,)
