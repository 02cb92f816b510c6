"""What the demo's adapter costs on a base: files, memory, passes, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

TOKENS, ROUNDS = 10, 2
console = Console(soft_wrap=True, highlight=False)


def say_cost(model: Any, directory: Path, prompt: str) -> None:
    """Says what the only adapter of a model costs there.

    Args:
        model: base + adapter.
        directory: where the adapter's files lie.
        prompt: what both go on from.
    """
    (status,) = model.get_adapter_status()
    files = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    ids = model.base_tokenizer(prompt, return_tensors="pt").to(model.device)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    alone: list[float] = []
    adapted: list[float] = []
    model.generate(**ids, max_new_tokens=1)  # reads the prefix, whose keys and values are then kept
    for _ in range(ROUNDS):
        with model.disable_adapter():
            alone.append(_seconds(lambda: model.generate(**ids, **length)))
        adapted.append(_seconds(lambda: model.generate(**ids, **length, stop_strings=None)))
    ratios = sorted(with_it / without for with_it, without in zip(adapted, alone, strict=True))
    console.print(
        f"{model.base.name_or_path.split('/')[1]}: the adapter is {files / 1e6:.1f} MB of files; beside the base it "
        f"holds {status.held_bytes / 1e6:.0f} MB and runs {status.passes} more pass per token; {TOKENS} tokens take "
        f"{statistics.median(ratios):.1f} times the base's own time here ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        markup=False,
    )


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun
