"""Measures one arm, a model as it is, on held-out examples, with the library's own evaluation; knows no cells."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from studies.store import Result
from valueadapter import ValueAdapterForCausalLM
from valueadapter.demonstrations.responses import Record
from valueadapter.evaluation.metrics import evaluate
from valueadapter.evaluation.score import Score

_KEPT = {
    "bits_per_byte": "bits_per_byte",
    "total_bits_per_byte": "total_bits_per_byte",
    "first_token_bits": "first",
    "middle_token_bits": "middle",
    "last_token_bits": "last",
    "ends": "ends",
    "exact_match": "exact_match",
}


@dataclass(frozen=True)
class Examples:
    """What is scored, in which way, the same for every arm."""

    held_out: tuple[Record, ...]
    """Demonstrations that nothing was trained on or chosen by."""
    calibration: tuple[Record, ...]
    """Those that weights are fitted on."""
    stop_strings: tuple[str, ...] = ()
    """What ends an answer of any arm, besides the model's own tokens."""
    answered: int = 0
    """So many of the held-out ones are also answered, greedily."""
    longest: int = 16
    """Tokens of an answer at most."""


def measured(model: Any, tokenizer: Any, examples: Examples) -> Result:
    """An arm on the held-out examples.

    Returns:
        `bits_per_byte` of the text; `total_bits_per_byte` with the end of each response, by whatever ends one; bits per
        token of the `first`, `middle` and `last` token; `examples`, the bits of each with its end; and, where some are
        answered, `ends` and `exact_match`, shares of these.
    """
    parts = examples.held_out[: examples.answered], examples.held_out[examples.answered :]
    scores = [
        evaluate(
            model,
            tokenizer,
            part,
            generate=part is parts[0],
            max_new_tokens=examples.longest,
            stop_strings=examples.stop_strings,
        )
        for part in parts
        if part
    ]
    score = Score(tuple(example for one in scores for example in one.examples))
    found: Result = {
        name: round(value, 5) for metric, name in _KEPT.items() if (value := score.value(metric)) is not None
    }
    return found | {"examples": [round(bits, 2) for bits, _ in _pairs(score)]}


def behind(model: ValueAdapterForCausalLM, prefix: str | None) -> AbstractContextManager[None]:
    """Within the block a base without adapter stands behind a prefix, or is as it is."""
    return nullcontext() if prefix is None else model.prefixed_base(prefix)


def total_bits(model: Any, tokenizer: Any, records: Sequence[Record], stop_strings: Sequence[str]) -> float:
    """Bits per byte of some records, their ends included."""
    score = evaluate(model, tokenizer, records, generate=False, stop_strings=stop_strings)
    return round(score.value("total_bits_per_byte") or 0.0, 5)


def _pairs(score: Score) -> list[tuple[float, int]]:
    return [pair for pair in score.pairs("total_bits_per_byte") if pair is not None]
