"""Every arm of an evaluation: measured by hand it is the same, it sees the same examples, and it leaves no trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import AutoModelForCausalLM
from vocabularies import tokenizer_of

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, Weights, calibrate
from valueadapter.demonstrations.bootstrap import Bootstrap
from valueadapter.demonstrations.selection import draw
from valueadapter.evaluation.arms import Options, evaluate_adapter
from valueadapter.evaluation.metrics import evaluate
from valueadapter.evaluation.report import ARMS, Arm, BaseResult, Report
from valueadapter.evaluation.score import METRICS, Example, Score
from valueadapter.training.finetuning import FineTuning

RECORDS = [{"prompt": f"{a}B", "completion": f"{a}C{a * 2}"} for a in "DEFGHIJKLM"]
HELD_OUT, CALIBRATION, TRAINING = RECORDS[:3], RECORDS[3:5], RECORDS[5:]
BRIEF = Options(generate=False)
TUNING = FineTuning(epochs=20, batch_size=5, rank=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, one of another vocabulary, and an adapter that was made on a third, the donor."""
    place = tmp_path_factory.mktemp("arms")
    mine, theirs = byte_tokenizer(), tokenizer_of("coarse bytes")
    for name, seed, tokenizer in (("donor", 1, mine), ("same", 3, mine), ("other", 5, theirs)):
        tiny_model("llama", seed=seed, width=len(tokenizer)).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    network = tiny_model("gpt2", seed=2)
    adapter = ValueAdapter.from_networks([network], mine, base_model_name_or_path=str(place / "donor"), scale=0.5)
    adapter.save_pretrained(place / "adapter")
    return place


@pytest.fixture(scope="module")
def report(places: Path) -> Report:
    """All arms on both bases."""
    options = Options(demonstrations=TRAINING, shots=2, calibration=CALIBRATION, finetuning=TUNING, max_new_tokens=3)
    bases = [places / "same", places / "other"]
    return evaluate_adapter(places / "adapter", bases, HELD_OUT, options=options)


def test_all_arms_are_there(report: Report) -> None:
    """With every metric that the data allow, an interval for each, in JSON without surprises."""
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [arm["base"] for arm in told["arms"]] == ["same", "other"]
    assert [arm["relation"] for arm in told["arms"]] == ["the same vocabulary", "another vocabulary"]
    for arm in told["arms"]:
        assert arm["not_measured"] == {}
        keys = [f"{name}_{metric}" for name in ARMS for metric in METRICS if metric != "choice_accuracy"]
        for key in [*keys, "changed_share", "value_norm_raw", "value_norm_centred"]:
            low, high = arm["intervals"][key]
            assert low - 1e-9 <= arm[key] <= high + 1e-9, key


@pytest.mark.parametrize("place", [0, 1])
def test_arms_are_what_one_measures_by_hand(places: Path, report: Report, place: int) -> None:
    """Base alone, few-shot, donor, adapted, calibrated: each as its own model would be scored."""
    arm = report.to_dict()["arms"][place]
    model = ValueAdapterForCausalLM.from_pretrained(places / arm["base"], places / "adapter")
    donor = ValueAdapterForCausalLM.from_pretrained(places / "adapter", scale=1.0)
    plain = AutoModelForCausalLM.from_pretrained(places / arm["base"])
    shots = draw(TRAINING, 2)
    context = "".join(f"{one['prompt']}{one['completion']}\n\n" for one in shots)
    longer = [{**record, "prompt": context + record["prompt"]} for record in HELD_OUT]
    expected = {
        "base": evaluate(plain, model.base_tokenizer, HELD_OUT, max_new_tokens=3),
        "fewshot": evaluate(plain, model.base_tokenizer, longer, max_new_tokens=3),
        "donor": evaluate(donor, donor.base_tokenizer, HELD_OUT, max_new_tokens=3),
        "adapted": evaluate(model, model.base_tokenizer, HELD_OUT, max_new_tokens=3),
    }
    fitted = arm["calibrated_weights"]
    model.set_weights("default", Weights(fitted["base"], tuple(fitted["networks"]), fitted["end"]))
    model.set_scale("default", arm["calibrated_scale"])
    expected["calibrated"] = evaluate(model, model.base_tokenizer, HELD_OUT, max_new_tokens=3)
    for name, score in expected.items():
        for metric in ("bits_per_byte", "first_token_bits", "last_token_bits", "exact_match"):
            assert arm[f"{name}_{metric}"] == pytest.approx(score.value(metric), rel=1e-5), (name, metric)
    assert arm["scale"] == 0.5


def test_fine_tuning_bounds_the_gain(report: Report) -> None:
    """The reference differs from the base, and the share recovered is the ratio of the gains."""
    for arm in report.to_dict()["arms"]:
        base, tuned, adapted = (arm[f"{name}_bits_per_byte"] for name in ("base", "finetuned", "adapted"))
        assert tuned < base
        assert arm["gain_recovered"] == pytest.approx((base - adapted) / (base - tuned))
        assert arm["adapted_gain"] == pytest.approx(base - adapted)
        low, high = arm["intervals"]["gain_recovered"]
        assert low <= arm["gain_recovered"] <= high


