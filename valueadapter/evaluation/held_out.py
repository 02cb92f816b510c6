"""Held-out demonstrations under a base and under base + adapter, for the summary of a run."""

from __future__ import annotations

from collections.abc import Sequence

from valueadapter.demonstrations.responses import Record
from valueadapter.evaluation.metrics import evaluate
from valueadapter.model.modeling import ValueAdapterForCausalLM


def bits_per_byte(model: ValueAdapterForCausalLM, records: Sequence[Record]) -> dict[str, float]:
    """Bits per byte of the responses, under the base alone and with the adapter as it stands.

    Args:
        model: a base with one adapter.
        records: held-out demonstrations.
    """
    tokenizer = model.adapters[model.only_adapter()].tokenizer
    with model.disable_adapter():
        alone = evaluate(model, tokenizer, records, generate=False).bits_per_byte
    adapted = evaluate(model, tokenizer, records, generate=False).bits_per_byte
    return {
        "held_out_bits_per_byte_base": round(alone, 4),
        "held_out_bits_per_byte_base_and_adapter": round(adapted, 4),
    }
