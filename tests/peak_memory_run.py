"""Scores texts with a vocabulary of 262,144 tokens, and prints by how many MiB memory grew at most; run by a test."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, calibrate, trace, value_score
from valueadapter.evaluation.metrics import evaluate
from valueadapter.training.finetuning import FineTuning, finetuned

WIDTH = 262_144
LONG = [{"prompt": "ABC", "completion": "DEFG" * 25}]


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WIDTH, max_position_embeddings=1024, **shape, **special)).eval()


def wrapper(*, other: bool = False, connection: str = "residual") -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(llama(1), tokenizer=byte_tokenizer())
    tokenizer = tokenizer_of("coarse bytes") if other else byte_tokenizer()
    how = {"base_model_name_or_path": "a/b", "connection": connection}
    model.add_adapter(ValueAdapter.from_networks([llama(2)], tokenizer, **how), "default", scale=0.5)
    return model.eval()


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) // 1024


def grown(step: Callable[[], object]) -> int:
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    step()
    return resident("VmHWM") - before


def main() -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (10 * 2**30,) * 2)  # rather an error than a machine without memory
    plain, tokenizer = llama(1), byte_tokenizer()
    same, other, cascade = wrapper(), wrapper(other=True), wrapper(connection="cascade")

    def likelihoods(model: LlamaForCausalLM | ValueAdapterForCausalLM, count: int) -> None:
        evaluate(model, tokenizer, LONG * count, generate=False, value_norms=model is not plain)

    def tune(model: LlamaForCausalLM) -> None:
        with finetuned(model, tokenizer, LONG * 8, how=FineTuning(rank=1)):
            pass

    steps: dict[str, Callable[[], object]] = {
        "evaluate, base": lambda: likelihoods(plain, 8),
        "evaluate, adapter": lambda: likelihoods(same, 4),
        "evaluate, other vocabulary": lambda: likelihoods(other, 3),
        "evaluate, cascade": lambda: likelihoods(cascade, 3),
        "evaluate, generation": lambda: evaluate(cascade, tokenizer, [{"prompt": "ABC" * 40, "completion": "D"}] * 8),
        "calibrate": lambda: calibrate(same, LONG * 3),
        "judge": lambda: value_score(same, "ABC", ["DEFG" * 25] * 4),
        "reference": lambda: tune(plain),
        "trace": lambda: trace(same, "DEFG" * 50),
    }
    chosen = sys.argv[1:] or list(steps)
    sys.stdout.write(json.dumps({name: grown(steps[name]) for name in chosen}) + "\n")


if __name__ == "__main__":
    main()
