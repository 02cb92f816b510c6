"""Fills docs/transfer.md between its markers from the finished cells; what is written by hand around them stays.

A block begins with `<!-- study: NAME -->` and ends with `<!-- /study -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from studies import tables, weight_tables
from studies.plan import QUESTIONS
from studies.plots import plot
from studies.store import Store
from valueadapter.errors import ConfigError

PAGE, PLOT = "transfer.md", "transfer.svg"
_BLOCK = re.compile(r"(<!-- study: (?P<name>[a-z_]+) -->\n).*?(<!-- /study -->)", re.DOTALL)


def write_report(store: Store, docs: Path) -> list[Path]:
    """Writes the page, and the plot where there is something to draw.

    Args:
        store: the finished cells.
        docs: the folder that holds the page.

    Returns:
        What was written.

    Raises:
        ConfigError: the page has a block that nobody fills, or a table has no block.
    """
    page = docs / PAGE
    drawn = find_spec("matplotlib") is not None and plot(store, docs / PLOT)
    blocks = {name: make(store) for name, make in makers().items()}
    store.publish()
    blocks["plot"] = f"![Bits per byte of each arm, base by base]({PLOT})\n" if (docs / PLOT).exists() else ""
    page.write_text(filled(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    return [page, *([docs / PLOT] if drawn else [])]


def makers() -> dict[str, Callable[[Store], str]]:
    """Block -> what makes it."""
    named: dict[str, Callable[[Store], str]] = {
        "effort": effort,
        "ends": tables.ends,
        "goals": tables.goals,
        "judge": tables.judge,
        "scales": tables.scales,
        "spread": tables.seeds_spread,
        "stopping": tables.stopping,
        "text": tables.text,
        "tokens": tables.tokens,
        "tuned": tables.tuned,
        "versus": tables.versus,
        "weights": weight_tables.default_weights,
        "hindsight": weight_tables.hindsight,
        "without": weight_tables.without_the_base,
        "stacks": weight_tables.stacks,
    }
    own = {"tasks": tables.tasks, "readers": tables.readers}
    for asked in QUESTIONS:
        named[asked.name] = own.get(asked.name) or _question(asked.name)
    return named


def _question(name: str) -> Callable[[Store], str]:
    asked = next(one for one in QUESTIONS if one.name == name)
    return lambda store: tables.question(store, asked)


def effort(store: Store) -> str:
    """How many cells are behind the page, and what they took."""
    done = store.all().values()
    hours = sum(float(one["seconds"]) for one in done) / 3600
    return f"{len(done)} cells are finished; they took {hours:.1f} hours.\n"


def filled(text: str, blocks: dict[str, str]) -> str:
    """The page with each block's content replaced.

    Raises:
        ConfigError: a block of the page is unknown, or one is missing in it.
    """
    there = {match["name"] for match in _BLOCK.finditer(text)}
    if odd := sorted(there ^ set(blocks)):
        raise ConfigError(f"blocks of {PAGE} and tables of the study differ in {', '.join(odd)}; every table has one")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match['name']]}\n{match[3]}", text)
