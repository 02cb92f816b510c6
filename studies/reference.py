"""Fine-tunes a base directly with LoRA on the same demonstrations; knows nothing of adapters.

What it reaches bounds the gain: the share that an adapter recovers is measured against it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments, set_seed

from studies.cell import Reference
from studies.scoring import Examples, curve_alone
from studies.states import States, Tokens, compute_hidden, encoded
from studies.store import Result
from studies.targets import TARGETS
from studies.tasks import Prefix, Record, load_task, training_records
from valueadapter.adapter.lora import with_lora
from valueadapter.demonstrations.tokenized import Collator, tokenize


def fine_tuned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], how: Reference
) -> Any:
    """The model with its LoRA merged in, trained on the responses alone.

    Args:
        model: the base; its weights are changed.
        tokenizer: its tokenizer.
        records: demonstrations.
        how: rank, learning rate, epochs, batch size, seed.
    """
    set_seed(how.seed)
    tuned = with_lora(model, how.lora_rank)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=how.epochs,
            per_device_train_batch_size=how.batch_size,
            learning_rate=how.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            seed=how.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        data = tokenize(list(records), tokenizer, max_length=1024)
        trainer = _ResponsesOnly(model=tuned, args=arguments, train_dataset=data, data_collator=Collator(0))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return tuned.merge_and_unload().eval()


class _ResponsesOnly(Trainer):
    """Computes logits from the first response token of the batch on."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"]
        keep = labels.shape[1] - int((labels != -100).any(dim=0).int().argmax()) + 1
        cut = {**inputs, "labels": labels[:, -keep:], "logits_to_keep": keep, "use_cache": False}
        return super().compute_loss(model, cut, *args, **kwargs)


def run_reference(how: Reference) -> Result:
    """Fine-tunes a target and scores it: `held_out` as `Curve.at` says, `calibration` in bits per byte."""
    target, task = TARGETS[how.target], load_task(how.task)
    examples = Examples(task.held_out[: how.held_out], task.calibration[: how.calibration])
    records = training_records(task, Prefix(), how.num_demonstrations)
    model = fine_tuned(target.load(), target.tokenizer, records, how)
    tokens = Tokens.of(encoded(examples.records, target.tokenizer), target.tokenizer)
    hidden = compute_hidden(model, target.tokenizer, examples.records, None)
    curve = curve_alone(States(tokens, hidden), model.get_output_embeddings(), examples)
    return {"held_out": curve.at(0.0), "calibration": round(curve.bits_per_byte(held_out=False)[0], 5)}
