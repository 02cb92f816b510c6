"""One cell of the study: everything that decides a result, its key, and the command that computes it alone.

Knows no models and runs nothing; `studies.running` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

RECIPE_VERSION = 2
"""Raise it when code alters what a cell's settings mean, the recipe's default weights or the grid of weights among it:
older results are then computed again."""

Penalty = Literal["none", "l1", "l2", "entropy"]
PrefixPolicy = Literal["first", "next", "short"]
PrefixUse = Literal["both", "scoring", "subtracted", "all", "all_by_the_body"]
Source = Literal["trained", "expert_minus_base"]
Spec = TypeVar("Spec", "Cell", "Reference", "Judge", "Experts", "Stack")


@dataclass(frozen=True)
class Cell:
    """An adapter, how it is made, and what it is scored on."""

    task: str = "jeopardy"
    """Name of the demonstrations."""
    donor: str = "smollm2_derived"
    """The base that is trained on."""
    other_bases: tuple[str, ...] = ()
    """More training bases of its vocabulary, mixed per batch."""
    num_demonstrations: int = 400
    """Of the training split, in its order."""
    epochs: int = 2
    """How often each is seen."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    batch_size: int = 8
    """Demonstrations per step."""
    num_layers: int | None = None
    """First N layers of the donor, of a full network; none keeps all."""
    initialisation: str = "zero_head"
    """How the network starts: zero_head, pretrained, random."""
    connection: str = "residual"
    """What the network reads: residual, cascade, cascade_with_text."""
    penalty: Penalty = "none"
    """Penalty on the value logits."""
    penalty_coefficient: float = 0.0
    """Its weight."""
    centred: bool = True
    """Whether the penalty ignores the value logits' mean."""
    dropout: float = 0.0
    """Attention dropout in the network."""
    label_smoothing: float = 0.0
    """As in `TrainingArguments`."""
    lora_rank: int | None = 16
    """A LoRA network of this rank; none trains a full network."""
    prefix_examples: int = 8
    """Demonstrations that the base reads before the prompt."""
    prefix_policy: PrefixPolicy = "first"
    """Which: the first of the training split, the next as many, or its shortest."""
    prefix_use: PrefixUse = "all"
    """Who reads it: `scoring` the scored bases; `both` also the base in training; `subtracted` besides the scored bases
    the network that is subtracted from them; `all` also the network that is added, in training, too; `all_by_the_body`
    the same, but what stands in for the prefix there are the keys and values of the body without its LoRA."""
    content_weight: float = 1.0
    """Weight of the value logits, centred, of tokens that are content: all but those that responses share."""
    network: Source = "trained"
    """A trained network, or +1 the donor fine-tuned, -1 the donor."""
    targets: Literal["core", "all"] = "core"
    """Which bases it is scored on."""
    held_out: int = 120
    """Held-out demonstrations that are scored."""
    calibration: int = 60
    """Demonstrations of the calibration split that weights are fitted on."""
    answered: int = 0
    """Held-out demonstrations that are answered as well, to see whether answers end."""
    seed: int = 0
    """Of weights, order and dropout."""

    @property
    def cost(self) -> float:
        """A rough measure of its work, in demonstrations through one layer (a target takes a third of a training)."""
        depth = 14 if self.num_layers is None else self.num_layers + 3
        longer = {"gsm8k": 3.0, "mbpp": 3.0}.get(self.task, 1.0)
        trained = 0 if self.network != "trained" else self.num_demonstrations * self.epochs
        return longer * depth * (trained + (self.held_out + self.calibration) * (2 if self.targets == "all" else 1))


