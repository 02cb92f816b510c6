"""Held-out demonstrations under a base and under base + adapter, for the summary of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from valueadapter.demonstrations.responses import Record
from valueadapter.evaluation.metrics import evaluate
from valueadapter.model.modeling import ValueAdapterForCausalLM


def bits_per_byte(
    model: ValueAdapterForCausalLM,
    records: Sequence[Record],
    *,
    on_progress: Callable[[str, int, int], object] | None = None,
) -> dict[str, float]:
    """Bits per byte of the responses, under the base alone and with the adapter as it stands.

    Args:
        model: a base with one adapter.
        records: held-out demonstrations.
        on_progress: called with what is done, how much of it is, and how much there is.
    """

    def counted(what: str) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if on_progress is not None:
                on_progress(what, done, len(records))

        return count

    tokenizer = model.adapters[model.only_adapter()].tokenizer
    how: dict[str, Any] = {"generate": False}
    with model.disable_adapter():
        alone = evaluate(model, tokenizer, records, on_progress=counted("base alone"), **how).bits_per_byte
    adapted = evaluate(model, tokenizer, records, on_progress=counted("base + adapter"), **how).bits_per_byte
    return {
        "held_out_bits_per_byte_base": round(alone, 4),
        "held_out_bits_per_byte_base_and_adapter": round(adapted, 4),
    }
