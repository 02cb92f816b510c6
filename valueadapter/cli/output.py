"""How the command line shows things: facts as a table or as JSON, errors on one line; knows nothing of adapters.

Whatever is printed goes through here, as the text that it is: markup, emoji codes and links in names and texts of
others change nothing, and control characters are spelled out. A terminal gets tables; a pipe gets a line for each
value or row, tabs between its cells, and nothing is wrapped or cut.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from valueadapter.cli.bars import Bars
from valueadapter.evaluation.visible import visible, visible_json

_AS_IT_IS: dict[str, Any] = {"soft_wrap": True, "markup": False, "emoji": False, "highlight": False}
out = Console(**_AS_IT_IS)
err = Console(stderr=True, **_AS_IT_IS)
bars = Bars(err)
EVERY = 10.0
"""Seconds between two lines of progress where no bar can be drawn; of what takes long, more."""
AT_FIRST = 2.0
"""Seconds in silence after which a line speaks of what nobody can count."""


# -- results ----------------------------------------------------------------------------------------------------------
def facts(values: Mapping[str, object], *, as_json: bool) -> None:
    """Prints names and values, one a line, or the whole as JSON for programs."""
    if as_json:
        print_json(values)
        return
    rows = [(_named(name), _shown(value)) for name, value in values.items()]
    if not out.is_terminal:
        for name, value in rows:
            _print_row(*((name, line) for line in value.split("\n")))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(cell(name), cell(value, keep="\n"))
    show(table)


def show(table: Table) -> None:
    """Prints a table; in a pipe its title, its header and its rows."""
    bars.end()
    if out.is_terminal:
        out.print(table, soft_wrap=False)
        return
    if table.title:
        _print_row([_plain(table.title)])
    columns = [[_plain(column.header), *map(_plain, column.cells)] for column in table.columns]
    _print_row(*zip(*columns, strict=True))


def print_json(value: object) -> None:
    """Prints JSON, in which characters that steer a terminal, or cannot be printed, are escaped as JSON has it."""
    bars.end()
    plain = not (out.encoding or "").lower().startswith("utf")
    out.out(visible_json(json.dumps(value, ensure_ascii=plain, indent=2)), highlight=False)


def said(text: str) -> None:
    """Passes on what a model says: to a program as it is, to a person with control characters spelled out."""
    bars.end()
    terminal = sys.stdout.isatty()
    sys.stdout.write(visible(text, keep="\n\t") if terminal else text.encode("utf-8", "replace").decode())
    sys.stdout.flush()


def heading(text: str) -> None:
    """Says to a person what the next lines are about; a program gets nothing."""
    bars.end()
    if out.is_terminal:
        out.print(Text(visible(text, keep="\n\t"), "bold"))


def cell(text: str, style: str = "", *, keep: str = "") -> Text:
    """Text for a table's cell, heading or title."""
    return Text(visible(text, keep=keep), style)


def _print_row(*rows: Sequence[str]) -> None:
    bars.end()
    for row in rows:
        out.file.write("\t".join(map(visible, row)) + "\n")  # rich makes spaces of tabs


def _plain(text: Any) -> str:
    return text.plain if isinstance(text, Text) else str(text)


def _named(name: str) -> str:
    """What a value is called; others' names stay as they are."""
    return name.replace("_", " ") if name.isidentifier() else name


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{visible(str(key))}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(_shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else visible(str(value))


# -- what is said meanwhile -------------------------------------------------------------------------------------------
def error(message: str) -> None:
    """Prints an error as one line on standard error."""
    bars.end()
    _tell(Text("error:", "bold red").append(f" {visible(' '.join(message.split()))}", "not bold default"))


def say(line: object) -> None:
    """Prints a line on what is done meanwhile, on standard error."""
    _tell(visible(str(line), keep="\n"))


def note(line: str) -> None:
    """The same for what matters less."""
    _tell(Text(visible(line, keep="\n"), "dim"))


def _tell(line: str | Text) -> None:
    _clock.told()
    err.print(line)


def next_step(line: str) -> None:
    """Tells a person what comes next; a log gets nothing."""
    bars.end()
    if err.is_terminal:
        _tell(Text(f"next: {visible(line)}", "dim"))


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Within the block, tells of what is done on standard error: bars for a person, lines for a log.

    Yields:
        Called with what is done, how much of it is, and how much there is.
    """
    if not err.is_terminal:
        yield _lines()
        return
    try:
        yield bars.advance
    finally:
        bars.end()


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Within the block, tells of something that nobody can count: a bar that only runs, or a line now and then."""
    if err.is_terminal:
        bars.begin(what)
        try:
            yield
        finally:
            bars.forget(what)
        return
    over = threading.Event()
    clock = threading.Thread(target=_say_time, args=(what, over), daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()


class _Clock:
    """When a line was last said."""

    last = float("-inf")

    def told(self) -> None:
        self.last = time.monotonic()


_clock = _Clock()


def _say_time(what: str, over: threading.Event) -> None:
    """Speaks where nobody has for a while: for longer each time."""
    begun, wait, said = time.monotonic(), AT_FIRST, False
    while not over.wait(max(0.01, wait - (time.monotonic() - max(begun, _clock.last)))):
        now = time.monotonic()
        if now - max(begun, _clock.last) >= wait:
            say(f"{what}: {now - begun:.0f} s by now" if said else f"{what} …")
            wait, said = max(EVERY, now - begun), True


def _lines() -> Callable[[str, int, int], None]:
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def advance(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        begun.setdefault(what, now)
        if what not in told or done >= total or now - told[what] >= max(EVERY, (now - begun[what]) / 4):
            told[what] = now
            say(f"{what}: {done} of {total}")

    return advance
