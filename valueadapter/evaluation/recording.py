"""Puts a report into an adapter: records, and what its card shows of them; measures and draws nothing itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.card_results import MOST_PROMPTS, CardResults
from valueadapter.demonstrations.messages import text_of
from valueadapter.demonstrations.record_checks import carries_loss
from valueadapter.demonstrations.responses import Record, response_texts, shape_of
from valueadapter.evaluation.plot import draw
from valueadapter.evaluation.report import HeldOut, Report


def recorded(adapter: ValueAdapter, report: Report, *, prompts: bool = True) -> ValueAdapter:
    """The adapter with what was measured of it, in place of what was of the same bases and held-out set.

    Its card then shows a table and, where matplotlib is installed, a picture.

    Args:
        adapter: the adapter.
        report: what was measured.
        prompts: also show the first three held-out prompts with the answers to them, which are then public wherever
            the adapter is.
    """
    made = adapter.with_config(evaluation=report.merged_into(adapter.config.evaluation))
    new = report.on_card(prompts=prompts)
    taken = {(one.base, one.data) for one in new}
    earlier = adapter.card_results.true_to(adapter.config.evaluation).results
    results = (*(one for one in earlier if (one.base, one.data) not in taken), *new)
    picture = draw(results) if importlib.util.find_spec("matplotlib") is not None else None
    made.card_results = CardResults(results, picture, adapter.card_results.description)
    return made


def first_prompts(held_out: Iterable[Record]) -> tuple[HeldOut, ...]:
    """The first three of the records that ask something, with the answers that they hold."""
    return tuple(one for one, _ in zip(_prompts(held_out), range(MOST_PROMPTS), strict=False))


def _prompts(held_out: Iterable[Record]) -> Iterator[HeldOut]:
    for index, record in enumerate(held_out):
        shape = shape_of(record)
        if shape == "prompt":
            yield HeldOut(index, record["prompt"], record["completion"])
        elif shape == "messages":
            turns = record["messages"]
            last = max(place for place, turn in enumerate(turns) if carries_loss(turn))
            asked = [f"{turn['role']}: {text_of(turn.get('content'))}" for turn in turns[:last]]
            yield HeldOut(index, "\n".join(asked), response_texts(record)[-1])
