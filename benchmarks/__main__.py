"""`make bench`: what an adapter costs, beside the goal, and one JSON line per run in build/bench.jsonl.

`python -m benchmarks loss_head` measures one group only.
"""

from __future__ import annotations

import json
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
from benchmarks.harness import machine


def main() -> None:
    """Measures, prints the table and keeps the line."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    groups = {
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
    asked = sys.argv[1:] or list(groups)
    if unknown := sorted({*asked} - {*groups}):
        sys.exit(f"no group of measurements is called {', '.join(unknown)}; there are {', '.join(groups)}")
    measured = {name: value for group in asked for name, value in groups[group]().items()}
    table = Table(title="Ratios: median (90 % interval)")
    for column in ("what", "measured", "goal"):
        table.add_column(column)
    for name, ((middle, low, high), goal) in measured.items():
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"at most {goal}")
    Console().print(table)
    versions = {module.__name__: module.__version__ for module in (valueadapter, transformers, torch)}
    line = {"versions": versions, **machine(), "ratios": {name: values for name, (values, _) in measured.items()}}
    Path("build").mkdir(exist_ok=True)
    with Path("build/bench.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **line}) + "\n")


if __name__ == "__main__":
    main()
