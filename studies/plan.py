"""Which cells answer which question, the decisive ones first; runs nothing.

Every question varies one thing around the default cell, which it contains, so that its table can be read alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from studies.cell import AnySpec, Cell, Experts, Judge, Penalty, PrefixUse, Reference, Stack, key_of
from studies.targets import CORE, MORE, PAIR

DEFAULT = Cell(answered=60)
"""The recipe's default: the donor with a LoRA minus the donor, both of which read the prefix."""
FOUR = replace(DEFAULT, prefix_examples=4, epochs=1, answered=0)
"""What the questions vary one setting of; half the prefix and half the passes make a cell cheaper."""
NO_PREFIX = replace(FOUR, prefix_examples=0)
FULL = replace(FOUR, lora_rank=None, num_layers=8, learning_rate=1e-4, prefix_use="both")
"""A network of its own, the first eight layers of the donor, all of it trained on the prefixed base."""
OWN = replace(FULL, prefix_examples=DEFAULT.prefix_examples, targets="all", answered=DEFAULT.answered)
"""The recipe's default of `--network full`, but for its layers."""
TASKS = {"jeopardy": 400, "natural_questions": 400, "mbpp": 120, "gsm8k": 120}
"""Task -> demonstrations: those with long responses cost more each."""
SEEDS = (0, 1)
EARLIER: PrefixUse = "subtracted"
"""What was the default; it stands in the tables where the default's cell is not finished yet."""
READERS: tuple[PrefixUse, ...] = ("subtracted", "all", "all_by_the_body")
"""Of the prefix: the bases and the network that is subtracted; the network that is added, too, in training as well; it
by the keys and values of its body without the LoRA."""
JUDGES = (Judge(), Judge(target="gemma"))


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
    sizes = {"held_out": 50, "calibration": 25, "answered": 12} if long else {}
    return replace(cell, task=name, num_demonstrations=TASKS[name], **sizes)  # type: ignore[arg-type]  # counts


def reading(task: str, use: PrefixUse, seed: int) -> Cell:
    """A cell whose answers nobody needs."""
    return replace(of_task(task, DEFAULT), prefix_use=use, seed=seed, answered=0)


def _penalties() -> tuple[Cell, ...]:
    """Kinds and coefficients, centred and raw; for the entropy, which no constant changes, there is one form."""
    kinds: tuple[tuple[Penalty, float, bool], ...] = (
        ("l1", 0.3, True),
        ("l1", 1.0, True),
        ("l1", 1.0, False),
        ("l2", 0.1, True),
        ("l2", 0.1, False),
        ("entropy", 0.1, True),
    )
    found = [replace(FULL, penalty=kind, penalty_coefficient=much, centred=centred) for kind, much, centred in kinds]
    return (
        FOUR,
        replace(FOUR, penalty="l1", penalty_coefficient=0.3),
        FULL,
        *found,
        replace(FULL, dropout=0.1),
        replace(FULL, label_smoothing=0.1),
    )


