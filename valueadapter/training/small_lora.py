"""One short training of a LoRA on a base, for a loss of one's own; writes nothing and knows no adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments


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


OnProgress = Callable[[str, int, int], object]
"""Called with what is done, how much of it is, and how much there is."""


class _Steps(TrainerCallback):
    """Tells of each step."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.on_progress = on_progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_progress("steps", state.global_step, state.max_steps)


def train(
    make: Callable[[TrainingArguments], Trainer],
    settings: SmallTraining,
    *,
    on_cpu: bool,
    on_progress: OnProgress | None = None,
) -> None:
    """Trains to the end, in silence and without checkpoints.

    Args:
        make: a trainer with these arguments.
        settings: what is chosen.
        on_cpu: where the model is.
        on_progress: told of each step.
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
                dataloader_pin_memory=torch.accelerator.is_available(),  # of which torch warns where there is none
                **common,
            )
        )
        silence(trainer)
        if on_progress is not None:
            trainer.add_callback(_Steps(on_progress))
        trainer.train()


def silence(trainer: Trainer) -> None:
    """Takes away what prints a line for each step."""
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
