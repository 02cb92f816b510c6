"""Finds what base, networks and end of text should count for on a base, on a few labelled examples; trains nothing.

Each model is one expert of a product (Hinton 2002), and the loss is convex in one weight for each, so fitting them is
as safe as fitting one scale ("Weighted Product of Experts", EMNLP Findings 2025). The weights are drawn towards the
adapter's own default ones, and cross-validation decides whether they are taken. What counts is the whole answer, the
token that ends it included. Logits are gone through a few positions at a time. Where a vocabulary has several tokens
that end a text and the base's is another, what each network says of the end is carried over by itself, which is close
to what the sum says of it, and not the same.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.artifact.config import RecommendedWeights, Weights, same_base
from valueadapter.artifact.config.number import whole
from valueadapter.demonstrations.bootstrap import Bootstrap
from valueadapter.demonstrations.responses import Record, response_bytes, response_texts, same_demonstration
from valueadapter.demonstrations.sources import all_checked
from valueadapter.errors import AdapterNameError, ConfigError
from valueadapter.forward.stops import end_tokens
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training import newton
from valueadapter.training.expert_logits import Reading, nats_of_base
from valueadapter.training.newton import Prior, Problem, Tokens

logger = logging.getLogger(__name__)

SCALES = tuple(step / 4 for step in range(7))
"""0 to 1.5 in steps of 0.25."""
_AT_ONE = SCALES.index(1.0)
FOLDS = 5
DEVIATION = 0.25
"""How far a weight is expected from its default: the prior's standard deviation."""
END_DEVIATION = 2.0
"""The same for the end of text, in nats."""


@dataclass(frozen=True)
class Calibration:
    """What the examples say. Bits are per UTF-8 byte of the responses, the tokens that end them included."""

    weights: Mapping[str, Weights]
    """Adapter -> what its summands should count for at scale 1: the fitted weights, or the default ones where fitting
    is not believed."""
    fitted: bool
    """Whether they are fitted."""
    base_bits_per_byte: float
    """The base alone."""
    default_bits_per_byte: float
    """Base + adapters at their default weights."""
    bits_per_byte: float
    """Base + adapters at these weights."""
    expected_gain: float | None
    """Bits that an example which was not fitted on costs less at fitted weights than at the default ones, whether they
    are taken or not, by cross-validation; None with a single example."""
    expected_gain_interval: tuple[float, float] | None
    """95 % interval of it, from resampled examples."""
    curve: Mapping[float, float]
    """Scale -> bits at these weights; scale 0 is the base alone, 1 the weights as they are."""
    num_examples: int
    """Examples it was measured on."""
    loss: float
    """Cross-entropy at these weights, nats per response token, ends among them."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave, perhaps through JSON."""
        weights = {
            name: Weights(one["base"], tuple(one["networks"]), one["end"]) for name, one in values["weights"].items()
        }
        interval = values["expected_gain_interval"]
        curve = {float(scale): bits for scale, bits in values["curve"].items()}
        interval = None if interval is None else tuple(interval)
        return cls(**{**values, "weights": weights, "curve": curve, "expected_gain_interval": interval})

    def recommended(
        self, model: ValueAdapterForCausalLM, *, base: str, data: str, adapter_name: str | None = None
    ) -> RecommendedWeights:
        """The record of it for an adapter's configuration.

        Args:
            model: what was calibrated.
            base: Hub ID or name of its base.
            data: Hub ID or name of the examples.
            adapter_name: which adapter, where several were calibrated together.
        """
        name = model.only_adapter(adapter_name)
        low, high = self.expected_gain_interval or (None, None)
        return RecommendedWeights(
            base_fingerprint=model.base_fingerprint(name),
            base=base,
            weights=self.weights[name],
            data=data,
            num_examples=self.num_examples,
            base_bits_per_byte=self.base_bits_per_byte,
            adapted_bits_per_byte=self.bits_per_byte,
            expected_gain=self.expected_gain,
            expected_gain_low=low,
            expected_gain_high=high,
            for_vocabulary=not same_base(base, model.adapters[name].config.base_model_name_or_path),
        )


