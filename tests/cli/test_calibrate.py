"""`valueadapter calibrate`: fits weights, prints them, and records them where it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters_on_hub import server as server
from huggingface_hub import HfApi
from test_calibration import EXAMPLES, other_vocabulary
from typer.testing import CliRunner

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter
from valueadapter.cli.app import app


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a base, an adapter of another vocabulary and examples."""
    model = other_vocabulary()
    model.base.save_pretrained(tmp_path / "base")
    model.base_tokenizer.save_pretrained(tmp_path / "base")
    model.adapters["default"].save_pretrained(tmp_path / "adapter")
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    return tmp_path


def run(place: Path, *more: str, adapter: str | None = None) -> dict[str, object]:
    base, data = str(place / "base"), str(place / "examples.jsonl")
    command = ["calibrate", adapter or str(place / "adapter"), "--base", base, "--data", data, *more, "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_weights_are_found_and_recorded(place: Path) -> None:
    """In a copy of the adapter; doing it again replaces the record of that base."""
    facts = run(place, "--output", str(place / "better"), "--data-name", "two examples")
    (record,) = ValueAdapter.from_pretrained(place / "better").config.weights
    found = facts["weights"]["adapter"]
    assert (record.weights.base, list(record.weights.networks)) == (found["base"], found["networks"])
    assert (record.data, record.num_examples) == ("two examples", 2)
    shown = CliRunner().invoke(app, ["inspect", str(place / "better")]).stdout
    assert "weights on base" in shown
    assert "fitted on 2 examples of two examples" in " ".join(shown.split())
    assert set(facts["curve"]) >= {"0", "0.5", "1"}
    run(place, "--output", str(place / "better"), adapter=str(place / "better"))
    (record,) = ValueAdapter.from_pretrained(place / "better").config.weights
    assert record.data == "examples.jsonl"


def test_nothing_recorded_is_said(place: Path) -> None:
    """And how it would be."""
    assert run(place)["recorded"] == "nothing; add --output or --push"


def test_several_adapters_are_fitted_together(place: Path) -> None:
    """Named by position or option; their weights are printed, and are no record of one of them."""
    ValueAdapter.from_pretrained(place / "adapter").save_pretrained(place / "second")
    facts = run(place, "--adapter", str(place / "second"))
    assert set(facts["weights"]) == {"adapter", "second"}
    command = ["--base", str(place / "base"), "--data", str(place / "examples.jsonl"), "--json"]
    options = ["--adapter", str(place / "adapter"), "--adapter", str(place / "second")]
    result = CliRunner().invoke(app, ["calibrate", *options, *command], catch_exceptions=False)
    assert json.loads(result.stdout)["weights"] == facts["weights"]
    with pytest.raises(ValueError, match="no record of one"):
        run(place, "--adapter", str(place / "second"), "--output", str(place / "x"))
    with pytest.raises(ValueError, match="no adapter to calibrate"):
        CliRunner().invoke(app, ["calibrate", *command], catch_exceptions=False)


def test_weights_are_published_on_the_branch_they_were_found_on(place: Path, server: LocalHub) -> None:
    """Another branch than the default one, which stays as it was."""
    base = HfApi().create_repo("acme/base").repo_id
    HfApi().upload_folder(repo_id=base, folder_path=place / "base")
    loaded = ValueAdapter.from_pretrained(place / "adapter").with_config(base_model_name_or_path=base)
    loaded.push_to_hub("alice/a")
    loaded.push_to_hub("alice/a", revision="trial")
    run(place, "--push", "--revision", "trial", adapter="alice/a")
    assert ValueAdapter.from_pretrained("alice/a").config.weights == ()
    assert len(ValueAdapter.from_pretrained("alice/a", revision="trial").config.weights) == 1


def test_pushing_a_directory_is_refused(place: Path) -> None:
    """There is no Hub ID to publish it under."""
    with pytest.raises(ValueError, match="is a directory"):
        run(place, "--push")
