"""The Markdown tables of docs/transfer.md, made of finished cells alone; knows nothing of files or models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from studies.cell import AnySpec, Cell, command_of, settings
from studies.plan import (
    DEFAULT,
    EARLIER,
    FOUR,
    FULL,
    JUDGES,
    OWN,
    QUESTIONS,
    READERS,
    SEEDS,
    TASKS,
    Question,
    of_task,
    reading,
)
from studies.results import TEXT, TOTAL, Estimate, Row, finished, mean_difference, newest, references_of, rows_of
from studies.store import Store
from studies.targets import TARGETS

NOTHING = "No cell of this table is finished yet: `make study` runs it.\n"
SHORT, LONG = (0.95, 0.95, 0.9), (0.9, 0.85, 0.85)
"""What is to be reached on the training base, other sizes and other vocabularies where answers are short or long."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a sentence where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return NOTHING
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines]) + "\n"


def folded(head: Sequence[str], rows: Iterable[Sequence[str]], *, named: int = 1) -> str:
    """A table whose rows end with their command, which is too long for a page: it stands folded beneath.

    Args:
        head: of the columns that are shown.
        rows: each with its command behind what is shown.
        named: how many of the first columns tell the commands apart.
    """
    given = [list(row) for row in rows]
    shown = table(head, [row[:-1] for row in given])
    if not given:
        return shown
    commands = dict.fromkeys((", ".join(row[:named]).replace("<br>", ", "), row[-1]) for row in given)
    lines = [f"* {label}: {command}" for label, command in commands]
    return "\n".join([shown, FOLD, "", *lines, "", "</details>", ""])


FOLD = '<details markdown="1"><summary>Commands</summary>'
"""Opens a list that a page shows when it is asked for; Markdown goes on inside."""


def bits(value: float) -> str:
    """Bits per byte as shown."""
    return f"{value:.3f}"


def share(value: float | None) -> str:
    """A share of the gain as shown."""
    return "" if value is None else f"{value:.0%}"


def shown_difference(found: Estimate) -> str:
    """By how much an arm is better or worse; bold where it is beyond chance."""
    if found.low == found.high == 0:
        return "the same"
    word = "better" if found.value >= 0 else "worse"
    shown = f"{word} by {abs(found.value):.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"**{shown}**" if found.low > 0 or found.high < 0 else shown


def code(cell: AnySpec) -> str:
    """The command of a row."""
    return f"`{command_of(cell)}`"


def main_cells() -> list[Cell]:
    """The default on every task, and a full network on the first."""
    return [DEFAULT, OWN, *(of_task(task, DEFAULT) for task in TASKS if task != DEFAULT.task)]


def kind(cell: Cell) -> str:
    """Which network it trains, in words."""
    return "LoRA" if cell.lora_rank is not None else "full"


def recipe(cell: Cell) -> str:
    """The same, and where it is not today's default who reads the prefix."""
    return f"LoRA, prefix use {EARLIER}" if cell.lora_rank and cell.prefix_use == EARLIER else kind(cell)


def tasks(store: Store) -> str:
    """Every arm of the default cells, base by base, the ends of answers counted."""
    head = ["task", "base", *ARMS]
    rows = []
    for cell, found in newest(store, main_cells()):
        for row in found:
            shown = [_estimated(row.estimate(row.arms[arm])) if arm in row.arms else "" for arm in ARMS]
            base = f"{TARGETS[row.target].title}<br>*{row.relation}*"
            rows.append([f"{cell.task}<br>{recipe(cell)}", base, *shown, code(cell)])
    return folded(head, rows)


ARMS = (
    "alone",
    "examples in its prompt",
    "small tuned model alone",
    "+ adapter as loaded",
    "+ adapter, fitted weights",
    "fine-tuned",
    "fine-tuned behind the prefix",
)


def text(store: Store) -> str:
    """The same arms by the text of answers alone."""
    rows = []
    for cell, found in newest(store, main_cells()):
        for row in found:
            shown = [bits(float(row.arms[arm][TEXT])) if arm in row.arms else "" for arm in ARMS]
            rows.append([cell.task, recipe(cell), TARGETS[row.target].title, *shown])
    return table(["task", "network", "base", *ARMS], rows)


def ends(store: Store) -> str:
    """How many answers end by themselves within the limit, and how many are right, of those that were answered."""
    rows = []
    for cell, found in newest(store, main_cells()):
        for row in found:
            shown = [
                f"{share(row.arms[arm]['ends'])}, {share(row.arms[arm]['exact_match'])}" if arm in row.arms else ""
                for arm in ARMS
            ]
            rows.append([cell.task, recipe(cell), TARGETS[row.target].title, str(cell.answered), *shown])
    return table(["task", "network", "base", "answers", *ARMS], rows)


