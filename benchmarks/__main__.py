"""`make bench`: what an adapter costs, beside the goal, and one JSON line per run in build/bench.jsonl."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import valueadapter
from benchmarks.harness import interval, rounds
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.testing.reference_models import smollm2_instruct

IDS = torch.randint(3, 49_000, (1, 32), generator=torch.Generator().manual_seed(0))
GREEDY = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
SMOLLM2_360M = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}


def main() -> None:
    """Measures, prints the table and keeps the line."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    measured = {**decoding(), **loading()}
    table = Table(title="Ratios: median (90 % interval)")
    for column in ("what", "measured", "goal"):
        table.add_column(column)
    for name, ((middle, low, high), goal) in measured.items():
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"at most {goal}")
    Console().print(table)
    line = {
        "versions": {m.__name__: m.__version__ for m in (valueadapter, transformers, torch)},
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "ratios": {name: values for name, (values, _) in measured.items()},
    }
    Path("build").mkdir(exist_ok=True)
    with Path("build/bench.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **line}) + "\n")


def decoding() -> dict[str, tuple[tuple[float, float, float], float]]:
    """P1: (t_wrapper - t_base - t_value) / t_base in `generate`, a base of 360M shape and a network of 135M."""
    folder = smollm2_instruct()
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = {**SMOLLM2_360M, "vocab_size": 49_152, "num_attention_heads": 15, "num_key_value_heads": 5}
    base = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).eval()
    wrapper = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
    wrapper.add_adapter(adapter, "default")
    wrapper.eval()
    variants = {name: lambda m=m: m.generate(IDS, **GREEDY) for name, m in _models(base, network, wrapper)}
    ratios = [(r["wrapper"] - r["base"] - r["value"]) / r["base"] for r in rounds(variants, number=7)]
    return {"P1 decode overhead / base": (interval(ratios), 0.02)}


def _models(base, network, wrapper):  # type: ignore[no-untyped-def]  # three models with their names
    return [("base", base), ("value", network), ("wrapper", wrapper)]


def loading() -> dict[str, tuple[tuple[float, float, float], float]]:
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


if __name__ == "__main__":
    main()