def test_gains_are_paired() -> None:
    """Two arms that differ by the same on every example differ surely, however much the examples differ."""

    def arm(more: float) -> Arm:
        sizes = range(1, 9)
        return Arm(Score(tuple(Example({"bits_per_byte": ((size + more) * 3, 3)}, ()) for size in sizes)))

    arms = {"base": arm(1.0), "adapted": arm(0.5), "finetuned": arm(-1.0)}
    result = BaseResult("b", "r", 1.0, None, 1.0, 4, {name: arms.get(name, Arm(reason="no")) for name in ARMS})
    told = result.to_dict(Bootstrap(8))
    assert told["intervals"]["adapted_gain"] == pytest.approx((0.5, 0.5))
    assert told["intervals"]["gain_recovered"] == pytest.approx((0.25, 0.25))
    low, high = told["intervals"]["base_bits_per_byte"]
    assert high - low > 2


def test_what_is_not_measured_says_why(places: Path, tmp_path: Path) -> None:
    """No training data, no donor, nothing to calibrate on, no fine-tuning asked for; the others are measured."""
    adapter = ValueAdapter.from_pretrained(places / "adapter").with_config(base_model_name_or_path=str(tmp_path / "no"))
    (arm,) = evaluate_adapter(adapter, [places / "same"], HELD_OUT, options=BRIEF).to_dict()["arms"]
    assert set(arm["not_measured"]) == {"fewshot", "donor", "calibrated", "finetuned"}
    assert "--train-data" in arm["not_measured"]["fewshot"]
    assert "cannot be had" in arm["not_measured"]["donor"]
    assert "--calibrate" in arm["not_measured"]["calibrated"]
    assert "--finetune-reference" in arm["not_measured"]["finetuned"]
    assert arm["gain_recovered"] is None
    again = evaluate_adapter(adapter, [places / "same"], HELD_OUT, options=replace(BRIEF, donor=places / "donor"))
    assert again.results[0].arms["donor"].score is not None


def test_on_its_training_base_donor_and_adapted_are_one(places: Path) -> None:
    """And the relation says so."""
    options = replace(BRIEF, scale=1.0)
    (arm,) = evaluate_adapter(places / "adapter", [places / "donor"], HELD_OUT, options=options).to_dict()["arms"]
    assert arm["donor_bits_per_byte"] == arm["adapted_bits_per_byte"]
    assert arm["relation"] == "the base it was trained on"


def test_no_example_is_both_scored_and_learnt_from(places: Path) -> None:
    """Calibration on scored examples is refused; scored ones are taken out of the demonstrations."""
    with pytest.raises(ConfigError, match="among those that are scored"):
        evaluate_adapter(
            places / "adapter", [places / "same"], HELD_OUT, options=Options(calibration=[*CALIBRATION, HELD_OUT[0]])
        )
    options = Options(demonstrations=[*HELD_OUT, *TRAINING], shots=5, generate=False)
    found = evaluate_adapter(places / "adapter", [places / "same"], HELD_OUT, options=options)
    assert found.num_demonstrations == len(TRAINING)


def test_an_adapter_at_hand_is_left_as_it_was(places: Path) -> None:
    """Its weights stay its own, whatever base it is measured on."""
    adapter = ValueAdapter.from_pretrained(places / "adapter")
    before = {name: tensor.clone() for name, tensor in adapter.networks[0].state_dict().items()}
    base = AutoModelForCausalLM.from_pretrained(places / "same", dtype=torch.bfloat16)
    evaluate_adapter(adapter, [base], HELD_OUT, options=Options(generate=False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.networks[0].state_dict().items())


def test_nothing_to_measure_is_an_error(places: Path) -> None:
    """No base, or no record."""
    for bases, records in (([], HELD_OUT), ([places / "same"], [])):
        with pytest.raises(ConfigError, match="at least one base and one held-out record"):
            evaluate_adapter(places / "adapter", bases, records)


def test_a_prompt_that_the_base_cannot_read_is_said(places: Path) -> None:
    """The few-shot arm goes without, the others stay."""
    options = Options(demonstrations=[{"prompt": "A" * 300, "completion": "B"}] * 2, shots=2, generate=False)
    (arm,) = evaluate_adapter(places / "adapter", [places / "same"], HELD_OUT, options=options).to_dict()["arms"]
    assert "tokens more than the base reads" in arm["not_measured"]["fewshot"]
    assert arm["adapted_bits_per_byte"] is not None


def test_the_small_tuned_model_acts_as_on_its_own_base(places: Path) -> None:
    """At scale 1, not at what is recommended elsewhere, fitted on another base, or asked for; at its own record's."""
    adapter = ValueAdapter.from_pretrained(places / "adapter")
    model = ValueAdapterForCausalLM.from_pretrained(places / "same", adapter.copy(), scale=1.0)
    record = calibrate(model, CALIBRATION).recommended(model, base="acme/same", data="two")
    scaled = adapter.with_config(weights=(replace(record, scale=0.1),))
    home = replace(record, base=adapter.config.base_model_name_or_path, weights=Weights(0.5, (0.5,)))
    plain, measured, asked, own = (
        evaluate_adapter(one, [places / "same"], HELD_OUT, options=options).to_dict()["arms"][0]
        for one, options in (
            (adapter, BRIEF),
            (scaled, BRIEF),
            (adapter, replace(BRIEF, scale=0.3)),
            (adapter.with_config(weights=(home,)), BRIEF),
        )
    )
    assert [arm["scale"] for arm in (plain, measured, asked)] == [0.5, 0.1, 0.3]
    assert [arm["donor_scale"] for arm in (plain, measured, asked)] == [1.0] * 3
    assert plain["donor_bits_per_byte"] == measured["donor_bits_per_byte"] == asked["donor_bits_per_byte"]
    assert own["donor_weights"] == {"base": 0.5, "networks": (0.5,), "end": 0.0}
    assert own["donor_bits_per_byte"] != plain["donor_bits_per_byte"]
