"""How the command line shows things: facts as a table or as JSON, errors on one line; knows nothing of adapters.

Whatever is printed goes through here, as the text that it is: markup, emoji codes and links in names and texts of
others change nothing, and control characters are spelled out.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from valueadapter.evaluation.visible import visible, visible_json

_AS_IT_IS: dict[str, Any] = {"soft_wrap": True, "markup": False, "emoji": False, "highlight": False}
out = Console(**_AS_IT_IS)
err = Console(stderr=True, **_AS_IT_IS)
EVERY = 10.0
"""Seconds between two lines of progress where no bar can be drawn."""


def facts(values: Mapping[str, object], *, as_json: bool) -> None:
    """Prints names and values, one a line, or the whole as JSON for programs."""
    if as_json:
        print_json(values)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in values.items():
        own = name.replace("_", " ") if name.isidentifier() else name  # others' names stay as they are
        table.add_row(cell(own), cell(_shown(value), keep="\n"))
    out.print(table)


def print_json(value: object) -> None:
    """Prints JSON, in which characters that steer a terminal, or cannot be printed, are escaped as JSON has it."""
    plain = not (out.encoding or "").lower().startswith("utf")
    out.out(visible_json(json.dumps(value, ensure_ascii=plain, indent=2)), highlight=False)


def error(message: str) -> None:
    """Prints an error as one line on standard error."""
    err.print(Text("error:", "bold red").append(f" {visible(' '.join(message.split()))}", "not bold default"))


def say(line: object) -> None:
    """Prints a line on what is done meanwhile, on standard error."""
    err.print(visible(str(line), keep="\n"))


def note(line: str) -> None:
    """The same for what matters less."""
    err.print(Text(visible(line, keep="\n"), "dim"))


def cell(text: str, style: str = "", *, keep: str = "") -> Text:
    """Text for a table's cell, heading or title."""
    return Text(visible(text, keep=keep), style)


def said(text: str) -> None:
    """Passes on what a model says: to a program as it is, to a person with control characters spelled out."""
    terminal = sys.stdout.isatty()
    sys.stdout.write(visible(text, keep="\n\t") if terminal else text.encode("utf-8", "replace").decode())
    sys.stdout.flush()


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Within the block, tells of what is done on standard error: bars for a person, lines for a log.

    Yields:
        Called with what is done, how much of it is, and how much there is.
    """
    if not err.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(visible(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _lines() -> Callable[[str, int, int], None]:
    told: dict[str, float] = {}

    def advance(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in told or done >= total or now - told[what] >= EVERY:
            told[what] = now
            say(f"{what}: {done} of {total}")

    return advance


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{visible(str(key))}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(_shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else visible(str(value))


def silence_libraries() -> None:
    """Switches off the progress bars of the libraries below, whose work the commands report on in words."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()
