"""The demonstrations of the study and the examples that bases read before a prompt; knows no models.

Examples of a prefix come from the training split and are not trained on; nothing that is scored is ever among them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from studies.cell import Cell, PrefixPolicy, Reference
from studies.scoring import Examples
from testkit.demonstrations import jeopardy
from testkit.tasks import task
from valueadapter.demonstrations.responses import Record, separators
from valueadapter.errors import ConfigError

LONGEST = {"mbpp": 256, "gsm8k": 256}
"""Task -> tokens of an answer at most, where they are more than `Examples.longest`."""


@dataclass(frozen=True)
class Task:
    """Demonstrations in three parts that share none."""

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]
    calibration: tuple[Record, ...]


@dataclass(frozen=True)
class Prefix:
    """Which demonstrations a base reads before the prompt."""

    examples: int = 0
    policy: PrefixPolicy = "first"


@functools.lru_cache
def _of_packages(name: str) -> Task:
    split = jeopardy() if name == "jeopardy" else task(name)
    return Task(tuple(split.train), tuple(split.held_out), tuple(split.calibration))


SOURCES: dict[str, Callable[[], Task]] = {
    name: functools.partial(_of_packages, name) for name in ("jeopardy", "natural_questions", "mbpp", "gsm8k")
}
"""Name -> what gives the demonstrations."""


def load_task(name: str) -> Task:
    """The demonstrations of a name in SOURCES."""
    return SOURCES[name]()


def prefix_records(task: Task, prefix: Prefix) -> list[Record]:
    """The demonstrations of a prefix, drawn from the training split."""
    if prefix.policy == "short":
        return sorted(task.train, key=lambda record: len(record["prompt"] + record["completion"]))[: prefix.examples]
    start = prefix.examples if prefix.policy == "next" else 0
    return list(task.train[start : start + prefix.examples])


def prefix_text(records: Sequence[Record]) -> str | None:
    """The text that a base reads before the prompt; None without examples."""
    return "".join(f"{record['prompt']}{record['completion']}\n\n" for record in records) or None


def training_records(task: Task, prefix: Prefix, count: int) -> list[Record]:
    """The first `count` demonstrations of the training split that the prefix does not show."""
    shown = {record["prompt"] for record in prefix_records(task, prefix)}
    left = [record for record in task.train if record["prompt"] not in shown]
    if len(left) < count:
        raise ConfigError(
            f"the training split has {len(left)} demonstrations besides the prefix; got {count} asked for"
        )
    return left[:count]


def examples_of(spec: Cell | Reference, task: Task) -> Examples:
    """What a cell or reference is scored on."""
    return Examples(
        task.held_out[: spec.held_out],
        task.calibration[: spec.calibration],
        separators(task.train),
        spec.answered,
        LONGEST.get(spec.task, Examples.longest),
    )
