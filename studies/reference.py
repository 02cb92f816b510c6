"""Fine-tunes a base directly with LoRA on the same demonstrations; knows nothing of adapters.

What it reaches bounds the gain: the share that an adapter recovers is measured against it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments, set_seed

from studies.cell import Reference
from studies.scoring import behind, measured, total_bits
from studies.store import Result
from studies.targets import TARGETS
from studies.tasks import Prefix, examples_of, load_task, prefix_records, prefix_text, training_records
from valueadapter import ValueAdapterForCausalLM
from valueadapter.adapter.causal_lm import in_its_words
from valueadapter.adapter.lora import with_lora
from valueadapter.compat import cache_in
from valueadapter.demonstrations.responses import Record
from valueadapter.demonstrations.tokenized import IGNORED, encode
from valueadapter.forward.prefix_tokens import prefix_ids

_TOGETHER = 4
"""Rows per forward pass at most: logits of more, over 262,144 columns, do not fit beside those of a second process."""


def fine_tuned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    how: Reference,
    prefix: str | None = None,
) -> Any:
    """The model with its LoRA merged in, trained on the responses alone.

    Args:
        model: the base; its weights are changed.
        tokenizer: its tokenizer.
        records: demonstrations.
        how: rank, learning rate, epochs, batch size, seed.
        prefix: text that it reads before each prompt, in training, too; gradients do not go back into it.
    """
    set_seed(how.seed)
    tuned = with_lora(model, how.lora_rank)
    before = [] if prefix is None else list(prefix_ids(prefix, tokenizer))
    rows = _rows(records, tokenizer, before)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=how.epochs,
            per_device_train_batch_size=(together := math.gcd(_TOGETHER, how.batch_size)),
            gradient_accumulation_steps=how.batch_size // together,
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
        trainer = _ResponsesOnly(before, model=tuned, args=arguments, train_dataset=rows, data_collator=_collated)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return tuned.merge_and_unload().eval()


def _rows(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, before: Sequence[int]
) -> list[dict[str, list[int]]]:
    """The records' tokens and labels as they stand behind a prefix."""
    rows = [encode(record, tokenizer, max_length=1024) for record in records]
    if list(before[:1]) != [tokenizer.bos_token_id]:
        return rows
    return [{key: value[1:] for key, value in row.items()} for row in rows]  # the prefix has begun the text


def _collated(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch padded at the right: padding between prefix and prompt would count in a sliding window."""
    width = max(len(row["input_ids"]) for row in rows)
    filled = {"input_ids": 0, "labels": IGNORED}
    batch = {
        key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows]) for key, fill in filled.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return batch | {"attention_mask": (torch.arange(width) < lengths[:, None]).long()}


class _ResponsesOnly(Trainer):
    """Reads a prefix before each row, and computes logits from the first response token of the batch on."""

    def __init__(self, before: list[int], **more: Any) -> None:
        super().__init__(**more)
        self.before = torch.tensor([before], dtype=torch.long)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels = inputs["labels"]
        keep = labels.shape[1] - int((labels != IGNORED).any(dim=0).int().argmax()) + 1
        read = {"input_ids": inputs["input_ids"], **self._behind(model, inputs)}
        logits = model(**read, logits_to_keep=keep).logits[:, :-1]
        wanted = labels[:, 1 - keep :]
        here = wanted != IGNORED
        total = cross_entropy(logits[here].float(), wanted[here], reduction="sum")
        return total / (here.sum() if num_items_in_batch is None else num_items_in_batch)

    def _behind(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Mask and cache of rows that stand behind the prefix, as the model reads that now."""
        mask, count = inputs["attention_mask"], self.before.shape[1]
        if not count:
            return {"attention_mask": mask, "use_cache": False}
        with torch.no_grad():
            cache = cache_in(model(input_ids=self.before, use_cache=True, logits_to_keep=1))
        cache.batch_repeat_interleave(len(mask))
        mask = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        return in_its_words(model, {"attention_mask": mask, "cache": cache, "use_cache": True})


def run_reference(how: Reference) -> Result:
    """Fine-tunes a target and scores it: `held_out` as `measured` says, `calibration` bits per byte with ends."""
    target, task = TARGETS[how.target], load_task(how.task)
    shown = Prefix(how.prefix_examples)
    examples, prefix = examples_of(how, task), prefix_text(prefix_records(task, shown))
    records = training_records(task, shown, how.num_demonstrations)
    tuned = fine_tuned(target.load(), target.tokenizer, records, how, prefix)
    model = ValueAdapterForCausalLM(tuned, tokenizer=target.tokenizer)
    with behind(model, prefix):
        calibration = total_bits(model, target.tokenizer, examples.calibration, examples.stop_strings)
        return {"held_out": measured(model, target.tokenizer, examples), "calibration": calibration}
