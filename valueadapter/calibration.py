"""Finds how strongly an adapter should act on a base, on a few labelled examples; trains nothing.

Base and value logits of the examples are computed once; every scale is then tried on them. The loss is convex in the
scale (a log-sum-exp of functions that are linear in it), so the best of a grid has no better one far away.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.config import RecommendedScale
from valueadapter.data import IGNORED
from valueadapter.errors import ConfigError
from valueadapter.modeling import ValueAdapterForCausalLM
from valueadapter.scoring import Record, batches, response_bytes, scored

logger = logging.getLogger(__name__)

SCALES = tuple(step / 20 for step in range(31))
"""0 to 1.5 in steps of 0.05."""


@dataclass(frozen=True)
class Calibration:
    """What the examples say about scales."""

    scale: float
    """The best of those tried."""
    bits_per_byte: float
    """Bits per UTF-8 byte of the responses at that scale."""
    curve: dict[float, float]
    """Scale -> bits per byte, for every scale that was tried; scale 0 is the base alone."""
    num_examples: int
    """Examples it was measured on."""

    def recommended(self, model: ValueAdapterForCausalLM, *, base: str, data: str) -> RecommendedScale:
        """The record of it for an adapter's configuration.

        Args:
            model: what was calibrated.
            base: Hub ID or name of its base.
            data: Hub ID or name of the examples.
        """
        return RecommendedScale(
            base_fingerprint=model.base_fingerprint(),
            base=base,
            scale=self.scale,
            base_bits_per_byte=self.curve[0.0],
            adapted_bits_per_byte=self.bits_per_byte,
            data=data,
            num_examples=self.num_examples,
        )


@torch.no_grad()
def calibrate_scale(
    model: ValueAdapterForCausalLM,
    examples: Sequence[Record],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter_name: str | None = None,
    scales: Sequence[float] = SCALES,
    batch_size: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Finds the scale at which base + adapter predicts the responses of the examples best.

    The other adapters of the model stay out of it. The model is left as it was: `set_scale` takes the result up.

    Args:
        model: a base with the adapter attached.
        examples: labelled examples that are neither trained on nor held out for evaluation; dozens suffice.
        tokenizer: the base's tokenizer; the model's own by default.
        adapter_name: which adapter, where several are attached.
        scales: what to try; 0, the base alone, is always among them.
        batch_size: rows per forward pass.
        on_progress: called with the number of examples done since the last call.

    Raises:
        ConfigError: no examples, a scale that is no finite number, or no tokenizer.
        AdapterNameError: no such adapter, or several to choose from.
    """
    tokenizer = tokenizer or model.base_tokenizer
    if tokenizer is None:
        raise ConfigError("the base's tokenizer is not known; pass tokenizer=AutoTokenizer.from_pretrained(...)")
    if not examples:
        raise ConfigError("there are no examples to calibrate on; expected some with prompt and completion")
    tried = sorted({0.0, *(float(scale) for scale in scales)})
    if not all(math.isfinite(scale) for scale in tried):
        raise ConfigError(f"scales must be finite numbers; got {list(scales)}")
    name = model.only_adapter(adapter_name)
    nats = torch.zeros(len(tried), dtype=torch.float64)
    with model.only(name, scale=1.0):
        for batch in batches(examples, batch_size):
            inputs, labels = scored(batch, tokenizer, model.device)
            out = model(**inputs, use_cache=False, output_value_logits=True, return_dict=True)
            here = labels != IGNORED
            value = out.value_logits[:, :-1][here].float()
            base = out.logits[:, :-1][here].float() - value
            for index, scale in enumerate(tried):
                logits = base + scale * value
                if scale == 0 and model.base_prefix is not None:  # at 0 the adapter's prefix does not act either
                    with model.disable_adapter():
                        logits = model(**inputs, use_cache=False, return_dict=True).logits[:, :-1][here].float()
                total = torch.nn.functional.cross_entropy(logits, labels[here], reduction="sum")
                nats[index] += total.double().cpu()
            if on_progress is not None:
                on_progress(len(batch))
    bits = (nats / math.log(2) / response_bytes(examples)).tolist()
    curve = dict(zip(tried, bits, strict=True))
    best = min(tried, key=lambda scale: curve[scale])
    if best == tried[-1]:
        logger.warning("the best scale is the largest that was tried, %g; a larger one may be better still", best)
    return Calibration(best, curve[best], curve, len(examples))
