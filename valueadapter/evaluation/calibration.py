"""Finds how strongly an adapter should act on a base, on a few labelled examples; trains nothing.

Base and value logits are computed once for each position of the responses, and every scale is tried on them before the
next ones are; so no more than a few positions' are ever held. The loss is convex in the
scale (a log-sum-exp of functions that are linear in it), so the best of a grid has no better one far away.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.artifact.config import RecommendedScale
from valueadapter.demonstrations.responses import Record, batches, response_bytes, scored
from valueadapter.demonstrations.sources import all_checked
from valueadapter.errors import ConfigError
from valueadapter.forward.bounded_logits import pieces
from valueadapter.model.modeling import ValueAdapterForCausalLM

logger = logging.getLogger(__name__)

SCALES = tuple(step / 20 for step in range(31))
"""0 to 1.5 in steps of 0.05."""
_AT_ONCE = 1 << 19
"""Elements that a core's cache holds."""


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
        ConfigError: no examples, one that cannot be scored, a scale that is no finite number, or no tokenizer.
        AdapterNameError: no such adapter, or several to choose from.
    """
    tokenizer = tokenizer or model.base_tokenizer
    if tokenizer is None:
        raise ConfigError("the base's tokenizer is not known; pass tokenizer=AutoTokenizer.from_pretrained(...)")
    if not examples:
        raise ConfigError("there are no examples to calibrate on; expected some with prompt and completion")
    examples = all_checked(examples)
    tried = sorted({0.0, *(float(scale) for scale in scales)})
    if not all(math.isfinite(scale) for scale in tried):
        raise ConfigError(f"scales must be finite numbers; got {list(scales)}")
    name = model.only_adapter(adapter_name)
    nats, alone = torch.zeros(len(tried), dtype=torch.float64), 0.0
    with model.only(name, scale=1.0):
        prefixed = model.base_prefix is not None
        for batch in batches(examples, batch_size):
            inputs, labels = scored(batch, tokenizer, model.device)
            for piece in pieces(model, inputs, labels, value_logits=True):
                value = cast(torch.Tensor, piece.value_logits)
                nats += nats_at_scales(piece.logits - value, value, piece.labels, tried).double().sum(0).cpu()
            if prefixed:  # at 0 the adapter's prefix does not act either
                alone += _base_alone(model, inputs, labels)
            if on_progress is not None:
                on_progress(len(batch))
    if prefixed:
        nats[tried.index(0.0)] = alone
    bits = (nats / math.log(2) / response_bytes(examples)).tolist()
    curve = dict(zip(tried, bits, strict=True))
    best = min(tried, key=lambda scale: curve[scale])
    if best == tried[-1]:
        logger.warning("the best scale is the largest that was tried, %g; a larger one may be better still", best)
    return Calibration(best, curve[best], curve, len(examples))


def _base_alone(model: ValueAdapterForCausalLM, inputs: dict[str, Any], labels: torch.Tensor) -> float:
    """Nats of a batch under the base as it is without adapters."""
    with model.disable_adapter():
        total = 0.0
        for piece in pieces(model, inputs, labels):
            total += float(
                torch.nn.functional.cross_entropy(piece.logits, piece.labels, reduction="none").double().sum()
            )
        return total


def nats_at_scales(
    base_logits: torch.Tensor, value_logits: torch.Tensor, labels: torch.Tensor, scales: Sequence[float]
) -> torch.Tensor:
    """What each label costs under base logits + scale · value logits.

    With p the distribution at the first scale s0 and v the value logits, a token t costs at scale s

        log Σ exp(base + s0 · v) + log Σ p · exp((s - s0) · v) - base[t] - s · v[t]

    so that on an even grid one exponential serves all scales: p · exp((s - s0) · v) is multiplied by exp(step · v).

    Args:
        base_logits: (tokens, vocab).
        value_logits: (tokens, vocab).
        labels: (tokens).
        scales: rising.

    Returns:
        (tokens, scales) in nats, float32.
    """
    size = max(1, _AT_ONCE // base_logits.shape[-1])
    parts = [torch.split(tensor, size) for tensor in (base_logits, value_logits, labels)]
    return torch.cat([_nats(b.float(), v.float(), label, scales) for b, v, label in zip(*parts, strict=True)])


def _nats(base: torch.Tensor, value: torch.Tensor, labels: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    top = value.amax(dim=-1, keepdim=True)
    first = base + scales[0] * value
    log_z = first.logsumexp(-1)
    product, factor, step = (first - log_z[:, None]).exp(), first, 0.0
    totals = [product.sum(-1)]
    for before, scale in itertools.pairwise(scales):
        if not math.isclose(scale - before, step, rel_tol=1e-6):
            step = scale - before
            factor = torch.exp(step * (value - top))
        product *= factor
        totals.append(product.sum(-1))
    total, beyond = torch.stack(totals, dim=1), torch.tensor(scales, device=base.device) - scales[0]
    own = labels[:, None].long()
    found = log_z[:, None] - first.gather(1, own) + total.log() - beyond * (value.gather(1, own) - top)
    # where p has nothing at the likeliest values, the product leaves float32; rare, and then computed the long way
    for row, column in torch.nonzero(total < 1e-30).tolist():
        logits = base[row] + scales[column] * value[row]
        found[row, column] = logits.logsumexp(-1) - logits[labels[row]]
    return found
