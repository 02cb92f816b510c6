"""Every arm of a task on every base, as the demo shows it: progress, table, answers, claims, and the report's keys."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from valueadapter import ValueAdapter
from valueadapter.cli.bars import Bars
from valueadapter.evaluation import Bootstrap
from valueadapter.evaluation.arms import Options, evaluate_adapter

TOTAL = "total_bits_per_byte"
SHOWN = {
    "  right:         ": "right",
    "  alone:         ": "base_answer",
    "  with examples: ": "fewshot_answer",
    "  with adapter:  ": "adapted_answer",
}
OTHERS = {"base": "the base alone", "fewshot": "it with examples in its prompt", "donor": "the small tuned model"}
OURS = {"adapted": "as loaded", "calibrated": "at fitted weights"}
console = Console(soft_wrap=True)
bars = Bars(console)


def measure(adapter: ValueAdapter, bases: Sequence[Any], held_out: Sequence[Any], options: Options) -> Any:
    """Every arm of the adapter on the bases, with progress; prints the table of them."""
    report = evaluate_adapter(adapter, list(bases), list(held_out), options=options)
    bars.end()
    show(report, len(held_out), options)
    return report


def tell(what: str, done: int, total: int) -> None:
    """How far an arm is: a bar on a terminal, else a line when it begins, is half done, and ends."""
    if console.is_terminal:
        bars.advance(what, done, total)
        if done == total:
            bars.forget(what)
    elif done == 0:
        console.print(f"  {what} ({total} records)", markup=False)
    elif done < total <= 2 * done:
        console.print(f"    {done} of {total}")


def show(report: Any, count: int, options: Options) -> None:
    """Prints the table: the same held-out records for every model."""
    table = Table(title=f"{options.data_name}: {count} records, 95 % intervals", box=SIMPLE)
    for column in ("model", "exact match", "ends", "bits per byte, ended"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    row(table, "small tuned model alone", report.results[0], "donor")
    for result in report.results:
        table.add_row()
        row(table, f"{result.base.split('/')[1]} alone", result, "base")
        row(table, f"  {result.num_fewshot} examples in its prompt", result, "fewshot")
        row(table, "  + adapter, as loaded", result, "adapted")
        if result.calibration is not None:
            row(table, f"  + adapter, fitted on {len(options.calibration)}", result, "calibrated")
    console.print(table)
    console.print(
        "Bits per byte: fewer are better. None of these records was trained on, and no weight was fitted on them."
    )


def row(table: Table, name: str, result: Any, arm: str) -> None:
    """One arm of one base."""
    score = result.arms[arm].score
    bootstrap = Bootstrap(len(score.examples))
    bits, exact = bootstrap.interval(bootstrap.ratios(score.pairs(TOTAL))), wilson(score)
    table.add_row(
        name,
        f"{score.value('exact_match'):.0%} ({exact[0]:.0%}-{exact[1]:.0%})",
        f"{score.value('ends'):.0%}",
        f"{score.value(TOTAL):.3f} ({bits[0]:.2f}-{bits[1]:.2f})",
    )


def wilson(score: Any) -> tuple[float, float]:
    """The 95 % interval of a score's exact match (Wilson 1927), which has a width where all or none are right, too."""
    count, share, z = len(score.examples), score.value("exact_match"), 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def show_answers(result: Any, held_out: Sequence[Any], *, changed: bool) -> list[dict[str, str]]:
    """Prints the first three records and the answers to them.

    Args:
        result: the arms of a base.
        held_out: the records.
        changed: only those to which it answers otherwise with the adapter than with examples.
    """
    name = result.base.split("/")[1]
    which = f" to which {name} answers otherwise with the adapter than with examples" if changed else f", by {name}"
    console.print(f"\nThe first three{which}:", markup=False)
    alone, fewshot, adapted = (result.arms[arm].score.answers for arm in ("base", "fewshot", "adapted"))
    places = [index for index in range(len(held_out)) if not changed or fewshot[index] != adapted[index]]
    shown = []
    for index in places[:3]:
        one = {
            "question": held_out[index]["prompt"],
            "right": held_out[index]["completion"].strip(),
            "base_answer": alone[index],
            "fewshot_answer": fewshot[index],
            "adapted_answer": adapted[index],
        }
        console.print(one["question"].rsplit("\n", 1)[0], markup=False)
        for title, key in SHOWN.items():
            console.print(title + one[key].replace("\n", " / "), markup=False)
        shown.append(one)
    return shown


def check_claims(result: Any, *, fails: bool) -> None:
    """Says what base + adapter is better than, ends counted, as far as intervals go.

    Args:
        result: the arms of a base.
        fails: whether the demo ends where an interval does not show it to be better than the base alone, examples in
            its prompt and, where the base is the stronger one, the small tuned model; else it ends only where base +
            adapter is worse by its interval.
    """
    name = result.base.split("/")[1]
    scores = {arm: one.score for arm, one in result.arms.items() if one.score is not None}
    bootstrap = Bootstrap(len(scores["base"].examples))
    ratios = {arm: bootstrap.ratios(score.pairs(TOTAL)) for arm, score in scores.items()}
    # the base that does the task better from examples than the small tuned model must stay better with the adapter
    stronger = result.value("fewshot", TOTAL) < result.value("donor", TOTAL)
    for ours, how in ((arm, how) for arm, how in OURS.items() if arm in scores):
        said = []
        for other, what in OTHERS.items():
            gain = result.value(other, TOTAL) - result.value(ours, TOTAL)
            low, high = bootstrap.interval(ratios[other] - ratios[ours])
            word = "better than" if low > 0 else "worse than" if high < 0 else "not told apart from"
            said.append(f"{word} {what} ({abs(gain):.3f}; {low:.3f} to {high:.3f})")
            if (other != "donor" or stronger) and (low <= 0 if fails else high <= 0):
                console.print(f"{name} + adapter {how}, in bits per byte: {said[-1]}", markup=False)
                sys.exit("This demo's claim does not hold.")
        console.print(f"{name} + adapter {how}, in bits per byte: {', '.join(said)}", markup=False)
