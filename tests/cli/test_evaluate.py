"""`valueadapter evaluate`: measures every arm, shows all of them, and records them where it is told to."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from adapters_on_hub import server as server
from huggingface_hub import HfApi, ModelCard
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner, Result

from testkit.local_hub import LocalHub
from valueadapter import ConfigError, ValueAdapter
from valueadapter.cli import output
from valueadapter.cli.app import app
from valueadapter.evaluation.plot import draw

RECORDS = [{"prompt": f"{a}B", "completion": f"{a}C"} for a in "DEFGHIJK"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two bases, an adapter made on the first, held-out records and demonstrations."""
    for name, seed in (("first", 1), ("second", 3)):
        for part in (tiny_model("llama", seed=seed), byte_tokenizer()):
            part.save_pretrained(tmp_path / name)
    network = tiny_model("llama", seed=2)
    ValueAdapter.from_networks(
        [network], byte_tokenizer(), base_model_name_or_path=str(tmp_path / "first")
    ).save_pretrained(tmp_path / "adapter")
    for name, records in (("held_out", RECORDS[:5]), ("training", RECORDS[5:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def invoke(place: Path, *more: str, adapter: str | None = None, bases: tuple[str, ...] = ("second",)) -> Result:
    chosen = [word for base in bases for word in ("--base", base if "/" in base else str(place / base))]
    command = ["evaluate", adapter or str(place / "adapter"), *chosen, "--data", str(place / "held_out.jsonl")]
    result = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def run(place: Path, *more: str, **options: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(invoke(place, *more, "--json", **options).stdout)
    return told


def test_every_arm_is_measured(place: Path) -> None:
    """Few-shot and fine-tuning from the training data, the scale on records that are not scored."""
    training = str(place / "training.jsonl")
    told = run(
        place,
        *("--train-data", training, "--shots", "2", "--finetune-reference", "--calibrate", "2", "--no-generate"),
        bases=("first", "second"),
    )
    assert (told["data"], told["num_examples"], told["num_calibration"]) == ("held_out.jsonl", 3, 2)
    assert told["finetuning"]["epochs"] == 1.0
    assert [arm["base"] for arm in told["arms"]] == ["first", "second"]
    for arm in told["arms"]:
        assert arm["not_measured"] == {}
        assert arm["base_exact_match"] is None
        assert arm["calibrated_scale"] is not None
        assert arm["num_fewshot"] == 2
    assert told["arms"][0]["donor_bits_per_byte"] == told["arms"][0]["adapted_bits_per_byte"]


def test_the_table_has_every_arm_and_says_what_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, in a terminal of any width."""
    monkeypatch.setattr(output.out, "width", 140, raising=False)
    shown = " ".join(invoke(place, "--limit", "2").stdout.split())
    for words in ("base alone", "few-shot prompt", "small tuned model alone", "base + adapter", "fine-tuned (LoRA)"):
        assert words in shown
    for reason in ("--train-data", "--calibrate", "--finetune-reference"):
        assert reason in shown
    assert "2 examples of held_out.jsonl" in shown
    assert "tokens changed" in shown


def test_results_are_written_into_the_adapter(place: Path) -> None:
    """Into its config and its card; measuring again replaces them, and other bases' stay."""
    better = str(place / "better")
    run(place, "--limit", "2", "--data-name", "quiz", "--output", better)
    run(place, "--data-name", "quiz", "--output", better, adapter=better, bases=("first", "second"))
    records = ValueAdapter.from_pretrained(better).config.evaluation
    assert [(record.base, record.num_examples) for record in records] == [("first", 5), ("second", 5)]
    assert records[1].relation == "the same vocabulary"
    results = ModelCard.load(place / "better" / "README.md").data.eval_results or []
    assert "bits per byte on second: base alone" in [result.metric_name for result in results]
    assert "## Results" in (place / "better" / "README.md").read_text()


def test_calibrated_weights_are_a_result_of_their_own(place: Path) -> None:
    """Beside that at the adapter's own weights, which stay what they are."""
    told = run(place, "--calibrate", "2", "--output", str(place / "better"))
    config = ValueAdapter.from_pretrained(place / "better").config
    (arm,) = told["arms"]
    assert [record.scale for record in config.evaluation] == [arm["scale"], arm["calibrated_scale"]]
    assert [record.adapted_total_bits_per_byte for record in config.evaluation] == [
        arm["adapted_total_bits_per_byte"],
        arm["calibrated_total_bits_per_byte"],
    ]
    assert [record.base_ends for record in config.evaluation] == [arm["base_ends"]] * 2
    weights = [arm["weights"], arm["calibrated_weights"]]
    assert [[one.base, *one.networks, one.end] for one in (r.weights for r in config.evaluation)] == [
        [one["base"], *one["networks"], one["end"]] for one in weights
    ]
    assert (config.scale, config.weights) == (1.0, ())


def test_results_are_published_on_the_branch_they_were_found_on(place: Path, server: LocalHub) -> None:
    """With bases and adapter by Hub ID; the donor is the recorded base there."""
    for name in ("first", "second"):
        HfApi().create_repo(f"acme/{name}")
        HfApi().upload_folder(repo_id=f"acme/{name}", folder_path=place / name)
    loaded = ValueAdapter.from_pretrained(place / "adapter").with_config(base_model_name_or_path="acme/first")
    loaded.push_to_hub("alice/a")
    loaded.push_to_hub("alice/a", revision="trial")
    told = run(place, "--push", "--revision", "trial", adapter="alice/a", bases=("acme/second",))
    assert told["arms"][0]["donor_bits_per_byte"] is not None
    assert told["adapter"] == "alice/a"
    assert ValueAdapter.from_pretrained("alice/a").config.evaluation == ()
    (record,) = ValueAdapter.from_pretrained("alice/a", revision="trial").config.evaluation
    assert record.base == "acme/second"


def test_wrong_usage_is_said_before_anything_is_measured(place: Path) -> None:
    """Pushing a directory, a picture of no known kind, too few records."""
    for more, message in (
        (["--push"], "is a directory"),
        (["--plot", "x.jpg"], "ends in .png or .svg"),
        (["--calibrate", "5"], "lower --limit or --calibrate"),
    ):
        with pytest.raises(ConfigError, match=message):
            invoke(place, *more)


def test_the_first_held_out_prompts_are_on_the_card(place: Path) -> None:
    """With the answers of base, examples and adapter, as the report has them; the command says that they are public."""
    better = place / "better"
    training = str(place / "training.jsonl")
    shown = invoke(place, "--train-data", training, "--shots", "2", "--output", str(better), "--json")
    told = json.loads(shown.stdout)["arms"][0]["prompts"]
    assert "--no-card-prompts leaves them out" in shown.stderr
    assert [(one["prompt"], one["expected"]) for one in told] == [("DB", "DC"), ("EB", "EC"), ("FB", "FC")]
    assert told[0]["answers"].keys() == {"base", "fewshot", "donor", "adapted"}
    (result,) = ValueAdapter.from_pretrained(better).card_results.results
    assert [one.prompt for one in result.prompts] == ["DB", "EB", "FB"]
    for one, said in zip(result.prompts, told, strict=True):
        assert one.answers == {arm: said["answers"][arm] for arm in ("base", "fewshot", "adapted")}
    assert "## Held-out prompts" in (better / "README.md").read_text()
    run(place, "--data-name", "other", "--no-card-prompts", "--output", str(better), adapter=str(better))
    first, second = ValueAdapter.from_pretrained(better).card_results.results
    assert (first, second.data, second.prompts) == (result, "other", ())


def test_no_prompts_are_on_the_card_where_nobody_wants_them(place: Path) -> None:
    """Nor where no model was asked; what was measured is there all the same."""
    for more in ("--no-card-prompts", "--no-generate"):
        shown = invoke(place, more, "--limit", "2", "--output", str(place / more))
        assert "card shows" not in shown.stderr
        text = (place / more / "README.md").read_text()
        assert "Held-out prompts" not in text
        assert "## Results" in text


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_the_card_has_a_picture_of_all_results(place: Path) -> None:
    """Of earlier runs, too."""
    better = place / "better"
    for base in ("first", "second"):
        adapter = str(better) if better.exists() else None
        run(place, "--limit", "2", "--no-generate", "--output", str(better), bases=(base,), adapter=adapter)
    found = ValueAdapter.from_pretrained(better).card_results
    assert [one.base for one in found.results] == ["first", "second"]
    assert found.picture == draw(found.results)
    assert "](value_adapter_card.png)" in (better / "README.md").read_text()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_it_draws(place: Path) -> None:
    """As PNG and SVG in one run."""
    pictures = [str(place / f"plot.{kind}") for kind in ("png", "svg")]
    told = run(place, "--no-generate", "--plot", pictures[0], "--plot", pictures[1])
    assert told["plots"] == pictures
    assert all(Path(picture).stat().st_size > 5000 for picture in pictures)