@dataclass(frozen=True)
class Reference:
    """A target fine-tuned directly with LoRA on the same demonstrations: what bounds the gain."""

    task: str = "jeopardy"
    """Name of the demonstrations."""
    target: str = "smollm2_derived"
    """The base that is fine-tuned."""
    num_demonstrations: int = 400
    """Of the training split, in its order."""
    epochs: int = 2
    """How often each is seen."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    batch_size: int = 8
    """Demonstrations per step."""
    lora_rank: int = 16
    """Rank of the LoRA on all linear layers of the body."""
    prefix_examples: int = 0
    """Demonstrations that it reads before the prompt, in training, too."""
    held_out: int = 120
    """Held-out demonstrations that are scored."""
    calibration: int = 60
    """Demonstrations of the calibration split, scored to choose among references."""
    answered: int = 60
    """As `Cell.answered`."""
    seed: int = 0
    """Of weights and order."""

    @property
    def cost(self) -> float:
        """As `Cell.cost`."""
        longer = {"gsm8k": 3.0, "mbpp": 3.0}.get(self.task, 1.0)
        return longer * 25 * self.num_demonstrations * self.epochs


@dataclass(frozen=True)
class Judge:
    """Questions with a checker, answered in each way: greedy, sampled, and the best of n by the adapter's score."""

    task: str = "chain_sum"
    """Of `studies.material.reasoning_tasks`."""
    donor: str = "smollm2_derived"
    """The base that is trained on."""
    target: str = "smollm2"
    """The base that answers."""
    num_demonstrations: int = 400
    """Of the training split, in its order."""
    epochs: int = 2
    """How often each is seen."""
    prefix_examples: int = 8
    """Demonstrations that the base reads before the prompt."""
    n: int = 8
    """Answers sampled to each question."""
    temperature: float = 0.8
    """Of the sampling."""
    held_out: int = 60
    """Questions that are answered."""
    calibration: int = 60
    """Questions that choose the scale."""
    seed: int = 0
    """Of weights, order and sampling."""

    @property
    def cost(self) -> float:
        """As `Cell.cost`."""
        return 14 * (self.num_demonstrations * self.epochs + self.held_out * self.n * 4)


@dataclass(frozen=True)
class Experts:
    """What weights are worth on one base with the default adapter: fixed, chosen by a gate, by hindsight."""

    task: str = "jeopardy"
    """Name of the demonstrations."""
    target: str = "smollm2"
    """The base."""
    prefix_use: PrefixUse = Cell.prefix_use
    """As `Cell.prefix_use`."""

    @property
    def cost(self) -> float:
        """As `Cell.cost`."""
        return 4000


@dataclass(frozen=True)
class Stack:
    """The default adapters of several tasks on one base, each alone and all together."""

    tasks: tuple[str, ...] = ("jeopardy", "natural_questions")
    """Names of the demonstrations."""
    target: str = "smollm2"
    """The base."""
    prefix_use: PrefixUse = Cell.prefix_use
    """As `Cell.prefix_use`."""

    @property
    def cost(self) -> float:
        """As `Cell.cost`."""
        return 8000


AnySpec = Cell | Reference | Judge | Experts | Stack
VERBS: dict[type, str] = {
    Cell: "cell",
    Reference: "reference",
    Judge: "judge",
    Experts: "experts",
    Stack: "stack",
}


def settings(spec: AnySpec) -> dict[str, Any]:
    """The settings as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    return values


def from_settings(kind: type[Spec], values: Mapping[str, Any]) -> Spec:
    """What `settings` gave as a cell or reference again."""
    make: Any = kind
    found: Spec = make(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    return found


def key_of(spec: AnySpec) -> str:
    """16 hex digits that stand for the settings and the version of the recipe, whatever the order of the fields.

    All settings count, defaults as well: another default is another cell.
    """
    text = json.dumps([RECIPE_VERSION, VERBS[type(spec)], settings(spec)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def command_of(spec: AnySpec) -> str:
    """The command that computes it alone: what differs from the defaults."""
    words = [f"python -m studies {VERBS[type(spec)]}"]
    for name, value in settings(spec).items():
        if value == _default(type(spec), name):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
        elif isinstance(value, list):
            words.append(" ".join([flag, *value]))
        else:
            words.append(f"{flag} {'none' if value is None else value}")
    return " ".join(words)


def _default(kind: type, name: str) -> Any:
    return settings(kind())[name]


def add_flags(parser: argparse.ArgumentParser, kind: type[Spec]) -> None:
    """One flag for each setting, with the field's default."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, flag = hints[field.name], f"--{field.name.replace('_', '-')}"
        if hint is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        elif get_origin(hint) is tuple:
            parser.add_argument(flag, nargs="*", default=field.default)
        elif get_origin(hint) is Literal:
            parser.add_argument(flag, choices=get_args(hint), default=field.default)
        else:
            parser.add_argument(flag, type=_parser_of(hint), default=field.default)


def from_flags(kind: type[Spec], parsed: argparse.Namespace) -> Spec:
    """The cell or reference that the flags describe."""
    return from_settings(kind, {field.name: getattr(parsed, field.name) for field in dataclasses.fields(kind)})


def parse(kind: type[Spec], words: Sequence[str]) -> Spec:
    """The cell or reference of a command's flags."""
    parser = argparse.ArgumentParser()
    add_flags(parser, kind)
    return from_flags(kind, parser.parse_args(words))


def _parser_of(hint: Any) -> Any:
    if hint in (int, float, str):
        return hint

    def optional_int(word: str) -> int | None:
        return None if word == "none" else int(word)

    return optional_int
