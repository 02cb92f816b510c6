"""Measures an adapter beside everything that one could do without it, on each of several bases.

Knows which arms belong together and that all of them see the same examples; each measurement is another module's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Weights
from valueadapter.artifact.config.number import finite, hold, whole
from valueadapter.demonstrations.responses import Record, response_texts, shape_of
from valueadapter.demonstrations.selection import draw, without
from valueadapter.demonstrations.sources import all_checked
from valueadapter.demonstrations.tokenized import SEPARATOR, as_context
from valueadapter.errors import ConfigError, ValueAdapterError
from valueadapter.evaluation.kept import Kept, digest, kept_score, state_of
from valueadapter.evaluation.metrics import evaluate, tokens_too_many
from valueadapter.evaluation.recording import first_prompts
from valueadapter.evaluation.report import Arm, BaseResult, Report
from valueadapter.evaluation.score import Score
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training.calibration import Calibration, calibrate
from valueadapter.training.finetuning import FineTuning, finetuned

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of its examples or steps are done, and how many there are."""
NAME = "default"


@dataclass(frozen=True)
class Options:
    """What to measure besides the base alone and base + adapter, and how."""

    demonstrations: Sequence[Record] = ()
    """Training split: few-shot prompts are drawn from it, and the reference is fine-tuned on it."""
    shots: int = 4
    """Demonstrations in the few-shot prompt."""
    calibration: Sequence[Record] = ()
    """Examples to fit the weights on; none of those that are scored."""
    finetuning: FineTuning | None = None
    """How to fine-tune the bases directly; None does not."""
    donor: str | Path | None = None
    """Where the training base lies, if not where the adapter says."""
    scale: float | None = None
    """Of the adapted arm; the adapter's own by default."""
    generate: bool = True
    """Also let every arm answer, and compare."""
    max_new_tokens: int = 16
    """Length of an answer at most."""
    batch_size: int = 16
    """Rows per forward pass."""
    device: str | None = None
    """Where models run (`cuda`); where they are loaded by default."""
    seed: int = 0
    """Of everything that is drawn."""
    trust_remote_code: bool = False
    """Run the code that a base brings; an adapter's is never run."""
    data_name: str = "unnamed"
    """Hub ID or name of the held-out set, for the record."""
    on_progress: Progress | None = None
    """Told of every batch and step."""
    kept: Kept | None = None
    """Where finished arms are kept, so that a run that is stopped goes on with them; None keeps none. The caller
    forgets them (`Kept.forget`) once the report is where it belongs."""

    def __post_init__(self) -> None:
        hold(self, whole, "shots", least=0)
        hold(self, whole, "max_new_tokens", "batch_size", least=1)
        hold(self, whole, "seed")
        hold(self, finite, "scale")


def evaluate_adapter(
    adapter: str | Path | ValueAdapter,
    bases: Sequence[str | Path | PreTrainedModel],
    held_out: Sequence[Record],
    *,
    options: Options | None = None,
) -> Report:
    """Scores, for each base: it alone, with a few-shot prompt, the adapter's small tuned model, base + adapter at its
    own and at the calibrated scale, and the base fine-tuned directly.

    An arm that cannot be measured is in the report with the reason.

    Args:
        adapter: Hub ID, directory, or a loaded adapter, which is copied.
        bases: Hub IDs, directories, or loaded models whose name leads to their tokenizer.
        held_out: demonstrations that nothing was trained on or chosen by.
        options: what else to measure.

    Raises:
        ConfigError: no base or no example; a record that cannot be scored; an example to calibrate on that is also
            scored.
        IncompatibleBaseError: a base that the adapter does not go with.
    """
    options = options or Options()
    if not bases or not held_out:
        raise ConfigError(f"expected at least one base and one held-out record; got {len(bases)} and {len(held_out)}")
    held_out = all_checked(held_out, name="held-out")
    options = dataclasses.replace(
        options,
        demonstrations=all_checked(options.demonstrations, name="demonstrations"),
        calibration=all_checked(options.calibration, name="calibration"),
    )
    if len(without(options.calibration, held_out)) < len(options.calibration):
        raise ConfigError("examples to calibrate on are among those that are scored; choose others")
    loaded = adapter if isinstance(adapter, ValueAdapter) else ValueAdapter.from_pretrained(adapter)
    run = _Run(loaded, list(held_out), options)
    results = tuple(run.measure(base) for base in bases)
    return Report(
        adapter="unnamed" if isinstance(adapter, ValueAdapter) else name_of(adapter),
        data=options.data_name,
        results=results,
        num_examples=len(held_out),
        num_calibration=len(options.calibration),
        num_demonstrations=len(run.demonstrations),
        seed=options.seed,
        settings=dataclasses.asdict(options.finetuning) if options.finetuning else {},
        prompts=first_prompts(held_out),
    )


