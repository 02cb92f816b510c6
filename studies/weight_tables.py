"""The tables of docs/transfer.md on what models should count for: the default's choice, gates, hindsight."""

from __future__ import annotations

import numpy as np

from studies.cell import Experts, Stack
from studies.experts import ENDS, GRID
from studies.plan import DEFAULT
from studies.results import TOTAL, difference, experts_of, stacks_of
from studies.stacks import NONE, TOGETHER
from studies.store import Result, Store
from studies.tables import bits, shown_difference, table
from studies.targets import TARGETS

SHOWN = 5


def regrets(store: Store) -> tuple[list[Experts], np.ndarray]:
    """For each task and base that is not the training base what each weights of the grid cost above the best.

    Returns:
        The tasks and bases, and (tasks and bases, `GRID`, `ENDS`) bits per byte of the calibration examples.
    """
    found = [(spec, result) for spec, result in experts_of(store) if spec.target != DEFAULT.donor]
    costs = np.array([result["grid"] for _, result in found]).reshape(len(found), len(GRID), len(ENDS))
    return [spec for spec, _ in found], costs - costs.min(axis=(1, 2), keepdims=True)


def default_weights(store: Store) -> str:
    """The weights of the grid whose worst regret is least, which the recipe records for bases that nobody measured."""
    specs, each = regrets(store)
    worst = each.max(axis=0) if specs else np.zeros((0, 0))
    rows = []
    for place in np.argsort(worst, axis=None)[:SHOWN]:
        row, column = np.unravel_index(place, worst.shape)
        where = int(each[:, row, column].argmax())
        base, tuned, plain = GRID[row]
        shown = [bits(float(value)) for value in each[:, row, column]]
        rows.append([f"{base:g} {tuned:+g} {-plain:+g}, end {ENDS[column]:g}", bits(float(worst[row, column]))])
        rows[-1] += [_title(specs[where]), *shown]
    return table(["base, tuned, plain", "worst regret", "where", *map(_title, specs)], rows)


def hindsight(store: Store) -> str:
    """Held-out bits per byte under weights that are fixed, chosen by a gate, or the best by hindsight."""
    found: list[tuple[Experts, Result]] = experts_of(store)
    ways = list(dict.fromkeys(way for _, result in found for way in result["held_out"]))
    rows = [[way, *(bits(result["held_out"][way]) for _, result in found)] for way in ways]
    return table(["weights", *(_title(spec) for spec, _ in found)], rows)


def stacks(store: Store) -> str:
    """Two adapters on one base: each alone, both together, and both against the better one alone, task by task."""
    rows = []
    for spec, found in stacks_of(store):
        for task in spec.tasks:
            arms = {name: measured[task] for name, measured in found["arms"].items()}
            better = min(spec.tasks, key=lambda name: float(arms[name][TOTAL]))  # used at once
            sizes = found["sizes"][task]
            against = difference(arms[TOGETHER], arms[better], sizes)
            shown = [bits(arms[name][TOTAL]) for name in (NONE, *spec.tasks, TOGETHER)]
            rows.append([TARGETS[spec.target].title, task, *shown, shown_difference(against)])
    head = ["base", "questions of", "no adapter", *Stack().tasks, "both", "both against the better one alone"]
    return table(head, rows)


def _title(spec: Experts) -> str:
    return f"{spec.task}, {TARGETS[spec.target].title}"
