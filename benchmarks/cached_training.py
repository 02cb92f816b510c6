"""What a training step on cached hidden states of the base costs beside plain fine-tuning (P6 and P7).

Models of SmolLM2's shapes with random weights, which change no time. A step is forward, backward and AdamW, in float32
on one thread. Knows nothing of how ratios are taken or shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.harness import Measured, peak_memory, ratios
from testkit.reference_models import smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments

Step = Callable[[], object]
Records = list[dict[str, list[int]]]
ROWS, PROMPT, LENGTH = 4, 32, 128
NETWORK = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
BASE = {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5}


def cached_step() -> Measured:
    """P6, P7: a step of ValueTrainer with cache_base / plain fine-tuning of the network, or of the base."""
    against = {"P6": ("network", 1.08), "P7": ("base", 0.40)}
    measured: Measured = {}
    for name, (model, goal) in against.items():
        time = ratios({variant: training_step(variant) for variant in (model, "cached")}, number=5)["cached"]
        measured[f"{name} cached step, time / fine-tuning the {model}"] = (time, goal)
    cached, base = (peak_memory(training_step, variant).peak for variant in ("cached", "base"))
    measured["P7 cached step, memory / fine-tuning the base"] = ((cached / base,) * 3, 0.40)
    return measured


def training_step(variant: str) -> Step:
    """A step on demonstrations of 32 prompt and 96 response tokens, as batches of four."""
    torch.set_num_threads(1)
    ids = torch.randint(3, 49_000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    data = [{"input_ids": row, "labels": [-100] * PROMPT + row[PROMPT:]} for row in ids]
    if variant == "cached":
        return _cached(data)
    return _plain(_model(NETWORK, 30) if variant == "network" else _model(BASE, 32), data)


def _plain(model: PreTrainedModel, data: Records) -> Step:
    batch = {key: torch.tensor([record[key] for record in data]) for key in ("input_ids", "labels")}
    optimizer = torch.optim.AdamW(model.train().parameters())

    def step() -> None:
        torch.autograd.backward(model(**batch, use_cache=False).loss)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _cached(data: Records) -> Step:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_instruct())
    model = ValueAdapterForCausalLM(_model(BASE, 32), tokenizer=tokenizer)
    network = _model(NETWORK, 30)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"report_to": [], "use_cpu": True, "cache_base_dir": folder}
        args = ValueTrainingArguments(output_dir=folder, cache_base=True, release_base=True, **settings)
        trainer = ValueTrainer(model, args, train_dataset=data)
    optimizer = torch.optim.AdamW(network.parameters())
    batch = trainer.data_collator(data)
    model.train()

    def step() -> None:
        torch.autograd.backward(trainer.compute_loss(model, batch))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _model(shape: dict[str, int], layers: int) -> PreTrainedModel:
    config = LlamaConfig(**shape, num_hidden_layers=layers, vocab_size=49_152, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


GROUPS = (cached_step,)