def name_of(model: str | Path | PreTrainedModel) -> str:
    """A Hub ID as it is; of a directory the last part, since a path of this machine means nothing to others."""
    name = model.name_or_path if isinstance(model, PreTrainedModel) else model
    return Path(name).name if Path(name).is_dir() else str(name)


class _Run:
    """One evaluation: what is the same for every base."""

    def __init__(self, adapter: ValueAdapter, held_out: list[Record], options: Options) -> None:
        self.adapter, self.held_out, self.options = adapter, held_out, options
        self.demonstrations = without(options.demonstrations, held_out)
        self.stop_strings = self._stop_strings()
        self.donor_weights: Weights | None = None
        self.donor_scale = 1.0
        self.donor = self._measure_donor()

    # -- one model ---------------------------------------------------------------------------------------------------
    def load(
        self, base: str | Path | PreTrainedModel, *, scale: float | None, revision: str | None = None
    ) -> ValueAdapterForCausalLM:
        more: dict[str, Any] = {"base_revision": revision} if revision else {}
        if not isinstance(base, PreTrainedModel):
            more["trust_remote_code"] = self.options.trust_remote_code
        model = ValueAdapterForCausalLM.from_pretrained(base, self.adapter.copy(), scale=scale, **more)
        return model.to(self.options.device) if self.options.device else model

    def score(self, model: Any, tokenizer: Any, what: str, **more: Any) -> Score:
        how = {**self._how(), **more}
        return self._kept(
            lambda: {"score": state_of(model, tokenizer), "records": self.held_out, **how},
            lambda: self._evaluated(model, tokenizer, what, **more),
            what,
        )

    def _how(self) -> dict[str, Any]:
        options = self.options
        return {
            "generate": options.generate,
            "max_new_tokens": options.max_new_tokens,
            "batch_size": options.batch_size,
            "stop_strings": self.stop_strings,
        }

    def _stop_strings(self) -> tuple[str, ...]:
        """What ends an answer of every arm: what the adapter records, and what stands between examples in a prompt.

        Nothing does that a right answer holds.
        """
        records = [*self.demonstrations, *self.held_out]
        as_text = bool(self.demonstrations) and all(shape_of(record) != "messages" for record in records)
        found = dict.fromkeys((*self.adapter.config.stop_strings, *([SEPARATOR] if as_text else [])))
        right = [text.strip() for record in self.held_out for text in response_texts(record)]
        return tuple(one for one in found if not any(one in text for text in right))

    def _evaluated(self, model: Any, tokenizer: Any, what: str, **more: Any) -> Score:
        with self._counted(what, len(self.held_out)) as on_progress:
            return evaluate(model, tokenizer, self.held_out, on_progress=on_progress, **self._how(), **more)

    def _kept(self, key: Callable[[], dict[str, Any]], measure: Callable[[], Score], what: str) -> Score:
        """A score that a stopped run has kept, and a word on it; or measured."""
        measured = False

        def now() -> Score:
            nonlocal measured
            measured = True
            return measure()

        score = kept_score(self.options.kept, key, now)
        if not measured and self.options.on_progress is not None:
            count = len(self.held_out)
            self.options.on_progress(f"{what} (kept from a run that was stopped)", count, count)
        return score

    @contextmanager
    def _counted(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self.options.on_progress is not None:
                self.options.on_progress(what, done, total)

        advance(0)
        yield advance

    # -- the arms ----------------------------------------------------------------------------------------------------
    def _measure_donor(self) -> Arm:
        config, given = self.adapter.config, self.options.donor
        place = given or config.base_model_name_or_path
        try:
            revision = None if given else config.base_model_revision
            model = self.load(place, scale=1.0, revision=revision)
        except (OSError, ValueError, ValueAdapterError) as error:
            cause = " ".join(str(error).split())[:120]
            return Arm(reason=f"the training base '{place}' cannot be had ({cause}); --donor says where it lies")
        # what is recorded for the training base itself, wherever it lies here; never another's
        own = [one for one in config.weights if one.base == config.base_model_name_or_path]
        model.set_weights(NAME, own[0].weights if own else config.default_weights, scale=own[0].scale if own else 1.0)
        self.donor_weights, self.donor_scale = model.weights[NAME], model.scales[NAME]
        return Arm(self.score(model, model.base_tokenizer, "small tuned model alone", value_norms=True))

    def measure(self, base: str | Path | PreTrainedModel) -> BaseResult:
        """Every arm on one base."""
        model, name = self.load(base, scale=self.options.scale), name_of(base)
        tokenizer = model.base_tokenizer
        own = model.scales[NAME]
        with model.disable_adapter():
            alone = Arm(self.score(model, tokenizer, f"{name} alone"))
            fewshot = self._fewshot(model, tokenizer, name)
        weights = model.weights[NAME]
        adapted = Arm(self.score(model, tokenizer, f"{name} + adapter", value_norms=True))
        calibrated, found = self._calibrated(model, name, adapted)
        relation = self._relation(model, base)
        return BaseResult(
            base=name,
            relation=relation,
            scale=own,
            calibrated_scale=None if found is None else 1.0,
            donor_scale=self.donor_scale,
            num_fewshot=self.options.shots,
            arms={
                "base": alone,
                "fewshot": fewshot,
                "donor": self.donor,
                "adapted": adapted,
                "calibrated": calibrated,
                "finetuned": self._finetuned(model.unload(), tokenizer, name),
            },
            weights=weights,
            calibration=found,
            donor_weights=self.donor_weights,
        )

    def _relation(self, model: ValueAdapterForCausalLM, base: str | Path | PreTrainedModel) -> str:
        config = self.adapter.config
        place = base.name_or_path if isinstance(base, PreTrainedModel) else str(base)
        if place in (config.base_model_name_or_path, str(self.options.donor)):
            return "the base it was trained on"
        same = model.base_fingerprint(NAME) == config.vocabulary.byte_fingerprint
        return "the same vocabulary" if same else "another vocabulary"

    def _fewshot(self, model: ValueAdapterForCausalLM, tokenizer: PreTrainedTokenizerBase | None, name: str) -> Arm:
        shots = self.options.shots
        if not self.options.demonstrations:
            return Arm(reason="no training data (--train-data)", asked=False)
        try:
            context = draw(self.demonstrations, shots, seed=self.options.seed)
        except ConfigError as error:
            return Arm(reason=str(error))
        if tokenizer is not None and (over := tokens_too_many(model, tokenizer, self.held_out, context)):
            return Arm(reason=f"{shots} demonstrations are {over} tokens more than the base reads; lower --shots")
        what = f"{name}, {shots} demonstrations"
        if any(shape_of(record) != "prompt" for record in (*context, *self.held_out)):
            return Arm(self.score(model, tokenizer, what, context=context))
        with model.prefixed_base(as_context(context)):  # the same text, read once instead of before each record
            return Arm(self.score(model, tokenizer, what))

    def _calibrated(self, model: ValueAdapterForCausalLM, name: str, adapted: Arm) -> tuple[Arm, Calibration | None]:
        examples = self.options.calibration
        if not examples:
            return Arm(reason="no examples to calibrate on (--calibrate)", asked=False), None
        found = self._calibration(model, name)
        weights = found.weights[NAME]
        if weights == model.weights[NAME] and model.scales[NAME] == 1:
            return adapted, found
        model.set_weights(NAME, weights)
        with model.only(NAME, scale=1.0):
            return Arm(self.score(model, model.base_tokenizer, f"{name} + adapter, calibrated")), found

    def _calibration(self, model: ValueAdapterForCausalLM, name: str) -> Calibration:
        options, kept = self.options, self.options.kept
        key = ""
        if kept is not None:
            state = state_of(model, model.base_tokenizer)
            key = digest({"weights": state, "records": options.calibration, "batch_size": options.batch_size})
            if (known := kept.find(key)) is not None:
                return Calibration.from_dict(known)
        done, count = 0, len(options.calibration)

        def on_progress(more: int) -> None:
            nonlocal done
            done += more
            if options.on_progress is not None:
                options.on_progress(f"{name}: the weights", min(done, count), count)

        found = calibrate(model, options.calibration, batch_size=options.batch_size, on_progress=on_progress)
        if kept is not None:
            kept.keep(key, found.to_dict())
        return found

    def _finetuned(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> Arm:
        how = self.options.finetuning
        if how is None:
            return Arm(reason="not asked for (--finetune-reference)", asked=False)
        if not self.demonstrations or tokenizer is None:
            return Arm(reason="no training data (--train-data)")
        what = f"{name}: fine-tuning"

        def on_progress(done: int, total: int) -> None:
            if self.options.on_progress is not None:
                self.options.on_progress(what, done, total)

        def key() -> dict[str, Any]:
            given = [state_of(base, tokenizer), self.demonstrations, dataclasses.asdict(how)]
            return {"finetuned": given, "records": self.held_out, **self._how()}

        def measure() -> Score:
            with finetuned(base, tokenizer, self.demonstrations, how=how, on_progress=on_progress) as tuned:
                return self._evaluated(tuned, tokenizer, f"{name}, fine-tuned")

        try:
            return Arm(self._kept(key, measure, f"{name}, fine-tuned"))
        except ConfigError as error:
            return Arm(reason=str(error))
