"""What was measured of an adapter on several bases, as JSON with documented keys and as records of an artifact.

Knows nothing of how it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from valueadapter.artifact.card_results import LONGEST, CardArm, CardPrompt, CardResult, Measure
from valueadapter.artifact.config import EvaluationRecord, Weights
from valueadapter.demonstrations.bootstrap import Bootstrap, Pairs
from valueadapter.evaluation.score import METRICS, Score, ratio
from valueadapter.training.calibration import Calibration

ARMS = {
    "base": "base alone",
    "fewshot": "base, few-shot prompt",
    "donor": "small tuned model alone",
    "adapted": "base + adapter",
    "calibrated": "base + adapter, calibrated",
    "finetuned": "base fine-tuned (LoRA)",
}
"""Prefix of the keys -> what a person reads; `adapted` is at the adapter's own scale. Always all of them."""
ON_CARD = ("base", "fewshot", "adapted")
"""The arms whose answers a card shows."""
NORMS = ("value_norm_raw", "value_norm_centred")


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared on a base."""

    score: Score | None = None
    """None where it was not measured."""
    reason: str = ""
    """Why not."""
    asked: bool = True
    """Whether somebody asked for it; what nobody asked for is in no picture."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out prompt that a report shows with the answers to it."""

    index: int
    """Its place among the held-out records."""
    prompt: str
    """The prompt; the turns of a chat as `role: text`."""
    expected: str
    """The held-out answer."""


