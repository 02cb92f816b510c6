"""A small training run for test_distributed.py, started by `accelerate launch`: output directory and batch size."""

from __future__ import annotations

import sys

from datasets import Dataset
from tiny import byte_tokenizer, tiny_model

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments, build_network


def main() -> None:
    output_dir, batch_size = sys.argv[1], int(sys.argv[2])
    tokenizer, base = byte_tokenizer(), tiny_model("llama", seed=1)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([build_network(base)], tokenizer, base_model_name_or_path="alice/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    rows = [{"prompt": f"Q{i % 7}", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(32)]
    args = ValueTrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=batch_size,
        max_steps=4,
        learning_rate=1e-2,
        penalty="l2",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
    )
    trainer = ValueTrainer(model, args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model(f"{output_dir}/final")
    trainer.accelerator.wait_for_everyone()  # one that ends while the other is at work may abort, which ends both


if __name__ == "__main__":
    main()