def tokens(store: Store) -> str:
    """Bits per token of the first, middle and last response token in each arm of the default cells."""
    rows = []
    for cell, found in newest(store, main_cells()):
        for row in found:
            for name, arm in row.arms.items():
                values = [f"{arm[kind]:.2f}" if kind in arm else "" for kind in ("first", "middle", "last")]
                rows.append([cell.task, recipe(cell), TARGETS[row.target].title, name, *values])
    return table(["task", "network", "base", "arm", "first", "middle", "last"], rows)


def scales(store: Store) -> str:
    """Bits per byte of the calibration examples of the default cells along the scale, at the fitted weights."""
    rows, steps = [], [f"{step / 4:g}" for step in range(7)]
    for cell, found in newest(store, main_cells()):
        for row in (one for one in found if not one.refusal):
            shown = [bits(row.result["curve"][step]) for step in steps]
            rows.append([cell.task, recipe(cell), TARGETS[row.target].title, _weights(row), *shown])
    return table(["task", "network", "base", "fitted weights", *steps], rows)


def _weights(row: Row) -> str:
    found = row.result["weights"]
    networks = " ".join(f"{weight:+.2f}" for weight in found["networks"])
    shown = f"{found['base']:.2f} {networks}" + (f", end {found['end']:+.2f}" if found["end"] else "")
    return shown if row.result["believed"] else f"as loaded ({shown})"


def goals(store: Store) -> str:
    """The default cell against what was to be reached, as loaded: nothing is calibrated."""
    rows = []
    for cell, found in newest(store, [of_task(task, DEFAULT) for task in TASKS]):
        for row in (one for one in found if not one.refusal):
            goal = _goal(row)
            reached, fitted = row.share("default"), row.share("fitted")
            verdict = _verdict(row, reached, goal)
            shown = [_shares(one) for one in (reached, fitted)]
            rows.append([cell.task, TARGETS[row.target].title, share(goal), shown[0], verdict, shown[1]])
    return table(["task", "base", "goal", "gain recovered as loaded", "", "at fitted weights"], rows)


def _verdict(row: Row, reached: Estimate | None, goal: float) -> str:
    """Whether a goal is reached, as far as that can be told."""
    if reached is None or not row.complete:
        return "references are missing"
    if reached.low < goal <= reached.high:
        return "within chance of it"
    return "reached" if reached.value >= goal else "missed"


def _goal(row: Row) -> float:
    own, size, vocabulary = LONG if row.cell.answered < DEFAULT.answered else SHORT
    return own if row.target == row.cell.donor else vocabulary if row.relation.startswith("another v") else size


def versus(store: Store) -> str:
    """The default cell against other arms, paired: as loaded against what needs no adapter, and fitted."""
    others = ("alone", "examples in its prompt", "small tuned model alone")
    pairs = [("+ adapter as loaded", other) for other in others]
    pairs += [("+ adapter, fitted weights", other) for other in (*others, "+ adapter as loaded")]
    rows = []
    for cell, found in newest(store, [of_task(task, DEFAULT) for task in TASKS]):
        for row in (one for one in found if not one.refusal):
            for which in ("+ adapter as loaded", "+ adapter, fitted weights"):
                shown = [
                    shown_difference(row.better(row.arms[which], row.arms[other])) if (which, other) in pairs else ""
                    for other in (*others, "+ adapter as loaded")
                ]
                rows.append([cell.task, TARGETS[row.target].title, which, *shown])
    return table(["task", "base", "arm", *(f"against {o}" for o in (*others, "+ adapter as loaded"))], rows)


def _estimated(found: Estimate) -> str:
    return f"{bits(found.value)}<br><small>{bits(found.low)}-{bits(found.high)}</small>"


def _shares(found: Estimate | None) -> str:
    return "" if found is None else f"{share(found.value)} ({share(found.low)}-{share(found.high)})"


def question(store: Store, asked: Question) -> str:
    """One row for each cell: what differs, and what that does on bases of each relation, ends counted."""
    found = list(finished(store, asked.cells))
    columns: list[tuple[str, Callable[[Row], float]]] = [
        ("the training base", lambda row: row.bits("default")),
        ("another size", lambda row: row.bits("default")),
        ("another size", lambda row: row.bits("fitted")),
        ("another vocabulary", lambda row: row.bits("default")),
        ("another vocabulary", lambda row: row.bits("fitted")),
    ]
    values = [[_core_value(rows, kind, read) for kind, read in columns] for _, rows in found]
    best = [min((v for v in column if v is not None), default=None) for column in zip(*values, strict=True)]
    lines = []
    for (cell, rows), numbers in zip(found, values, strict=True):
        shown = ["not possible" if v is None else _marked(v, b) for v, b in zip(numbers, best, strict=True)]
        other = _core(rows, "another vocabulary")
        last = share(other.gain("fitted")) if other is not None and not other.refusal else ""
        lines.append([describe(cell), *shown, last, code(cell)])
    head = ["setting", "training base", "another size, as loaded", "fitted"]
    return folded([*head, "another vocabulary, as loaded", "fitted", "its gain recovered"], lines)


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
        if value != around[name] and name not in ("targets", "answered", "held_out", "calibration"):
            shown = ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
            words.append(f"{'training base' if name == 'donor' else name.replace('_', ' ')} {shown}")
    return ", ".join(words)


