"""Times and weighs variants side by side on a machine that others use too; knows nothing of what they compute."""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

Variants = Mapping[str, Callable[[], object]]
Interval = tuple[float, float, float]
Measured = dict[str, tuple[Interval, float]]
"""What was measured -> its median with interval, and the goal it should not exceed."""


class Memory(NamedTuple):
    """Resident bytes beyond those of Python and the imported modules."""

    prepared: int
    """Held when preparation is done."""
    peak: int
    """The most during the step."""


def rounds(variants: Variants, *, number: int) -> list[dict[str, float]]:
    """CPU seconds of each variant in each round; the order rotates, so that drift falls on all alike."""
    names = list(variants)
    for name in names:
        variants[name]()
    results = []
    for turn in range(number):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        seconds = {}
        for name in order:
            begun = time.process_time()
            variants[name]()
            seconds[name] = time.process_time() - begun
        results.append(seconds)
    return results


def ratios(variants: Variants, *, number: int) -> dict[str, Interval]:
    """Time of each variant in proportion to the first one: median of the ratios within a round."""
    done = rounds(variants, number=number)
    first, *others = variants
    return {name: interval([seconds[name] / seconds[first] for seconds in done]) for name in others}


def interval(values: list[float]) -> Interval:
    """Median and its 90 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), medians[50], medians[949]


def peak_memory(prepare: Callable[[str], Callable[[], object]], variant: str) -> Memory:
    """Memory of one variant's step, in a process of its own. Linux only.

    Args:
        prepare: a function of a module of its own, importable by name: of a variant's name, makes the step to run.
        variant: the name.
    """
    target = [prepare.__module__, prepare.__qualname__, variant]
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness", *target], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return Memory(*json.loads(out.splitlines()[-1]))


def machine() -> dict[str, object]:
    """What the numbers depend on besides the code: processor, load, Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    return {"python": platform.python_version(), "processor": processor, "load": os.getloadavg()[0]}


def _weigh(module: str, prepare: str, variant: str) -> None:
    make = getattr(importlib.import_module(module), prepare)
    imported = _resident("VmRSS")
    step = make(variant)
    prepared = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    step()
    print(json.dumps([prepared - imported, _resident("VmHWM") - imported]))


def _resident(key: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    _weigh(*sys.argv[1:])
