"""Reads finished cells for the report: which arm gave what, and which reference bounds it; formats nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from studies.cell import VERBS, Cell, Experts, Reference, Spec, Stack, from_settings, settings
from studies.plan import DEFAULT, EARLIER, less, of_task, references
from studies.store import Result, Store
from valueadapter.demonstrations.bootstrap import Bootstrap

TOTAL, TEXT = "total_bits_per_byte", "bits_per_byte"


class Estimate(NamedTuple):
    """A value of the held-out examples, and where 95 % of their resamples lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One adapter on one base."""

    cell: Cell
    target: str
    result: Result
    """The target's part of the cell's result."""
    donor: Result
    """The same of the training base."""
    sizes: list[int]
    """UTF-8 bytes of each held-out response."""
    tuned: Result | None
    """The reference without prefix that is best on the calibration examples, its `held_out`; None without any."""
    tuned_behind: Result | None
    """The same behind the default's prefix."""
    bound: Result | None
    """The better of the two on the calibration examples, which bounds the gain."""
    complete: bool
    """Whether all references that are planned for this task and base are there."""

    @property
    def relation(self) -> str:
        """How the base relates to the training base."""
        return str(self.result["relation"])

    @property
    def refusal(self) -> str | None:
        """Why the adapter does not go with this base."""
        return self.result.get("refusal")

    @property
    def arms(self) -> dict[str, Result]:
        """Arm -> what was measured of it; those that there are."""
        names = {
            "alone": "alone",
            "fewshot": "examples in its prompt",
            "default": "+ adapter as loaded",
            "fitted": "+ adapter, fitted weights",
        }
        found = {title: self.result[name] for name, title in names.items() if name in self.result}
        others = {
            "small tuned model alone": self.donor.get("small"),
            "fine-tuned": self.tuned,
            "fine-tuned behind the prefix": self.tuned_behind,
        }
        return found | {title: arm for title, arm in others.items() if arm is not None}

    def bits(self, arm: str, what: str = TOTAL) -> float:
        """Bits per byte of `default` or `fitted`."""
        return float(self.result[arm][what])

    def gain(self, arm: str) -> float | None:
        """The share of the gain of fine-tuning that `default` or `fitted` recovers, 1 is all of it; None without a
        reference that gains."""
        if self.bound is None or self.bound[TOTAL] >= self.result["alone"][TOTAL]:
            return None
        alone = float(self.result["alone"][TOTAL])
        return (alone - self.bits(arm)) / (alone - float(self.bound[TOTAL]))

    # -- intervals, of cells whose results say what each example cost ------------------------------------------------
    def estimate(self, arm: Result) -> Estimate:
        """Bits per byte of an arm, ends included."""
        return _estimate(_ratios(arm, self.sizes), float(arm[TOTAL]))

    def better(self, arm: Result, other: Result) -> Estimate:
        """By how many bits per byte an arm is better than another, example by example."""
        return difference(arm, other, self.sizes)

    def share(self, arm: str) -> Estimate | None:
        """`gain` with its interval."""
        value = self.gain(arm)
        if value is None or self.bound is None:
            return None
        alone, own, bound = (_ratios(one, self.sizes) for one in (self.result["alone"], self.result[arm], self.bound))
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample in which there is nothing to gain is left out
            return _estimate((alone - own) / (alone - bound), value)


def difference(arm: Result, other: Result, sizes: Sequence[int]) -> Estimate:
    """By how many bits per byte, ends included, an arm is better than another, example by example."""
    return _estimate(_ratios(other, sizes) - _ratios(arm, sizes), float(other[TOTAL]) - float(arm[TOTAL]))


def mean_difference(pairs: Sequence[tuple[Row, Row]]) -> Estimate | None:
    """By how many bits per byte, as loaded and on average over pairs of the same examples, the first is better; None
    where it is not known what each example cost."""
    arms = [(one.result["default"], other.result["default"], one.sizes) for one, other in pairs]
    if not all("examples" in arm for one, other, _ in arms for arm in (one, other)):
        return None
    ratios = [_ratios(other, sizes) - _ratios(one, sizes) for one, other, sizes in arms]
    return _estimate(np.mean(ratios, axis=0), sum(difference(*each).value for each in arms) / len(arms))