def readers(store: Store) -> str:
    """Who reads the prefix, task by task: the seeds as loaded, and how far off the first way that is."""
    bases: list[tuple[str, Callable[[Row], bool]]] = [
        ("training base", lambda row: row.target == row.cell.donor),
        ("another size", lambda row: row.relation.startswith("another size")),
        ("another vocabulary", lambda row: row.relation.startswith("another v")),
    ]
    rows = []
    for task in TASKS:
        usual: dict[str, dict[int, Row]] = {}
        for use in READERS:
            cells = [reading(task, use, seed) for seed in SEEDS]
            known = {cell.seed: found for cell, found in finished(store, cells)}
            runs = {seed: known[seed] for seed in SEEDS if seed in known}
            if not runs or (use != READERS[0] and not runs.keys() & usual.get(bases[0][0], {}).keys()):
                continue
            shown = []
            for title, fits in bases:
                own = {seed: next(row for row in found if fits(row)) for seed, found in runs.items()}
                shown.append(_off(own, usual.setdefault(title, own)))
            rows.append([task, use, *shown, code(cells[0])])
    return folded(["task", "prefix use", *(title for title, _ in bases)], rows, named=2)


def _off(own: Mapping[int, Row], usual: Mapping[int, Row]) -> str:
    """Each seed's value; how far their mean is from others' of the same seeds, and how far two seeds are apart."""
    shown = ", ".join(bits(row.bits("default")) for row in own.values())
    if own is usual:
        return shown
    both = [seed for seed in own if seed in usual]
    off = sum(own[seed].bits("default") - usual[seed].bits("default") for seed in both) / len(both)
    text = f"{shown}: {abs(off):.3f} {'worse' if off > 0 else 'better'}"
    if (found := mean_difference([(own[seed], usual[seed]) for seed in both])) is not None:
        text += f" ({-found.high:+.3f} to {-found.low:+.3f})"
    if len(both) < len(SEEDS):
        return f"{text}, one seed"
    apart = max(abs(each[0].bits("default") - each[1].bits("default")) for each in (own, usual))
    text += f", seeds {apart:.3f} apart"
    return f"**{text}**" if abs(off) > apart else text


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
        chosen = min(found, key=lambda rows: float(_of(rows, chooser).result["calibration"]))
        shown = [bits(_of(chosen, name).bits("fitted")) for name in names]
        lines.append([f"{TARGETS[chooser].title}", str(chosen[0].cell.epochs), *shown])
    return table(["epochs chosen on", "epochs", *(TARGETS[name].title for name in names)], lines)


def _of(rows: Sequence[Row], target: str) -> Row:
    return next(row for row in rows if row.target == target)


def tuned(store: Store) -> str:
    """The references: bases fine-tuned directly."""
    rows = []
    for how, found in references_of(store):
        behind, held_out = str(how.prefix_examples or "none"), found["held_out"]
        shown = [behind, str(how.epochs), bits(held_out[TOTAL]), bits(held_out[TEXT]), f"`{command_of(how)}`"]
        rows.append([how.task, TARGETS[how.target].title, *shown])
    head = ["task", "base", "examples before the prompt", "passes", "fine-tuned", "text alone"]
    return folded(head, sorted(rows), named=4)


def seeds_spread(store: Store) -> str:
    """The differences between two seeds of the default row, base by base."""
    rows = []
    for task in TASKS:
        runs = [rows_of(store, reading(task, DEFAULT.prefix_use, seed)) for seed in SEEDS]
        for row in runs[0]:
            twin = next((other for other in runs[1] if other.target == row.target), None)
            if twin is not None and not row.refusal:
                apart = [bits(abs(row.bits(arm) - twin.bits(arm))) for arm in ("default", "fitted")]
                rows.append([task, TARGETS[row.target].title, *apart])
    return table(["task", "base", "as loaded", "fitted"], rows)


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
    head = ["task", "who answers", "greedy", "a sample", "best of 8 by the adapter's score", "any of 8"]
    return folded(head, rows, named=2)
