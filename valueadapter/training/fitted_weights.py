"""How a training ends: what base and networks count for on the training base, fitted on what was not trained on.

Training itself is that of base + value logits as they are; here is what the adapter acts with afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.causal_lm import longest_text
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import RecommendedWeights
from valueadapter.demonstrations.responses import response_bytes
from valueadapter.demonstrations.tokenized import encode
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training.arguments import ValueTrainingArguments
from valueadapter.training.calibration import calibrate


def as_trained_on_its_base(adapter: ValueAdapter, trained: ValueAdapterForCausalLM, *, name: str) -> ValueAdapter:
    """Records that on the training base an adapter counts for what it counted for in its training.

    Args:
        adapter: as it is recorded.
        trained: the base with the adapter as it was trained.
        name: of the data, for the record.
    """
    config, weights = adapter.config, next(iter(trained.weights.values()))
    fingerprint = config.vocabulary.byte_fingerprint
    record = RecommendedWeights(fingerprint, config.base_model_name_or_path, weights, name, 0, for_vocabulary=False)
    return adapter.with_config(weights=(record,))


def with_fitted_weights(
    adapter: ValueAdapter,
    trained: ValueAdapterForCausalLM,
    held_out: Sequence[Any],
    arguments: ValueTrainingArguments,
    *,
    say: Callable[[str], object],
    on_progress: Callable[[str, int, int], object] | None = None,
) -> tuple[ValueAdapter, dict[str, object]]:
    """Records what an adapter should count for on the base that it was trained on.

    Args:
        adapter: with the record of what it counted for in its training, which the fitted weights are drawn towards.
        trained: the base with the adapter as it was trained; it gives its base away where there is something to fit on.
        held_out: demonstrations that were not trained on; what training would have cut, or the base cannot read whole,
            is left out. Without any, the weights are those of the training.
        arguments: of the training.
        say: called with a line.
        on_progress: called with what is done, how much of it is, and how much there is.

    Returns:
        The adapter with the record, and what the summary says of it. Bits hold the ends of the responses.
    """
    (record,) = adapter.config.weights
    examples = _readable(held_out, adapter, trained, arguments)
    if not examples:
        return adapter, {"weights": f"{record.weights}, as in training"}
    say(f"fitting the weights for the training base on {len(examples):,} demonstrations that were held out")
    model = on_training_base(adapter, trained.unload(), trained.base_tokenizer)
    size = min(16, arguments.per_device_train_batch_size)
    count = None if on_progress is None else _counted(on_progress, len(examples))
    found = calibrate(model, examples, default={"default": record.weights}, batch_size=size, on_progress=count)
    fitted = found.recommended(model, base=record.base, data=record.data)
    how = "fitted" if found.fitted else "as in training: fitting gains nothing that can be relied on"
    return adapter.with_config(weights=(fitted,)), {
        "weights": f"{fitted.weights}, {how}",
        "held_out_demonstrations": len(examples),
        "held_out_loss": round(found.loss, 4),
        "held_out_total_bits_per_byte_base": round(found.base_bits_per_byte, 4),
        "held_out_total_bits_per_byte_base_and_adapter": round(found.bits_per_byte, 4),
    }


def _counted(on_progress: Callable[[str, int, int], object], total: int) -> Callable[[int], None]:
    """Tells of examples, which are read several times."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        before = (done - 1) // total
        again = f", again ({before})" if before else ""
        on_progress(f"fitting the weights{again}", done - before * total, total)

    return count


def _readable(
    held_out: Sequence[Any],
    adapter: ValueAdapter,
    trained: ValueAdapterForCausalLM,
    arguments: ValueTrainingArguments,
) -> list[Any]:
    """The demonstrations that have a response, and that the base reads whole behind its prefix."""
    prefix, tokenizer = adapter.config.base_prefix, adapter.tokenizer
    lead = 0 if prefix is None else len(prefix_ids(prefix, tokenizer))
    models = [trained.base, *adapter.networks]
    limits = [limit - lead for model in models if (limit := longest_text(model)) is not None]
    limits += [arguments.max_length] if arguments.max_length else []
    most = min(limits, default=None)
    return [
        record
        for record in held_out
        if response_bytes([record]) and (most is None or len(encode(record, tokenizer)["input_ids"]) <= most)
    ]


def on_training_base(
    adapter: ValueAdapter, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> ValueAdapterForCausalLM:
    """The training base with the adapter as it is recorded for it, wherever that base lies here."""
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    model.add_adapter(adapter, "default")
    for one in adapter.config.weights:
        if one.base == adapter.config.base_model_name_or_path:
            model.set_weights("default", one.weights, scale=one.scale)
    model.eval()
    return model