def _ratios(arm: Result, sizes: Sequence[int]) -> np.ndarray:
    """(resamples,) bits per byte."""
    return Bootstrap(len(sizes)).ratios(list(zip(arm["examples"], sizes, strict=True)))


def _estimate(values: np.ndarray, value: float) -> Estimate:
    low, high = Bootstrap(1).interval(values) or (value, value)
    return Estimate(value, low, high)


def result_of(store: Store, cell: Cell) -> Result | None:
    """A cell's result; one that was scored on more bases, or whose answers were looked at as well, answers for it too.
    What was computed here goes first."""
    answered = dict.fromkeys(
        (of_task(cell.task, DEFAULT).answered if cell.answered == 0 else cell.answered, cell.answered)
    )
    wider = [replace(cell, targets=targets, answered=count) for targets in ("all", "core") for count in answered]
    more = [one for one in wider if cell in less(one)]
    found = (look(one) for look in (store.get, store.known) for one in more)
    return next((one for one in found if one is not None), None)


def rows_of(store: Store, cell: Cell) -> list[Row]:
    """The cell on each of its bases; none where it is not finished."""
    result = result_of(store, cell)
    if result is None:
        return []
    rows = []
    for name, found in result["targets"].items():
        planned = references([cell], (name,))
        known = [(how, one) for how in planned if (one := store.known(how)) is not None]
        plain, behind = (_best([one for how, one in known if bool(how.prefix_examples) == it]) for it in (False, True))
        rows.append(
            Row(
                cell=cell,
                target=name,
                result=found,
                donor=result["targets"][cell.donor],
                sizes=result["sizes"],
                tuned=plain,
                tuned_behind=behind,
                bound=_best([one for _, one in known]),
                complete=len(known) == len(planned),
            )
        )
    return rows


def _best(references: Sequence[Result]) -> Result | None:
    """What the one that is best on the calibration examples gives on the held-out ones."""
    best = min(references, key=lambda one: float(one["calibration"]), default=None)
    return None if best is None else best["held_out"]


def finished(store: Store, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Row]]]:
    """The cells that have results, as these were computed, with their rows."""
    for cell in cells:
        if (result := result_of(store, cell)) is not None:
            yield from_settings(Cell, result["settings"]), rows_of(store, cell)


def newest(store: Store, cells: Sequence[Cell]) -> Iterator[tuple[Cell, list[Row]]]:
    """The same; where a cell is not finished, the one of the recipe that was the default before."""
    for cell in cells:
        earlier = [] if cell.lora_rank is None else [replace(cell, prefix_use=EARLIER)]
        yield from next((found for one in (cell, *earlier) if (found := list(finished(store, [one])))), [])


def references_of(store: Store) -> list[tuple[Reference, Result]]:
    """All finished references."""
    return _of_kind(store, Reference)


def experts_of(store: Store) -> list[tuple[Experts, Result]]:
    """The finished looks at weights; where one is not finished, that of the recipe that was the default before."""
    found = _of_kind(store, Experts)
    today = {(spec.task, spec.target) for spec, _ in found if spec.prefix_use == DEFAULT.prefix_use}
    return [
        one for one in found if one[0].prefix_use == DEFAULT.prefix_use or (one[0].task, one[0].target) not in today
    ]


def stacks_of(store: Store) -> list[tuple[Stack, Result]]:
    """All finished stacks."""
    return _of_kind(store, Stack)


def _of_kind(store: Store, kind: type[Spec]) -> list[tuple[Spec, Result]]:
    found = (result for result in store.all().values() if result["kind"] == VERBS[kind])
    pairs = [(from_settings(kind, result["settings"]), result) for result in found]
    return sorted(pairs, key=lambda pair: str(settings(pair[0])))
