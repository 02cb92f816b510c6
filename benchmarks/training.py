"""P6 to P8: what a training step costs beside plain fine-tuning; `python -m benchmarks.training`.

Models of SmolLM2's shapes with random weights: a step's cost does not depend on their values. A step is forward,
backward and AdamW, in float32 on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.harness import interval, rounds
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments, build_network
from valueadapter.testing.reference_models import smollm2_instruct

SHAPES: dict[str, dict[str, Any]] = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3},
    "360M": {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5},
}
VARIANTS = ("cached", "uncached", "two models", "network alone", "base alone")
PAIRS = {
    "P6: cached step / fine-tuning the network alone": ("cached", "network alone", 1.08),
    "P7: cached step / fine-tuning the base": ("cached", "base alone", 0.40),
    "P8: uncached step / two models with whole logits": ("uncached", "two models", 0.93),
}


def main() -> None:
    """Times the steps side by side, and measures each one's peak memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30, help="of both models; SmolLM2 has 30 and 32")
    parser.add_argument("--time-only", action="store_true")
    options = parser.parse_args()
    steps = {name: step(name, options.rows, options.layers) for name in VARIANTS}
    measured = rounds(steps, number=options.rounds)
    line: dict[str, Any] = {"load": os.getloadavg()[0], "rows": options.rows, "layers": options.layers}
    for name, (mine, theirs, goal) in PAIRS.items():
        line[name] = interval([one[mine] / one[theirs] for one in measured])
        print(f"{name}: time {line[name][0]:.3f} ({line[name][1]:.3f} to {line[name][2]:.3f}), goal {goal}")
    if not options.time_only:
        del steps
        peaks = {name: peak(name, options.rows, options.layers) for name in VARIANTS}
        for name, (mine, theirs, _) in PAIRS.items():
            line[f"{name}, memory"] = peaks[mine] / peaks[theirs]
            print(f"{name}: peak memory {peaks[mine] / peaks[theirs]:.3f}")
    Path("build").mkdir(exist_ok=True)
    with Path("build/bench.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def step(variant: str, rows: int, layers: int) -> Callable[[], object]:
    """A training step of a variant, on `rows` demonstrations of 32 prompt and 96 response tokens."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 49_000, (rows, 128), generator=generator).tolist()
    data = [{"input_ids": row, "labels": [-100] * 32 + row[32:]} for row in ids]
    if variant in ("network alone", "base alone"):
        return _plain(_model("135M" if variant == "network alone" else "360M", layers), data)
    return _ours(variant, layers, data)


def _model(shape: str, layers: int) -> PreTrainedModel:
    config = LlamaConfig(**SHAPES[shape], num_hidden_layers=layers, vocab_size=49_152, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


def _plain(model: PreTrainedModel, data: list[dict[str, list[int]]]) -> Callable[[], object]:
    batch = {key: torch.tensor([record[key] for record in data]) for key in ("input_ids", "labels")}
    optimizer = torch.optim.AdamW(model.train().parameters())

    def run() -> None:
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _ours(variant: str, layers: int, data: list[dict[str, list[int]]]) -> Callable[[], object]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_instruct())
    base = _model("360M", layers)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    network = build_network(_model("135M", layers), initialisation="pretrained")
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"report_to": [], "use_cpu": True, "cache_base_dir": folder}
        args = ValueTrainingArguments(output_dir=folder, cache_base=variant == "cached", **settings)
        trainer = ValueTrainer(model, args, train_dataset=data)  # type: ignore[arg-type]  # records, as its store takes
    if variant == "two models":
        trainer._fused = None
    optimizer = torch.optim.AdamW(network.parameters())
    batch = trainer.data_collator(data)
    model.train()

    def run() -> None:
        loss = trainer.compute_loss(model, batch)
        torch.autograd.backward(loss)  # type: ignore[arg-type]  # without outputs it is the loss alone
        optimizer.step()
        optimizer.zero_grad()

    return run


def peak(variant: str, rows: int, layers: int) -> float:
    """Largest resident size, in bytes, of a process that takes two steps (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (variant, rows, layers))


def _peak(variant: str, rows: int, layers: int) -> float:
    run = step(variant, rows, layers)
    run()
    run()
    # not getrusage: its peak is inherited from the process that started this one
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024.0


if __name__ == "__main__":
    main()