@torch.no_grad()
def calibrate(
    model: ValueAdapterForCausalLM,
    examples: Sequence[Record],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter_name: str | Sequence[str] | None = None,
    default: Mapping[str, Weights] | None = None,
    batch_size: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Finds the weights at which base + adapter predicts the responses of the examples best, ends included.

    Other adapters of the model stay out of it, and the model is left as it was: `set_weights` takes the result up. The
    weights are drawn towards the adapter's default ones (a normal prior), so few examples move them little. They are
    taken where cross-validation expects a gain of more than its standard error; the weight of the end of text is fitted
    only where it gains there.

    Args:
        model: a base with the adapter attached.
        examples: labelled examples that are neither trained on nor held out for evaluation; dozens suffice.
        tokenizer: the base's tokenizer; the model's own by default.
        adapter_name: which adapter, where several are attached; several are fitted together, and share what base and
            end of text count for.
        default: adapter -> what its weights are drawn towards and compared with; where it has no entry, what it records
            for this base, or its default ones.
        batch_size: rows per forward pass.
        on_progress: called with the number of examples that the models have read since the last call; they read all of
            them once, or again for each step where their logits are more than `expert_logits.ON_DISK` or a quarter
            of what is free in the temporary directory.

    Raises:
        ConfigError: no examples, one that cannot be scored, or no tokenizer.
        AdapterNameError: no such adapter, or several to choose from.
    """
    tokenizer = tokenizer or model.base_tokenizer
    if tokenizer is None:
        raise ConfigError("the base's tokenizer is not known; pass tokenizer=AutoTokenizer.from_pretrained(...)")
    if not examples:
        raise ConfigError("there are no examples to calibrate on; expected some with prompt and completion")
    examples = all_checked(examples)
    if adapter_name is None or isinstance(adapter_name, str):
        names: tuple[str, ...] = (model.only_adapter(adapter_name),)
    else:
        names = tuple(adapter_name)
    for name in {*names, *(default or ())}:
        model.attached.get(name)
    if not names or len(set(names)) != len(names):
        raise AdapterNameError(f"expected adapters to calibrate, each named once; got {list(names)}")
    batch_size = whole("batch_size", batch_size, least=1)
    if not response_bytes(examples):
        raise ConfigError("no response of the examples has any text, so there is nothing to calibrate on")
    answers = [text for example in examples for text in response_texts(example)]
    ends = end_tokens(model.base, tokenizer, _stop_strings(model, names), width=_width(model), answers=answers)
    stops = end_tokens(model.base, tokenizer, (), width=_width(model))
    reading = Reading(model, names, examples, tokenizer, batch_size, on_progress)
    with reading, model.attached.scoped(names, scales=dict.fromkeys(names, 1.0)):
        prefixed = model.base_prefix is not None
        folds = _folds(examples)
        problem = Problem(reading.tokens, folds, torch.tensor(ends), torch.tensor(stops))
        chosen = _chosen(problem, _defaults(model, names, default or {}), examples)
    size = math.log(2) * response_bytes(examples)
    curve = {scale: nats / size for scale, nats in zip(SCALES, chosen.curve, strict=True)}
    if prefixed:  # at 0 the adapter's prefix does not act either
        curve[0.0] = nats_of_base(reading, problem) / size
    return Calibration(
        weights=_of_adapters(model, names, chosen.weights),
        fitted=chosen.fitted,
        base_bits_per_byte=curve[0.0],
        default_bits_per_byte=chosen.default_nats / size,
        bits_per_byte=curve[1.0],
        expected_gain=chosen.gain,
        expected_gain_interval=chosen.interval,
        curve=curve,
        num_examples=len(examples),
        loss=chosen.curve[_AT_ONE] / chosen.num_tokens,
    )


def _folds(examples: Sequence[Record]) -> torch.Tensor:
    """(examples,) the fold of each; a demonstration that occurs again is in the fold where it was."""
    numbers: dict[str, int] = {}
    each = [numbers.setdefault(same_demonstration(one), len(numbers)) for one in examples]
    return torch.tensor(each) % FOLDS


# -- the weights -------------------------------------------------------------------------------------------------------
def _defaults(model: ValueAdapterForCausalLM, names: Sequence[str], given: Mapping[str, Weights]) -> list[torch.Tensor]:
    """Default weights in one vector, base, every network, end: of all adapters, and if they are several of each."""
    scopes = [names, *([(name,) for name in names] if len(names) > 1 else [])]
    own = {name: given.get(name) or _at_scale(*model.recommended_weights(name)) for name in names}
    return [_default(own, scope) for scope in scopes]


def _at_scale(own: Weights, scale: float) -> Weights:
    """Weights that do at scale 1 what others do at another scale."""
    networks = tuple(scale * weight for weight in own.networks)
    return Weights(1 + scale * (own.base - 1), networks, scale * own.end)


def _default(own: Mapping[str, Weights], acting: Sequence[str]) -> torch.Tensor:
    """Default weights of some adapters among several, the others' networks at 0."""
    base = 1 + sum(own[name].base - 1 for name in acting)
    end = sum(own[name].end for name in acting)
    networks = [weight if name in acting else 0.0 for name, each in own.items() for weight in each.networks]
    return torch.tensor([base, *networks, end], dtype=torch.float64)


def _of_adapters(model: ValueAdapterForCausalLM, names: Sequence[str], weights: torch.Tensor) -> dict[str, Weights]:
    """One vector as the weights of each adapter; what is common goes in equal shares to those that have a part."""
    base, *rest, end = weights.tolist()
    counts = [len(model.adapters[name].networks) for name in names]
    networks = dict(zip(names, (tuple(some) for some in _cut(rest, counts)), strict=True))
    acting = [name for name in names if any(networks[name])] or list(names)
    share = {name: 1 / len(acting) if name in acting else 0.0 for name in names}
    return {name: Weights(1 + share[name] * (base - 1), networks[name], share[name] * end) for name in names}


def _cut(values: Sequence[float], counts: Sequence[int]) -> Iterator[Sequence[float]]:
    begin = 0
    for count in counts:
        yield values[begin : begin + count]
        begin += count


class _Chosen(NamedTuple):
    """What is taken, in nats of all examples together."""

    weights: torch.Tensor
    fitted: bool
    default_nats: float
    curve: list[float]
    num_tokens: int
    gain: float | None
    """Bits per byte."""
    interval: tuple[float, float] | None


def _priors(defaults: Sequence[torch.Tensor]) -> list[Prior]:
    """Around each default without and with a weight for the end; a network that a default leaves out stays out."""
    found = []
    for default in defaults:
        narrow = torch.where(default != 0, DEVIATION, 0.0).to(default)
        narrow[0], narrow[-1] = DEVIATION, 0.0
        wide = narrow.clone()
        wide[-1] = END_DEVIATION
        found += [Prior(default, narrow), Prior(default, wide)]
    return found


def _chosen(problem: Problem, defaults: Sequence[torch.Tensor], examples: Sequence[Record]) -> _Chosen:
    """Fits around each default, with and without the end's weight, and takes what cross-validation believes.

    Args:
        problem: the examples' tokens.
        defaults: of all adapters together, and where there are several of each alone.
        examples: the same examples.
    """
    priors = _priors(defaults)
    fits = newton.fit(problem, priors)
    apart = [newton.left_out(prior, one) for prior, one in zip(priors, fits, strict=True)]
    nats = [one.nats_at_mean for one in fits[::2]]
    default = min(range(len(defaults)), key=nats.__getitem__)
    if int(problem.fold_of.max()) == 0:  # a single one, perhaps several times
        curve, count = _curve(problem, defaults[default])
        return _Chosen(defaults[default], False, curve[_AT_ONE], curve, count, None, None)
    before, *after = _validated(problem, defaults[default], apart, len(examples))
    gains = [before - one for one in after]
    # the end's weight only where it gains beside the same fit without it
    kept = [row + 1 if _believed(gains[row + 1] - gains[row]) else row for row in range(0, len(gains), 2)]
    best = max(kept, key=lambda row: float(gains[row].sum()))
    sizes = [response_bytes([one]) for one in examples]
    pairs = [(float(gain) / math.log(2), size) for gain, size in zip(gains[best], sizes, strict=True)]
    bootstrap = Bootstrap(len(examples))
    interval = bootstrap.interval(bootstrap.ratios(pairs))
    gain = sum(bits for bits, _ in pairs) / max(1, sum(sizes))
    fitted = _believed(gains[best]) and float(fits[best].loss.nats.sum()) <= nats[default]
    taken = fits[best].weights if fitted else defaults[default]
    curve, count = _curve(problem, taken)
    return _Chosen(taken, fitted, nats[default] if fitted else curve[_AT_ONE], curve, count, gain, interval)


def _believed(gains: torch.Tensor) -> bool:
    """Whether examples gain more in the mean than its standard error."""
    return float(gains.mean()) > float(gains.std()) / math.sqrt(len(gains))


def _validated(
    problem: Problem, default: torch.Tensor, apart: Sequence[Sequence[torch.Tensor]], count: int
) -> torch.Tensor:
    """Nats of each example at the default weights and at those fitted without its fold, (1 + fits, examples)."""
    found = torch.zeros(1 + len(apart), count, dtype=torch.float64)
    for some in problem.tokens():
        of_fold = problem.fold_of[some.examples]
        found[0].index_add_(0, some.examples, newton.nats(some, default, problem).double())
        for row, folds in enumerate(apart, start=1):
            for fold in sorted(set(of_fold.tolist())):
                here = of_fold == fold
                part = Tokens(*(one[here] for one in some))
                found[row].index_add_(0, part.examples, newton.nats(part, folds[fold], problem).double())
    return found


def _curve(problem: Problem, weights: torch.Tensor) -> tuple[list[float], int]:
    """Nats of all examples at each of `SCALES`; and how many tokens these are."""
    base = torch.zeros_like(weights)
    base[0] = 1.0
    found, count = torch.zeros(len(SCALES), dtype=torch.float64), 0
    for some in problem.tokens():
        count += len(some.labels)
        for place, scale in enumerate(SCALES):
            found[place] += newton.nats(some, base + scale * (weights - base), problem).double().sum()
    return found.tolist(), count


def _stop_strings(model: ValueAdapterForCausalLM, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for name in names for text in model.adapters[name].config.stop_strings))


def _width(model: Any) -> int:
    return int(model.base.get_output_embeddings().weight.shape[0])