@dataclass(frozen=True)
class BaseResult:
    """Every arm on one base."""

    base: str
    """Hub ID or name."""
    relation: str
    """How it relates to the base the adapter was trained on, in words."""
    scale: float
    """The scale of the adapted arm; 1 where the adapter acts as its weights say."""
    calibrated_scale: float | None
    """That of the calibrated arm, 1; None without examples to calibrate on."""
    donor_scale: float
    """That of the small tuned model, on its own base."""
    num_fewshot: int
    """Demonstrations in the prompt of the few-shot arm."""
    arms: Mapping[str, Arm]
    """One for each of `ARMS`."""
    weights: Weights | None = None
    """The adapter's own weights on this base."""
    calibration: Calibration | None = None
    """What the calibration examples say; None without any."""
    donor_weights: Weights | None = None
    """Those of the small tuned model."""

    @property
    def calibrated_weights(self) -> Weights | None:
        """Those of the calibrated arm; None without examples to calibrate on."""
        return None if self.calibration is None else next(iter(self.calibration.weights.values()))

    def value(self, arm: str, metric: str) -> float | None:
        """A metric of an arm; None where it was not measured."""
        score = self.arms[arm].score
        return None if score is None else score.value(metric)

    def to_dict(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """The keys of `arms[]`; see docs/evaluation.md."""
        found: dict[str, Any] = {
            "base": self.base,
            "relation": self.relation,
            "scale": self.scale,
            "calibrated_scale": self.calibrated_scale,
            "donor_scale": self.donor_scale,
            "weights": _as_dict(self.weights),
            "calibrated_weights": _as_dict(self.calibrated_weights),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "donor_weights": _as_dict(self.donor_weights),
            "num_fewshot": self.num_fewshot,
        }
        intervals: dict[str, object] = {}
        for key, pairs in self._pairs().items():
            found[key] = ratio(pairs or ())
            if pairs and found[key] is not None:
                intervals[key] = bootstrap.interval(bootstrap.ratios(pairs))
        gains = {f"{name}_gain": self._gain(name, bootstrap) for name in self.arms if name != "base"}
        gains["gain_recovered"] = self._recovered("adapted", bootstrap)
        gains["calibrated_gain_recovered"] = self._recovered("calibrated", bootstrap)
        for key, (value, resampled) in gains.items():
            found[key] = value
            if resampled is not None:
                intervals[key] = bootstrap.interval(resampled)
        found["intervals"] = intervals
        found["not_measured"] = {name: arm.reason for name, arm in self.arms.items() if arm.score is None}
        return found

    def _pairs(self) -> dict[str, Pairs | None]:
        """Key -> total and count of every example; None where the arm was not measured."""
        found: dict[str, Pairs | None] = {}
        for name, arm in self.arms.items():
            for metric in METRICS:
                found[f"{name}_{metric}"] = None if arm.score is None else arm.score.pairs(metric)
        base = self.arms["base"].score
        for prefix, name in (("", "adapted"), ("calibrated_", "calibrated")):
            score = self.arms[name].score
            found[f"{prefix}changed_share"] = score.changed_from(base) if score and base else None
            for norm in NORMS if not prefix else ():
                found[norm] = None if score is None else score.pairs(norm)
        return found

    def _gain(self, arm: str, bootstrap: Bootstrap) -> tuple[float | None, np.ndarray | None]:
        """How many bits per byte an arm is better than the base alone, in all and in each resample, pair by pair."""
        base, here = self.arms["base"].score, self.arms[arm].score
        if base is None or here is None:
            return None, None
        before, after = (bootstrap.ratios(score.pairs("bits_per_byte")) for score in (base, here))
        return base.bits_per_byte - here.bits_per_byte, before - after

    def _recovered(self, arm: str, bootstrap: Bootstrap) -> tuple[float | None, np.ndarray | None]:
        """(base - arm) / (base - fine-tuned) in bits per byte; None where fine-tuning was not measured, or no gain."""
        (gain, gains), (best, bests) = self._gain(arm, bootstrap), self._gain("finetuned", bootstrap)
        if gain is None or best is None or best <= 0 or gains is None or bests is None:
            return None, None
        with np.errstate(divide="ignore", invalid="ignore"):
            return gain / best, gains / bests

    def answers(self, index: int) -> dict[str, str]:
        """Arm -> what it said to a held-out record, of the arms that were asked."""
        scores = {name: arm.score for name, arm in self.arms.items() if arm.score is not None}
        said = {name: score.examples[index].answer for name, score in scores.items()}
        return {name: answer for name, answer in said.items() if answer is not None}

    def on_card(self, data: str, bootstrap: Bootstrap, prompts: Sequence[HeldOut]) -> CardResult:
        """What a card and a picture show of it.

        Args:
            data: Hub ID or name of the held-out set.
            bootstrap: of the held-out examples.
            prompts: those to show.
        """

        def measure(arm: str, metric: str) -> Measure | None:
            score, value = self.arms[arm].score, self.value(arm, metric)
            if score is None or value is None:
                return None
            low, high = bootstrap.interval(bootstrap.ratios(score.pairs(metric))) or (value, value)
            return Measure(value, float(low), float(high))

        arms = tuple(
            CardArm(name, self.label(name), measure(name, "bits_per_byte"), measure(name, "exact_match"))
            for name, arm in self.arms.items()
            if arm.score is not None or arm.asked
        )
        base = self.arms["base"].score
        shown = []
        for one in prompts:
            said = {name: _cut(text) for name, text in self.answers(one.index).items() if name in ON_CARD}
            if said:
                shown.append(CardPrompt(_cut(one.prompt, end=True), _cut(one.expected.strip()), said))
        return CardResult(self.base, self.relation, data, len(base.examples) if base else 0, arms, tuple(shown))

    def label(self, arm: str) -> str:
        """What a person reads of an arm."""
        if arm == "fewshot":
            return f"base, {self.num_fewshot} {'example' if self.num_fewshot == 1 else 'examples'} in its prompt"
        at = f", scale {self.scale:g}" if arm == "adapted" and self.scale != 1 else ""
        return f"{ARMS[arm]}{at}"

    def records(self, data: str) -> list[EvaluationRecord]:
        """What an artifact keeps of it: one record at the adapter's own weights, one at the calibrated if they differ.

        Args:
            data: Hub ID or name of the held-out set.
        """
        at = {"adapted": (self.scale, self.weights)}
        if self.calibrated_weights is not None and (self.scale, self.weights) != (1.0, self.calibrated_weights):
            at["calibrated"] = (1.0, self.calibrated_weights)
        plain = Bootstrap(1, draws=1)  # no intervals here
        return [
            EvaluationRecord(
                base=self.base,
                relation=self.relation,
                data=data,
                num_examples=len(self.arms["base"].score.examples) if self.arms["base"].score else 0,
                scale=scale,
                weights=weights,
                base_bits_per_byte=self.value("base", "bits_per_byte") or 0.0,
                donor_bits_per_byte=self.value("donor", "bits_per_byte"),
                adapted_bits_per_byte=self.value(arm, "bits_per_byte") or 0.0,
                base_exact_match=self.value("base", "exact_match"),
                donor_exact_match=self.value("donor", "exact_match"),
                adapted_exact_match=self.value(arm, "exact_match"),
                fewshot_bits_per_byte=self.value("fewshot", "bits_per_byte"),
                fewshot_exact_match=self.value("fewshot", "exact_match"),
                num_fewshot=self.num_fewshot if self.arms["fewshot"].score else None,
                finetuned_bits_per_byte=self.value("finetuned", "bits_per_byte"),
                finetuned_exact_match=self.value("finetuned", "exact_match"),
                gain_recovered=self._recovered(arm, plain)[0],
                **{
                    f"{name}_{metric}": self.value(arm if name == "adapted" else name, metric)
                    for name in ("base", "fewshot", "donor", "adapted", "finetuned")
                    for metric in ("total_bits_per_byte", "ends")
                },
            )
            for arm, (scale, weights) in at.items()
        ]


def _cut(text: str, *, end: bool = False) -> str:
    """A text that is short enough for a card: its end, or its beginning."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= LONGEST:
        return text
    return f"…{text[1 - LONGEST :]}" if end else f"{text[: LONGEST - 1]}…"


def _as_dict(weights: Weights | None) -> dict[str, Any] | None:
    return None if weights is None else asdict(weights)


@dataclass(frozen=True)
class Report:
    """What was measured of an adapter."""

    adapter: str
    """Hub ID or name."""
    data: str
    """Hub ID or name of the held-out set."""
    results: tuple[BaseResult, ...]
    """One per base."""
    num_examples: int
    """Held-out examples, the same for every arm."""
    num_calibration: int = 0
    """Other examples that the scale was found on."""
    num_demonstrations: int = 0
    """Demonstrations that few-shot prompts were drawn from and the fine-tuned reference trained on."""
    seed: int = 0
    """Of everything that is drawn."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How the reference was fine-tuned; empty without it."""
    prompts: tuple[HeldOut, ...] = ()
    """The first of the held-out prompts, for people to read; empty where the examples ask nothing."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, intervals included; see docs/evaluation.md for the keys."""
        bootstrap = Bootstrap(self.num_examples, seed=self.seed)
        return {
            "adapter": self.adapter,
            "data": self.data,
            "num_examples": self.num_examples,
            "num_calibration": self.num_calibration,
            "num_demonstrations": self.num_demonstrations,
            "seed": self.seed,
            "finetuning": dict(self.settings) or None,
            "arms": [result.to_dict(bootstrap) | {"prompts": self._answered(result)} for result in self.results],
        }

    def _answered(self, result: BaseResult) -> list[dict[str, Any]]:
        """The shown prompts with what every arm said on a base; none where nobody was asked."""
        found = [(one, result.answers(one.index)) for one in self.prompts]
        return [{"prompt": one.prompt, "expected": one.expected, "answers": said} for one, said in found if said]

    def on_card(self, *, prompts: bool = True) -> tuple[CardResult, ...]:
        """What a card and a picture show of each base.

        Args:
            prompts: also the first held-out prompts, with the answers to them.
        """
        bootstrap = Bootstrap(self.num_examples, seed=self.seed)
        shown = self.prompts if prompts else ()
        return tuple(result.on_card(self.data, bootstrap, shown) for result in self.results)

    def merged_into(self, earlier: tuple[EvaluationRecord, ...]) -> tuple[EvaluationRecord, ...]:
        """The records of an artifact with these in place of earlier ones of the same base and data."""
        new = [record for result in self.results for record in result.records(self.data)]
        taken = {(record.base, record.data) for record in new}
        return (*(record for record in earlier if (record.base, record.data) not in taken), *new)
