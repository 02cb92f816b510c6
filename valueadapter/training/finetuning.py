"""Fine-tunes a base directly on demonstrations, with LoRA, as the reference that an adapter's gain is measured by.

Knows nothing of value adapters: this is what one would do who may change the base's weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from valueadapter.adapter.heads import Head, LazyLogits, head_of, last_hidden_state
from valueadapter.adapter.lora import with_lora
from valueadapter.artifact.config import Regularisation
from valueadapter.artifact.config.number import finite, hold, whole
from valueadapter.compat import require
from valueadapter.demonstrations.responses import Record
from valueadapter.demonstrations.tokenized import Collator, encode
from valueadapter.errors import ConfigError
from valueadapter.forward.bounded_logits import BUDGET
from valueadapter.training.batch_loss import predicting
from valueadapter.training.chunked_loss import summed_loss
from valueadapter.training.small_lora import SmallTraining, train


@dataclass(frozen=True)
class FineTuning:
    """How the reference is made; the same for every base (Hu et al. 2021, arXiv 2106.09685)."""

    epochs: float = 1.0
    """Passes over the demonstrations."""
    learning_rate: float = 5e-4
    """Peak of a cosine schedule."""
    rank: int = 16
    """Of the LoRA on all linear layers but the head; its alpha is twice that."""
    batch_size: int = 8
    """Demonstrations per step."""
    max_length: int = 1024
    """Tokens kept of a demonstration."""
    seed: int = 0
    """Of the order and the initialisation."""

    def __post_init__(self) -> None:
        hold(self, whole, "rank", "batch_size", "max_length", least=1)
        hold(self, whole, "seed")
        hold(self, finite, "epochs", "learning_rate")


@contextlib.contextmanager
def finetuned(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Record],
    *,
    how: FineTuning | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[PreTrainedModel]:
    """Within the block, the base fine-tuned on the responses of demonstrations; afterwards the base is as it was.

    Args:
        base: a causal language model without a PEFT adapter.
        tokenizer: its tokenizer.
        demonstrations: what to train on.
        how: the settings.
        on_progress: called after each step with how many are done and how many there are.

    Raises:
        ConfigError: the base has a PEFT adapter already.
    """
    if hasattr(base, "peft_config"):
        raise ConfigError("the base is a PEFT model already; fine-tune its plain model (merge_and_unload())")
    how = how or FineTuning()
    was_training, grads = base.training, [(p, p.requires_grad) for p in base.parameters()]
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        tuned = with_lora(base, how.rank)
        try:
            _train(tuned, tokenizer, demonstrations, how=how, on_progress=on_progress)
            yield tuned.eval()
        finally:
            tuned.unload()
            base.train(was_training)
            for parameter, trainable in grads:
                parameter.requires_grad_(trainable)


def _train(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Record],
    *,
    how: FineTuning,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    require("evaluation", "accelerate", "datasets")
    from datasets import Dataset

    rows = Dataset.from_list([encode(record, tokenizer, max_length=how.max_length) for record in demonstrations])

    def make(arguments: TrainingArguments) -> Trainer:
        trainer = _Tuner(model, arguments, train_dataset=rows, data_collator=Collator(tokenizer.pad_token_id or 0))
        if on_progress is not None:
            trainer.add_callback(_Steps(on_progress))
        return trainer

    settings = SmallTraining(how.epochs, how.learning_rate, how.batch_size, how.seed)
    train(make, settings, on_cpu=model.device.type == "cpu")


class _Tuner(Trainer):
    """The Trainer with its own loss, computed without the logits of a whole batch where the model's head allows it."""

    def __init__(self, model: Any, arguments: TrainingArguments, **more: Any) -> None:
        super().__init__(model, arguments, **more)
        self._head = head_of(model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self._head is None or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        wanted = predicting(labels)
        read = {key: value for key, value in inputs.items() if key != "labels"}
        hidden = last_hidden_state(model, **read, use_cache=False)[:, :-1][wanted]
        nothing = LazyLogits(hidden.new_zeros(len(hidden), 0), Head(self._head.weight[:, :0]))
        sums = summed_loss(
            nothing,
            LazyLogits(hidden, self._head),
            labels=labels[:, 1:][wanted],
            scale=1.0,
            penalty=Regularisation("none", 0.0),
            chunk=max(1, BUDGET // (16 * len(self._head.weight))),  # logits and gradient, with copies, in float32
        )
        return sums.total / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)


class _Steps(TrainerCallback):
    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self.on_progress = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_progress(state.global_step, state.max_steps)
