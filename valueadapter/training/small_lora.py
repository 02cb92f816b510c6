"""One short training of a LoRA on a base, for a loss of one's own; writes nothing and knows no adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments


@dataclass(frozen=True)
class SmallTraining:
    """Its settings."""

    epochs: float
    """Passes over the demonstrations."""
    learning_rate: float
    """Peak of a cosine schedule."""
    batch_size: int
    """Demonstrations per step."""
    seed: int
    """Of order and initialisation."""


def train(make: Callable[[TrainingArguments], Trainer], settings: SmallTraining, *, on_cpu: bool) -> None:
    """Trains to the end, in silence and without checkpoints.

    Args:
        make: a trainer with these arguments.
        settings: what is chosen.
        on_cpu: where the model is.
    """
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"save_strategy": "no", "report_to": [], "disable_tqdm": True}
        trainer = make(
            TrainingArguments(
                output_dir=folder,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.05,
                per_device_train_batch_size=settings.batch_size,
                seed=settings.seed,
                remove_unused_columns=False,
                use_cpu=on_cpu,
                **common,
            )
        )
        silence(trainer)
        trainer.train()


def silence(trainer: Trainer) -> None:
    """Takes away what prints a line for each step."""
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
