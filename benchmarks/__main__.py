"""`make bench`: what an adapter costs, beside the goal, and one JSON line per run in build/bench.jsonl.

`python -m benchmarks loss_head` measures one group only; `python -m benchmarks table` prints what was measured last.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

import valueadapter
from benchmarks import cached_training, compiled, decoding, drafting, loading, one_body, prefix, scoring, training
from benchmarks.harness import Measured, machine

LINES = Path("build/bench.jsonl")
GROUPS = {
    group.__name__: group
    for group in (
        *decoding.GROUPS,
        *loading.GROUPS,
        *one_body.GROUPS,
        *drafting.GROUPS,
        *prefix.GROUPS,
        *training.GROUPS,
        *cached_training.GROUPS,
        *scoring.GROUPS,
        *compiled.GROUPS,
    )
}


def main() -> None:
    """Measures group by group, keeping a line of each, and prints the table; or prints what was measured last."""
    asked = sys.argv[1:] or list(GROUPS)
    if asked == ["table"]:
        print_markdown()
        return
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if unknown := sorted({*asked} - {*GROUPS}):
        sys.exit(f"no group of measurements is called {', '.join(unknown)}; there are {', '.join(GROUPS)}, and table")
    measured: Measured = {}
    console = Console()
    for number, name in enumerate(asked, 1):
        console.print(f"\\[{number}/{len(asked)}] {name}: {(GROUPS[name].__doc__ or '').splitlines()[0]}")
        found = GROUPS[name]()
        keep(found)
        measured |= found
    table = Table(title="Ratios: median (90 % interval)")
    for column in ("what", "measured", "goal"):
        table.add_column(column)
    for name, ((middle, low, high), goal) in measured.items():
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"at most {goal}")
    console.print(table)


def keep(measured: Measured) -> None:
    """Adds a line to those that were kept."""
    versions = {module.__name__: module.__version__ for module in (valueadapter, transformers, torch)}
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "versions": versions, **machine()}
    line |= {"ratios": {name: values for name, (values, _) in measured.items()}}
    line |= {"goals": {name: goal for name, (_, goal) in measured.items()}}
    LINES.parent.mkdir(exist_ok=True)
    with LINES.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def print_markdown() -> None:
    """What was measured last of each row, as the table of docs/performance.md."""
    rows: dict[str, str] = {}
    for text in LINES.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for name, (middle, low, high) in line["ratios"].items():
            digits = 2 if middle >= 0.1 else 3
            spread = f" ({low:.{digits}f} to {high:.{digits}f})" if low < high else ""
            rows[name] = f"| {name} | {middle:.{digits}f}{spread} | {line['goals'][name]:g} |"
    order = sorted(rows, key=lambda name: (int(found[1]) if (found := re.match(r"P(\d+)", name)) else 99, name))
    print("| | measured | goal |", "| --- | --- | --- |", *(rows[name] for name in order), sep="\n")


if __name__ == "__main__":
    main()
