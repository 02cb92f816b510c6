"""Bars on a terminal: one set at a time, whoever asks for them and however deep; knows nothing of what is done."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from valueadapter.evaluation.visible import visible


class Bars:
    """What is drawn while something is done; nothing while there is no bar.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._lock = threading.RLock()  # downloads tell of themselves from threads of their own

    @property
    def drawn(self) -> bool:
        """Whether there are some."""
        return self._drawn is not None

    def begin(self, what: str, total: int | None = None) -> None:
        """A bar more; without a total one that only runs."""
        with self._lock:
            if self._drawn is None:
                times = (TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
                self._drawn = Progress(
                    TextColumn("{task.description}", markup=False), BarColumn(), *times, console=self._console
                )
                self._drawn.start()
            if what not in self._tasks:
                self._tasks[what] = self._drawn.add_task(visible(what), total=total)

    def advance(self, what: str, done: int, total: int | None) -> None:
        """How far something is."""
        with self._lock:
            self.begin(what, total)
            if self._drawn is not None:
                self._drawn.update(self._tasks[what], completed=done, total=total)

    def forget(self, what: str) -> None:
        """Takes a bar away, and with the last one what is drawn."""
        with self._lock:
            if self._drawn is not None and what in self._tasks:
                self._drawn.remove_task(self._tasks.pop(what))
                if not self._tasks:
                    self._drawn.live.transient = True  # or an empty line would stay
                    self.end()

    def end(self) -> None:
        """Leaves the bars as they are and draws no more: something else is to be shown."""
        with self._lock:
            if self._drawn is not None:
                self._drawn.stop()
            self._drawn, self._tasks = None, {}