QUESTIONS = (
    Question(
        "tasks",
        "How far does it go, task by task?",
        (
            replace(DEFAULT, targets="all"),
            OWN,
            *(of_task(task, DEFAULT) for task in TASKS if task != DEFAULT.task),
        ),
    ),
    Question(
        "prefix",
        "What should be read before the prompt, and by whom?",
        (
            replace(FOUR, prefix_examples=DEFAULT.prefix_examples, targets="all"),
            replace(FOUR, targets="all"),
            replace(FOUR, prefix_examples=1),
            NO_PREFIX,
            replace(FOUR, prefix_use="scoring"),
            replace(FOUR, prefix_policy="next"),
            replace(FOUR, prefix_policy="short"),
            replace(FULL, targets="all"),
            replace(FULL, prefix_examples=0),
            replace(FULL, prefix_use="scoring"),
        ),
    ),
    Question(
        "readers",
        "Who reads the prefix?",
        tuple(reading(task, use, seed) for task in TASKS for use in READERS for seed in SEEDS),
    ),
    Question(
        "network",
        "A LoRA, or a network of its own, and how large?",
        (
            FOUR,
            replace(FOUR, lora_rank=4),
            *(replace(FULL, num_layers=layers) for layers in (4, 8, 16)),
        ),
        (replace(FOUR, lora_rank=4), replace(FULL, num_layers=4)),
    ),
    Question(
        "repetition",
        "More demonstrations, or the same ones again?",
        (
            *(
                replace(FOUR, num_demonstrations=count, epochs=epochs)
                for count, epochs in ((400, 1), (200, 2), (400, 2), (400, 3), (780, 1))
            ),
            *(replace(FULL, epochs=epochs) for epochs in (1, 2)),
            *(replace(FOUR, content_weight=weight) for weight in (0.5, 0.0)),
        ),
    ),
    Question(
        "seeds",
        "How much is chance?",
        tuple(reading(task, DEFAULT.prefix_use, seed) for task in TASKS for seed in SEEDS),
    ),
    Question(
        "bases",
        "On which bases should it be trained?",
        (FOUR, replace(FOUR, other_bases=("smollm2_continued",)), replace(FOUR, donor="smollm2")),
    ),
    Question("penalty", "What keeps an adapter from fitting its training base?", _penalties()),
    Question(
        "steps",
        "How large are good steps?",
        (
            *(replace(FOUR, learning_rate=rate) for rate in (3e-4, 1e-3, 2e-3)),
            *(replace(FULL, learning_rate=rate) for rate in (5e-5, 1e-4, 2e-4)),
        ),
    ),
    Question(
        "connection",
        "What should the network read?",
        (FULL, replace(FULL, connection="cascade"), replace(FULL, connection="cascade_with_text")),
    ),
    Question(
        "start",
        "How should the network start?",
        tuple(replace(FULL, initialisation=start) for start in ("zero_head", "pretrained", "random")),
    ),
    Question(
        "pair",
        "Two sizes of one model, both trained from scratch",
        (
            replace(FOUR, donor="scratch_small"),
            replace(FULL, donor="scratch_small", num_layers=None),
            replace(NO_PREFIX, donor="scratch_small"),
        ),
    ),
    Question(
        "untrained",
        "What does +1 a fine-tuned donor, -1 the donor give?",
        (FOUR, replace(FOUR, network="expert_minus_base", prefix_use="subtracted")),
    ),
)


def references(
    cells: Sequence[Cell], targets: Sequence[str] = CORE, passes: Sequence[int] = (1, DEFAULT.epochs)
) -> list[Reference]:
    """The fine-tuned bases that the gain of these cells is measured against, for each of their tasks: as they are, and
    behind the prefix that the adapter's base reads."""
    found = []
    for task, cell in {cell.task: cell for cell in cells}.items():
        like = of_task(task, DEFAULT)
        sizes = {"held_out": cell.held_out, "calibration": cell.calibration, "answered": like.answered}
        found += [
            Reference(
                task=task,
                target=target,
                num_demonstrations=like.num_demonstrations,
                epochs=epochs,
                prefix_examples=prefix,
                **sizes,
            )
            for epochs in passes
            for prefix in (0, DEFAULT.prefix_examples)
            for target in targets
        ]
    return found


def plan(*, quick: bool = False, question: str | None = None) -> list[AnySpec]:
    """Everything to run, in order, each once.

    Args:
        quick: the cut that takes less than twenty minutes.
        question: only this one's cells.
    """
    asked = [one for one in QUESTIONS if question in (None, one.name)]
    cells = [cell for one in asked for cell in (one.quick if quick else one.cells)]
    own = [cell for cell in cells if cell.task == DEFAULT.task]
    others = [cell for cell in cells if cell.task != DEFAULT.task]
    specs: list[AnySpec] = [*own[:1], *references([DEFAULT], passes=(1,) if quick else (1, DEFAULT.epochs))]
    for cell in others:
        specs += [cell, *references([cell])]
    specs += own[1:]
    if not quick and question is None:
        specs += [Experts(task, target) for task in TASKS for target in CORE]
        specs += [Stack(target=target) for target in CORE]
        specs += [*references([DEFAULT], (*MORE, *PAIR)), *JUDGES]
    return _each_once(specs)


def _each_once(specs: Sequence[AnySpec]) -> list[AnySpec]:
    """A cell that is scored on all bases, or that answers as well, also answers for the same cell without."""
    covered = {key_of(one) for spec in specs if isinstance(spec, Cell) for one in less(spec) if one != spec}
    unique = {key_of(spec): spec for spec in reversed(specs) if key_of(spec) not in covered}
    return list(reversed(unique.values()))


def less(cell: Cell) -> Iterator[Cell]:
    """What a cell's result also says: the same on the core of bases, and without answers; it itself first."""
    for targets in dict.fromkeys((cell.targets, "core")):
        for answered in dict.fromkeys((cell.answered, 0)):
            yield replace(cell, targets=targets, answered=answered)  # type: ignore[arg-type]  # of the two that there are
