"""How a training ends: what base and networks count for on the training base, fitted on what was not trained on.

Training itself is that of base + value logits as they are; here is what the adapter acts with afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import RecommendedWeights, Weights
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training.calibration import calibrate


def with_fitted_weights(
    adapter: ValueAdapter,
    trained: ValueAdapterForCausalLM,
    held_out: Sequence[Any],
    *,
    name: str,
    say: Callable[[str], object],
) -> tuple[ValueAdapter, dict[str, object]]:
    """Records what an adapter should count for on the base that it was trained on.

    Args:
        adapter: as it is recorded.
        trained: the base with the adapter as it was trained, whose weights are what the fitted ones are drawn towards;
            it gives its base away where there is something to fit on.
        held_out: demonstrations that were not trained on; without any, the weights are those of the training.
        name: of the data, for the record.
        say: called with a line.

    Returns:
        The adapter with the record, and what the summary says of it. Bits hold the ends of the responses.
    """
    as_trained = next(iter(trained.weights.values()))
    base = adapter.config.base_model_name_or_path
    if not held_out:
        fingerprint = adapter.config.vocabulary.byte_fingerprint
        record = RecommendedWeights(fingerprint, base, as_trained, name, 0, for_vocabulary=False)
        return adapter.with_config(weights=(record,)), {"weights": f"{as_trained}, as in training"}
    say(f"fitting the weights for the training base on {len(held_out):,} demonstrations that were held out")
    model = on_training_base(adapter, trained.unload(), trained.base_tokenizer)
    found = calibrate(model, held_out, default={"default": as_trained})
    record = found.recommended(model, base=base, data=name)
    how = "fitted" if found.fitted else "as in training: fitting gains nothing that can be relied on"
    return adapter.with_config(weights=(record,)), {
        "weights": f"{record.weights}, {how}",
        "held_out_demonstrations": len(held_out),
        "held_out_total_bits_per_byte_base": round(found.base_bits_per_byte, 4),
        "held_out_total_bits_per_byte_base_and_adapter": round(found.bits_per_byte, 4),
    }


def on_training_base(
    adapter: ValueAdapter, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> ValueAdapterForCausalLM:
    """The training base with the adapter as it is recorded for it, wherever that base lies here."""
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    model.add_adapter(adapter, "default")
    for one in adapter.config.weights:
        if one.base == adapter.config.base_model_name_or_path:
            weights: Weights = one.weights
            model.set_weights("default", weights)
            model.set_scale("default", one.scale)
    model.eval()
    return model
