"""The Markdown tables of docs/transfer.md, made of finished cells alone; knows nothing of files or models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from studies.cell import AnySpec, Cell, command_of, settings
from studies.plan import DEFAULT, FOUR, FULL, JUDGES, OWN, QUESTIONS, TASKS, Question, of_task
from studies.results import Row, finished, references_of, rows_of
from studies.store import Store
from studies.targets import TARGETS

NOTHING = "No cell of this table is finished yet.\n"
GOALS = {
    "the training base": 0.95,
    "trained on as well": 0.95,
    "another size": 0.9,
    "trained further": 0.9,
    "another vocabulary": 0.8,
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a sentence where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return NOTHING
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines]) + "\n"


def bits(value: float) -> str:
    """Bits per byte as shown."""
    return f"{value:.3f}"


def share(value: float | None) -> str:
    """A share of the gain as shown."""
    return "" if value is None else f"{value:.0%}"


def code(cell: AnySpec) -> str:
    """The command beside a row."""
    return f"`{command_of(cell)}`"


def main_cells() -> list[Cell]:
    """The default on every task, and a full network on the first."""
    return [DEFAULT, OWN, *(of_task(task, DEFAULT) for task in TASKS if task != DEFAULT.task)]


def kind(cell: Cell) -> str:
    """Which network it trains, in words."""
    return "LoRA" if cell.lora_rank is not None else "full"


def tasks(store: Store) -> str:
    """Every arm of the default cells, base by base."""
    head = ["task", "network", "base", "it is", "alone", "examples in its prompt", "small tuned model alone"]
    head += ["+ adapter, recorded scale", "own scale", "fine-tuned", "gain recovered", "command"]
    rows = []
    for cell, found in finished(store, main_cells()):
        for row in found:
            rows.append([cell.task, kind(cell), TARGETS[row.target].title, row.relation, *_arms(row)])
            rows[-1].append(code(cell))
    return table(head, rows)


def _arms(row: Row) -> list[str]:
    tuned = "" if row.fine_tuned is None else bits(row.fine_tuned["bits_per_byte"])
    if row.refusal:
        return [bits(row.alone), bits(row.fewshot), "", "not possible", "", tuned, ""]
    chosen = row.at(row.own_scale)
    return [
        bits(row.alone),
        bits(row.fewshot),
        bits(row.small),
        f"{bits(row.at(row.recorded_scale))} at {row.recorded_scale:g}",
        f"**{bits(chosen)}** at {row.own_scale:g}",
        tuned,
        share(row.gain(chosen)),
    ]


def tokens(store: Store) -> str:
    """Bits per token of the first, middle and last response token in each arm of the default cells."""
    rows = []
    for cell, found in finished(store, main_cells()):
        for row in found:
            arms = {"alone": row.result["alone"], "examples in its prompt": row.result["fewshot"]}
            if not row.refusal:
                arms["+ adapter, own scale"] = row.result["scales"][f"{row.own_scale:g}"]
            if row.fine_tuned is not None:
                arms["fine-tuned"] = row.fine_tuned
            for name, arm in arms.items():
                values = [f"{arm[kind]:.2f}" if kind in arm else "" for kind in ("first", "middle", "last")]
                rows.append([cell.task, kind(cell), TARGETS[row.target].title, name, *values])
    return table(["task", "network", "base", "arm", "first", "middle", "last"], rows)


def scales(store: Store) -> str:
    """Held-out bits per byte of the default cells by scale."""
    rows = []
    for cell, found in finished(store, main_cells()):
        for row in (one for one in found if not one.refusal):
            shown = [bits(row.at(scale)) for scale in (0.25, 0.5, 0.75, 1.0)]
            own = f"{bits(row.at(row.own_scale))} at {row.own_scale:g}"
            rows.append([cell.task, kind(cell), TARGETS[row.target].title, *shown, own, code(cell)])
    return table(["task", "network", "base", "0.25", "0.5", "0.75", "1", "calibrated on it", "command"], rows)


def goals(store: Store) -> str:
    """The default cell against what was to be reached."""
    rows = []
    for _, found in finished(store, [of_task(task, DEFAULT) for task in TASKS]):
        for row in (one for one in found if not one.refusal):
            goal = next(value for kind, value in GOALS.items() if kind in row.relation)
            reached = row.gain(row.at(row.own_scale))
            missed = "" if reached is None else "reached" if reached >= goal else f"missed by {goal - reached:.0%}"
            recorded = row.at(row.recorded_scale)
            rows.append(
                [
                    row.cell.task,
                    TARGETS[row.target].title,
                    f"{goal:.0%}",
                    share(reached),
                    missed,
                    _better(recorded, row.alone),
                    _better(recorded, row.fewshot),
                    _better(recorded, row.small) if row.target != row.cell.donor else "",
                ]
            )
    head = ["task", "base", "goal", "gain recovered", "", "at the recorded scale, against the base alone"]
    return table([*head, "against examples in its prompt", "against the small tuned model"], rows)


def _better(value: float, other: float) -> str:
    return f"{'better' if value < other else 'worse'} by {abs(other - value):.3f}"


def question(store: Store, asked: Question) -> str:
    """One row for each cell: what differs, and what that does on bases of each relation."""
    found = list(finished(store, asked.cells))
    columns: list[tuple[str, Callable[[Row], float]]] = [
        ("the training base", lambda row: row.at(row.own_scale)),
        ("another size", lambda row: row.at(row.recorded_scale)),
        ("another size", lambda row: row.at(row.own_scale)),
        ("another vocabulary", lambda row: row.at(row.recorded_scale)),
        ("another vocabulary", lambda row: row.at(row.own_scale)),
    ]
    values = [[_core_value(rows, kind, read) for kind, read in columns] for _, rows in found]
    best = [min((v for v in column if v is not None), default=None) for column in zip(*values, strict=True)]
    lines = []
    for (cell, rows), numbers in zip(found, values, strict=True):
        shown = ["not possible" if v is None else _marked(v, b) for v, b in zip(numbers, best, strict=True)]
        other = _core(rows, "another vocabulary")
        last = share(other.gain(other.at(other.own_scale))) if other is not None and not other.refusal else ""
        lines.append([describe(cell), *shown, last, code(cell)])
    head = ["setting", "training base", "another size, recorded scale", "own scale"]
    return table([*head, "another vocabulary, recorded scale", "own scale", "its gain recovered", "command"], lines)


def _core(rows: Sequence[Row], kind: str) -> Row | None:
    """The first base of a relation; the training base comes first, the larger text models before what was added."""
    return next((row for row in rows if row.relation.startswith(kind)), None)


def _core_value(rows: Sequence[Row], kind: str, read: Callable[[Row], float]) -> float | None:
    row = _core(rows, kind)
    return None if row is None or row.refusal else read(row)


def _marked(value: float, best: float | None) -> str:
    return f"**{bits(value)}**" if value == best else bits(value)


def describe(cell: Cell) -> str:
    """Which network, and in what the cell differs from the one that questions vary, in words."""
    around = settings(FULL if cell.lora_rank is None else FOUR)
    words = [kind(cell)]
    for name, value in settings(cell).items():
        if value != around[name] and name != "targets":
            shown = ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
            words.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(words)


def stopping(store: Store) -> str:
    """How many epochs the calibration examples of each base would choose, and what that gives on every base."""
    asked = next(one for one in QUESTIONS if one.name == "repetition")
    cells = [cell for cell in asked.cells if cell == replace(FOUR, epochs=cell.epochs)]
    found = [rows for _, rows in finished(store, cells)]
    if len(found) < 2:
        return NOTHING
    everywhere = set.intersection(*({row.target for row in rows if not row.refusal} for rows in found))
    names = [row.target for row in found[0] if row.target in everywhere]
    lines = []
    for chooser in names:
        chosen = min(found, key=lambda rows: min(_of(rows, chooser).result["curve"].values()))
        shown = [bits(_of(chosen, name).at(_of(chosen, name).own_scale)) for name in names]
        lines.append([f"{TARGETS[chooser].title}", str(chosen[0].cell.epochs), *shown])
    return table(["epochs chosen on", "epochs", *(TARGETS[name].title for name in names)], lines)


def _of(rows: Sequence[Row], target: str) -> Row:
    return next(row for row in rows if row.target == target)


def tuned(store: Store) -> str:
    """The references: bases fine-tuned directly."""
    rows = [
        [how.task, TARGETS[how.target].title, bits(found["held_out"]["bits_per_byte"]), f"`{command_of(how)}`"]
        for how, found in references_of(store)
    ]
    return table(["task", "base", "fine-tuned", "command"], sorted(rows))


def seeds_spread(store: Store) -> str:
    """The largest difference between seeds, base by base."""
    rows = []
    for cell in (FOUR, FULL):
        runs = [rows_of(store, replace(cell, seed=seed)) for seed in (0, 1)]
        for row in runs[0]:
            twin = next((other for other in runs[1] if other.target == row.target), None)
            if twin is not None and not row.refusal:
                difference = abs(row.at(row.own_scale) - twin.at(twin.own_scale))
                rows.append([kind(cell), TARGETS[row.target].title, bits(difference)])
    return table(["network", "base", "difference between two seeds"], rows)


def judge(store: Store) -> str:
    """Share of right answers, by who answers and how."""
    ways = ("greedy", "sampled", "best", "any")
    rows = []
    for spec in JUDGES:
        if (result := store.known(spec)) is None:
            continue
        for who, title in (("base", "alone"), ("adapted", "+ adapter")):
            right = [result["right"][f"{who} {way}"] for way in ways]
            shown = [f"{sum(each) / len(each):.0%}" for each in right]
            rows.append([spec.task, f"{TARGETS[spec.target].title} {title}", *shown, code(spec)])
    head = ["task", "who answers", "greedy", "a sample", "best of 8 by the adapter's score", "any of 8", "command"]
    return table(head, rows)
