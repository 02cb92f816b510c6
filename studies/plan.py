"""Which cells answer which question, the decisive ones first; runs nothing.

Every question varies one thing around the default cell, which it contains, so that its table can be read alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from studies.cell import AnySpec, Cell, Penalty, Reference, key_of
from studies.targets import CORE, MORE, PAIR

DEFAULT = Cell()
WITH_PREFIX = replace(DEFAULT, prefix_examples=4)
LORA = replace(WITH_PREFIX, lora_rank=16, num_layers=None, learning_rate=1e-3)
"""The donor with a LoRA, minus the donor, in place of a network of its own."""
TASKS = {"jeopardy": 400, "natural_questions": 400, "mbpp": 120, "gsm8k": 120}
"""Task -> demonstrations: those with long responses cost more each."""


@dataclass(frozen=True)
class Question:
    """One table."""

    name: str
    """Of the markers in docs/transfer.md."""
    title: str
    """What is asked."""
    cells: tuple[Cell, ...]
    """The rows."""
    quick: tuple[Cell, ...] = ()
    """Those of `--quick`."""


def of_task(name: str, cell: Cell) -> Cell:
    """The cell on another task; where responses are long, fewer examples are trained on and scored."""
    long = TASKS[name] < 400
    sizes = {"held_out": 50, "calibration": 25} if long else {}
    return replace(cell, task=name, num_demonstrations=TASKS[name], **sizes)  # type: ignore[arg-type]  # counts


def _penalties() -> tuple[Cell, ...]:
    """Kinds and coefficients, centred and raw; for the entropy, which no constant changes, there is one form."""
    kinds: tuple[tuple[Penalty, tuple[float, ...]], ...] = (("l1", (0.3, 1.0)), ("l2", (0.03, 0.3)))
    found = [
        replace(WITH_PREFIX, penalty=kind, penalty_coefficient=coefficient, centred=centred)
        for kind, coefficients in kinds
        for coefficient in coefficients
        for centred in ((True, False) if coefficient == coefficients[-1] else (True,))
    ]
    found += [replace(WITH_PREFIX, penalty="entropy", penalty_coefficient=c) for c in (0.1, 1.0)]
    return (WITH_PREFIX, *found, replace(WITH_PREFIX, dropout=0.1), replace(WITH_PREFIX, label_smoothing=0.1))


def _repeated() -> tuple[Cell, ...]:
    """The same number of steps from fewer demonstrations, and more of both."""
    pairs = ((200, 2), (400, 1), (200, 4), (400, 2), (800, 1), (1600, 1))
    return tuple(replace(WITH_PREFIX, num_demonstrations=count, epochs=epochs) for count, epochs in pairs)


QUESTIONS = (
    Question(
        "tasks",
        "How far does it go, task by task?",
        tuple(
            of_task(task, replace(cell, targets="all" if task == "jeopardy" else "core"))
            for task in TASKS
            for cell in (LORA, WITH_PREFIX)
        ),
        (replace(LORA, targets="all"), replace(WITH_PREFIX, targets="all")),
    ),
    Question(
        "lora",
        "A network of its own, or the donor with a LoRA minus the donor?",
        (
            LORA,
            replace(LORA, learning_rate=3e-4),
            WITH_PREFIX,
            replace(LORA, prefix_examples=0),
            replace(LORA, prefix_examples=8),
            replace(LORA, epochs=2),
            replace(LORA, num_demonstrations=800),
            replace(LORA, prefix_use="scoring"),
            replace(LORA, penalty="l1", penalty_coefficient=0.3),
            replace(LORA, lora_rank=4),
            replace(LORA, prefix_policy="next"),
        ),
        (LORA, WITH_PREFIX),
    ),
    Question(
        "seeds",
        "How much is chance?",
        tuple(replace(cell, seed=seed) for cell in (LORA, WITH_PREFIX) for seed in (0, 1)),
    ),
    Question(
        "prefix",
        "What should the base read before the prompt?",
        (
            DEFAULT,
            *(replace(DEFAULT, prefix_examples=k) for k in (1, 4, 8)),
            replace(WITH_PREFIX, prefix_policy="next"),
            replace(WITH_PREFIX, prefix_policy="short"),
            replace(WITH_PREFIX, prefix_use="scoring"),
        ),
        (DEFAULT, WITH_PREFIX, replace(WITH_PREFIX, prefix_use="scoring")),
    ),
    Question("penalty", "What keeps an adapter from fitting its training base?", _penalties(), _penalties()[:3]),
    Question(
        "connection",
        "What should the network read?",
        tuple(
            replace(cell, connection=connection)
            for cell in (WITH_PREFIX, DEFAULT)
            for connection in ("residual", "cascade", "cascade_with_text")
        ),
    ),
    Question(
        "start",
        "How should the network start?",
        tuple(replace(WITH_PREFIX, initialisation=start) for start in ("zero_head", "pretrained", "random")),
    ),
    Question(
        "size",
        "How large must the network be?",
        (*(replace(WITH_PREFIX, num_layers=layers) for layers in (4, 8, 16)),),
        (replace(WITH_PREFIX, num_layers=4),),
    ),
    Question(
        "bases",
        "On which bases should it be trained?",
        (
            LORA,
            replace(LORA, other_bases=("smollm2_continued",)),
            replace(LORA, donor="smollm2"),
        ),
    ),
    Question("repetition", "More demonstrations, or the same ones again?", _repeated(), _repeated()[4:5]),
    Question(
        "steps",
        "How large are good steps?",
        (
            *(replace(WITH_PREFIX, learning_rate=rate) for rate in (5e-5, 1e-4, 2e-4, 6e-4)),
            *(replace(WITH_PREFIX, batch_size=size) for size in (2,)),
        ),
    ),
    Question(
        "untrained",
        "What does +1 a fine-tuned donor, -1 the donor give?",
        (DEFAULT, replace(DEFAULT, network="expert_minus_base"), replace(WITH_PREFIX, network="expert_minus_base")),
    ),
    Question(
        "pair",
        "Two sizes of one model, both trained from scratch",
        tuple(replace(cell, donor="scratch_small", num_layers=None) for cell in (WITH_PREFIX, DEFAULT)),
    ),
)

_FIRST = (
    "lora",
    "untrained",
    "steps",
    "repetition",
    "prefix",
    "penalty",
    "size",
    "bases",
    "seeds",
    "start",
    "connection",
)
"""After the tasks, the order of questions by what their answer decides."""


def references(cells: Sequence[Cell], targets: Sequence[str] = CORE) -> list[Reference]:
    """The fine-tuned bases that the gain of these cells is measured against, for each of their tasks."""
    found = []
    for task in dict.fromkeys(cell.task for cell in cells):
        like = of_task(task, DEFAULT)
        sizes = {"held_out": like.held_out, "calibration": like.calibration}
        found += [
            Reference(task=task, target=target, num_demonstrations=like.num_demonstrations, **sizes)
            for target in targets
        ]
    return found


def plan(*, quick: bool = False, question: str | None = None) -> list[AnySpec]:
    """Everything to run, in order, each once.

    Args:
        quick: the cut that takes less than twenty minutes.
        question: only this one's cells.
    """
    names = ["tasks", *_FIRST, *(one.name for one in QUESTIONS)] if question is None else [question]
    by_name = {one.name: one for one in QUESTIONS}
    cells = [cell for name in names for cell in (by_name[name].quick if quick else by_name[name].cells)]
    short = [cell for cell in cells if cell.task == DEFAULT.task]
    long = [cell for cell in cells if cell.task != DEFAULT.task]
    specs: list[AnySpec] = [*references(short[:1]), *short[2:13], *short[:2], *long, *references(long), *short]
    if not quick and question is None:
        specs += references([DEFAULT], (*MORE, *PAIR))
        specs += [replace(one, learning_rate=4e-4) for one in references([DEFAULT])]
    return _each_once(specs)


def _each_once(specs: Sequence[AnySpec]) -> list[AnySpec]:
    """A cell that is scored on all bases also answers for the same cell on the core."""
    wide = {key_of(replace(spec, targets="core")) for spec in specs if isinstance(spec, Cell) and spec.targets == "all"}
    unique: dict[str, AnySpec] = {}
    for spec in specs:
        if not (isinstance(spec, Cell) and spec.targets == "core" and key_of(spec) in wide):
            unique.setdefault(key_of(spec), spec)
    return list(unique.values())
