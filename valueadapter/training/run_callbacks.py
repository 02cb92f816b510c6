"""What a run does between the steps of its training: it says how far it is, and stops with a checkpoint at Ctrl-C.

Knows the Trainer's callbacks; nothing of what is trained.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from transformers import Trainer, TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(KeyboardInterrupt):
    """A run was interrupted, and what it had learned is in a checkpoint; the message says where and how to go on."""


class StopWhenAsked(TrainerCallback):
    """Ends a training after the step in which it is asked to, with a checkpoint.

    Attributes:
        asked: whether Ctrl-C, or the signal by which clusters stop jobs, has come.
    """

    def __init__(self, trainer: Trainer, say: Callable[[str], object]) -> None:
        self.trainer, self.say, self.asked = trainer, say, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With several processes all of them stop after the same step, whichever was asked."""
        if state.global_step < state.max_steps and self._anyone_asked():
            self.asked = control.should_save = control.should_training_stop = True

    def _anyone_asked(self) -> bool:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return self.asked
        if self.asked:
            accelerator.set_trigger()
        return bool(accelerator.check_trigger())

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.asked:  # the second time at once, as everywhere
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this step, with a checkpoint (once more: at once, without one)")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block signals ask for the end of the training; other threads than the main one get none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


TRAINING = "training"
"""What the steps of a training are called where their number is told."""


class Progress(TrainerCallback):
    """One line per logged step: how far, the loss, the time left; and after each step how many are done."""

    def __init__(
        self, say: Callable[[str], object], on_progress: Callable[[str, int, int], object] | None = None
    ) -> None:
        self.say, self.on_progress = say, on_progress
        self.begun = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun, self.first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_progress is not None:
            self.on_progress(TRAINING, state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        done = state.global_step - self.first
        left = (time.monotonic() - self.begun) / max(done, 1) * (state.max_steps - state.global_step)
        self.say(f"  step {state.global_step:>4}/{state.max_steps}  loss {logs['loss']:.3f}  about {left:,.0f} s left")
