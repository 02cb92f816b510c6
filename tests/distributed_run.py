"""Small training runs for test_distributed.py; `accelerate launch` starts it with their settings as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sharding_on_cpu
import torch
from datasets import Dataset
from tiny import byte_tokenizer, tiny_model

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments, build_network
from valueadapter.adapter.lora import build_lora_network

ROWS = [{"prompt": f"Q{i % 7}", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(32)]


def wrapper(network: str, *, tied: bool = False) -> ValueAdapterForCausalLM:
    """A base with an adapter to train: a network of its own, or the base with a LoRA less the base, behind a prefix."""
    torch.manual_seed(0)
    tokenizer, base = byte_tokenizer(), tiny_model("llama", seed=1, tied=tied)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    named: dict[str, Any] = {"base_model_name_or_path": "alice/base"}
    if network == "full":
        adapter = ValueAdapter.from_networks([build_network(base)], tokenizer, **named)
    else:
        lora = build_lora_network(base, rank=4, name="alice/base", revision="0" * 40)
        reading = {"base_prefix": "Q: A\n\n", "reads_prefix": [True, True]} if network == "lora behind a prefix" else {}
        adapter = ValueAdapter.from_networks([lora, base], tokenizer, coefficients=[1, -1], **named, **reading)
    model.add_adapter(adapter, "default", is_trainable=True)
    return model


def run(
    output_dir: str, *, network: str = "full", tied: bool = False, resume: str | None = None, **settings: Any
) -> None:
    """Trains, evaluates and saves in `<output_dir>/final`; what each process evaluated is beside it."""
    common: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "seed": 0, "report_to": [], "save_strategy": "no"}
    # with use_cpu accelerate passes over DeepSpeed
    common |= {"use_cpu": "ACCELERATE_USE_DEEPSPEED" not in os.environ, "disable_tqdm": True}
    model = wrapper(network, tied=tied)
    args = ValueTrainingArguments(output_dir=output_dir, **{**common, **settings})
    train, held_out = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:6])
    trainer = ValueTrainer(model, args, train_dataset=train, eval_dataset=held_out)
    trainer.train(resume_from_checkpoint=resume)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(f"{output_dir}/final")
    with patch.object(ValueAdapter, "push_to_hub", lambda own, *_, **__: own.save_pretrained(f"{output_dir}/pushed")):
        trainer.hub_model_id = "alice/adapter"
        trainer.push_to_hub()
    found = {"loss": loss, "from_hidden_states": trainer.hidden_state_loss is not None}
    Path(output_dir, f"said_{args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sharding_on_cpu.allow()
    for settings in json.loads(sys.argv[1]):
        run(**settings)
    torch.distributed.destroy_process_group()  # one that ends within the group may abort, which ends the other, too
