"""`make bench`: what an adapter costs, beside the goal, and one JSON line per run in build/bench.jsonl.

`python -m benchmarks loss_head` measures one group only.
"""

from __future__ import annotations

import json
import sys
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
from benchmarks import cached_training, one_body, prefix, scoring, training
from benchmarks.harness import Measured, interval, machine, rounds
from testkit.reference_models import gemma_3_270m, smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, build_network

IDS = torch.randint(3, 49_000, (1, 32), generator=torch.Generator().manual_seed(0))
TEXT = "The committee met again on Tuesday, but nobody could explain why the bridge had been closed; its engineers said"
GREEDY = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
SMOLLM2_360M = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}


def main() -> None:
    """Measures, prints the table and keeps the line."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    groups = {
        group.__name__: group
        for group in (
            decoding,
            other_vocabulary,
            loading,
            *one_body.GROUPS,
            *prefix.GROUPS,
            *training.GROUPS,
            *cached_training.GROUPS,
            *scoring.GROUPS,
        )
    }
    asked = sys.argv[1:] or list(groups)
    if unknown := sorted({*asked} - {*groups}):
        sys.exit(f"no group of measurements is called {', '.join(unknown)}; there are {', '.join(groups)}")
    measured = {name: value for group in asked for name, value in groups[group]().items()}
    table = Table(title="Ratios: median (90 % interval)")
    for column in ("what", "measured", "goal"):
        table.add_column(column)
    for name, ((middle, low, high), goal) in measured.items():
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"at most {goal}")
    Console().print(table)
    versions = {module.__name__: module.__version__ for module in (valueadapter, transformers, torch)}
    line = {"versions": versions, **machine(), "ratios": {name: values for name, (values, _) in measured.items()}}
    Path("build").mkdir(exist_ok=True)
    with Path("build/bench.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **line}) + "\n")


def decoding() -> Measured:
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


def other_vocabulary() -> Measured:
    """P11: projection / decode step. P12: (t_wrapper - t_base - F · t_value) / t_base, where F is the network's tokens
    per base token. gemma-3-270m with 12 layers of SmolLM2, reading and writing the same text."""
    folder, target = smollm2_instruct(), gemma_3_270m()
    network = build_network(folder, initialisation="pretrained", num_layers=12)
    tokenizer, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(target)
    base = AutoModelForCausalLM.from_pretrained(target)
    wrapper = ValueAdapterForCausalLM(base, tokenizer=theirs)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
    wrapper.add_adapter(adapter, "default", scale=1e-3)
    wrapper.eval()
    prompt = theirs(TEXT, return_tensors="pt")["input_ids"]
    out = wrapper.generate(prompt, **GREEDY, return_dict_in_generate=True)
    (reader,) = (part for name, part in out.cache.parts.items() if name != "base")
    read = len(reader.rows[0].text.ids) - len(tokenizer(TEXT)["input_ids"])
    steps = out.sequences.shape[1] - prompt.shape[1] - 1
    value_prompt = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    as_many = {**GREEDY, "max_new_tokens": read + 1, "min_new_tokens": read + 1}
    alignment = wrapper.attached.terms()[0].link.alignment
    logits = torch.randn(1, 1, alignment.value.logits_width)
    variants = {
        "base": lambda: base.generate(prompt, **GREEDY),
        "value": lambda: network.generate(value_prompt, **as_many),
        "wrapper": lambda: wrapper.generate(prompt, **GREEDY),
        "project": lambda: [alignment.project(logits) for _ in range(steps)],
    }
    done = rounds(variants, number=7)
    return {
        "P11 projection / decode step": (interval([r["project"] / r["wrapper"] for r in done]), 0.01),
        f"P12 other vocabulary, overhead / base (F = {read / steps:.2f})": (
            interval([(r["wrapper"] - r["base"] - r["value"]) / r["base"] for r in done]),
            0.05,
        ),
    }


def _models(base, network, wrapper):  # type: ignore[no-untyped-def]  # three models with their names
    return [("base", base), ("value", network), ("wrapper", wrapper)]


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


if __name__ == "__main__":
    main()
