"""Reads finished cells for the report: which arm gave what, and which reference bounds it; formats nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studies.cell import Cell, Reference, from_settings
from studies.store import Result, Store

KINDS = ("the training base", "another size", "another vocabulary")
"""What a column is about; a base further from the training base than its relation says stands in a table of its own."""
GAIN_DIGITS = 4


RECORDED_SCALES = {"lora": 0.25, "full": 1.0}


@dataclass(frozen=True)
class Row:
    """One adapter on one base."""

    cell: Cell
    target: str
    result: Result
    """The target's part of the cell's result."""
    donor: Result
    """The same of the training base."""
    donor_scale: float
    fine_tuned: Result | None
    """The best reference's `held_out`, or None where there is none."""

    @property
    def relation(self) -> str:
        return str(self.result["relation"])

    @property
    def refusal(self) -> str | None:
        """Why the adapter does not go with this base."""
        return self.result.get("refusal")

    @property
    def alone(self) -> float:
        """Bits per byte of the base alone."""
        return float(self.result["alone"]["bits_per_byte"])

    @property
    def fewshot(self) -> float:
        """Of the base with examples in its prompt."""
        return float(self.result["fewshot"]["bits_per_byte"])

    @property
    def small(self) -> float:
        """Of the small tuned model alone, at the scale calibrated on it."""
        return float(self.donor["scales"][f"{self.donor_scale:g}"]["bits_per_byte"])

    @property
    def recorded_scale(self) -> float:
        """What adapters of format version 1 recorded for bases that nobody measured."""
        return RECORDED_SCALES["full" if self.cell.lora_rank is None else "lora"]

    @property
    def own_scale(self) -> float:
        """Calibrated on this base."""
        return float(self.result["scale"])

    def at(self, scale: float, what: str = "bits_per_byte") -> float:
        """A held-out result of base + adapter at one of the kept scales."""
        return float(self.result["scales"][f"{scale:g}"][what])

    def gain(self, bits: float) -> float | None:
        """The share of the gain of fine-tuning that `bits` recovers, 1 is all of it; None without reference."""
        if self.fine_tuned is None or self.fine_tuned["bits_per_byte"] >= self.alone:
            return None
        return round((self.alone - bits) / (self.alone - float(self.fine_tuned["bits_per_byte"])), GAIN_DIGITS)


def result_of(store: Store, cell: Cell) -> Result | None:
    """A cell's result; one that was scored on more bases answers for it too."""
    return store.known(replace(cell, targets="all")) or store.known(cell)


def rows_of(store: Store, cell: Cell) -> list[Row]:
    """The cell on each of its bases; none where it is not finished."""
    result = result_of(store, cell)
    if result is None:
        return []
    targets = result["targets"]
    scale = result["donor_scale"]
    return [
        Row(cell, name, found, targets[cell.donor], 1.0 if scale is None else scale, best_reference(store, cell, name))
        for name, found in targets.items()
    ]


def best_reference(store: Store, cell: Cell, target: str) -> Result | None:
    """Of the references of this task and base, the one best on the calibration examples; its held-out results."""
    found: list[dict[str, Any]] = [
        result
        for result in store.all().values()
        if result["kind"] == "reference"
        and all(
            result["settings"][name] == wanted
            for name, wanted in {"task": cell.task, "target": target, "held_out": cell.held_out}.items()
        )
    ]
    return min(found, key=lambda result: float(result["calibration"]))["held_out"] if found else None


def finished(store: Store, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Row]]]:
    """The cells that have results, with their rows."""
    for cell in cells:
        if rows := rows_of(store, cell):
            yield cell, rows


def references_of(store: Store) -> list[tuple[Reference, Result]]:
    """All finished references."""
    return [
        (from_settings(Reference, result["settings"]), result)
        for result in store.all().values()
        if result["kind"] == "reference"
    ]
