"""Evaluates once, started by a test alone or by `accelerate launch`: a file for the loss, and a batch size."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import Dataset
from tiny import byte_tokenizer, tiny_model
from torch import distributed

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments

ROWS = [{"prompt": f"Q{i}", "completion": "ABC"[i % 3] * (1 + (7 * i) % 11)} for i in range(11)]


def main() -> None:
    place, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    tokenizer = byte_tokenizer()
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([tiny_model("llama", seed=2)], tokenizer, base_model_name_or_path="alice/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    args = ValueTrainingArguments(
        output_dir=str(place.parent / "out"),
        per_device_eval_batch_size=batch_size,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Dataset.from_list(ROWS)
    found = ValueTrainer(model, args, train_dataset=data, eval_dataset=data).evaluate()
    if args.process_index == 0:
        place.write_text(repr(found["eval_loss"]), encoding="utf-8")
    if distributed.is_initialized():
        distributed.destroy_process_group()  # one that ends within the group may abort, which ends the other, too


if __name__ == "__main__":
    main()
