"""The tables of docs/transfer.md on what models should count for: the default's choice, gates, hindsight."""

from __future__ import annotations

from collections.abc import Sequence

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
    """The triples of the grid whose worst regret is least; the recipe records the first for bases that nobody measured.

    What a weight of the end would make of it stands beside it: an end is weighed only where examples of a base say so.
    """
    specs, each = regrets(store)
    worst = each.max(axis=0, initial=0.0)
    columns = []
    for row in np.argsort(worst[:, 0])[:SHOWN] if specs else ():
        shown = [bits(float(value)) for value in each[:, row, 0]]
        where = _title(specs[int(each[:, row, 0].argmax())])
        with_end = [bits(float(value)) for value in worst[row, 1:]]
        columns.append([_triple(int(row)), bits(float(worst[row, 0])), where, *shown, *with_end])
    ends = [f"worst with an end of {end:g}" for end in ENDS[1:]]
    return _turned(["base, tuned, plain", "worst regret", "where", *map(_title, specs), *ends], columns)


def without_the_base(store: Store) -> str:
    """What the choice is worth to a base that has no part in it: the triple that the other bases' regrets choose."""
    found = [(spec, result) for spec, result in experts_of(store) if spec.target != DEFAULT.donor]
    specs, each = regrets(store)
    chosen = int(each[:, :, 0].max(axis=0, initial=0.0).argmin()) if specs else 0
    rows = []
    for spec, result in found:
        others = [place for place, other in enumerate(specs) if other.target != spec.target]
        row = int(each[others, :, 0].max(axis=0, initial=0.0).argmin())
        shown = [bits(result["triples"][one]) for one in (chosen, row)]
        rows.append([_title(spec), *map(str, result["examples"]), _triple(chosen), shown[0], _triple(row), shown[1]])
    head = ["task and base", "examples to choose by", "held out", "default", "bits per byte", "chosen without the base"]
    return table([*head, "bits per byte"], rows)


def _triple(row: int) -> str:
    base, tuned, plain = GRID[row]
    return f"{base:g} {tuned:+g} {-plain:+g}"


def hindsight(store: Store) -> str:
    """Held-out bits per byte under weights that are fixed, chosen by a gate, or the best by hindsight."""
    found: list[tuple[Experts, Result]] = experts_of(store)
    ways = list(dict.fromkeys(way for _, result in found for way in result["held_out"]))
    columns = [[way, *(bits(result["held_out"][way]) for _, result in found)] for way in ways]
    return _turned(["task and base", *(_title(spec) for spec, _ in found)], columns)


def stacks(store: Store) -> str:
    """Two adapters on one base: each alone, both together, and both against the better one alone, task by task."""
    rows = []
    for spec, found in stacks_of(store):
        for task in spec.tasks:
            arms = {name: measured[task] for name, measured in found["arms"].items()}
            better = min(spec.tasks, key=lambda name: float(arms[name][TOTAL]))
            sizes = found["sizes"][task]
            against = difference(arms[TOGETHER], arms[better], sizes)
            shown = [bits(arms[name][TOTAL]) for name in (NONE, *spec.tasks, TOGETHER)]
            rows.append([TARGETS[spec.target].title, task, *shown, shown_difference(against)])
    head = ["base", "questions of", "no adapter", *Stack().tasks, "both", "both against the better one alone"]
    return table(head, rows)


def _turned(names: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    """A table with a column for each of a few things and a row for each of many, which a page has room for."""
    if not columns:
        return table(names, ())
    head, *rows = zip(names, *columns, strict=True)
    return table(head, rows)


def _title(spec: Experts) -> str:
    how = "" if spec.prefix_use == DEFAULT.prefix_use else f" (prefix use {spec.prefix_use})"
    return f"{spec.task}, {TARGETS[spec.target].title}{how}"
