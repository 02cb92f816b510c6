"""`distill` writes an ordinary LoRA and says how well it stands in, and what comes next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters_on_hub import save
from peft import PeftModel
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from valueadapter import ConfigError
from valueadapter.cli.app import app


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model("llama", seed=1).save_pretrained("base")
    byte_tokenizer().save_pretrained("base")
    save(Path("adapter"))
    rows = [{"prompt": f"Q {number % 7} ", "completion": "ABC"[number % 3] * 3} for number in range(24)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


ASKED = ["distill", "adapter=0.5", "--base", "base", "--data", "data.jsonl", "--output", "lora", "--rank", "4"]


def test_a_lora_is_written_and_loads(place: Path) -> None:
    """With PEFT, as the last line says; what it does not reproduce is told, and progress on the way."""
    done = CliRunner().invoke(app, [*ASKED, "--epochs", "2", "--learning-rate", "0.01"], catch_exceptions=False)
    assert "adapter at scale 0.5" in done.stderr
    assert "steps: 6 of 6" in done.stderr
    assert "held-out response tokens" in " ".join(done.stdout.split())
    assert "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('base'), 'lora')" in done.stdout
    PeftModel.from_pretrained(tiny_model("llama", seed=1), "lora")


def test_for_programs(place: Path) -> None:
    """Both divergences, of data that was held out."""
    done = CliRunner().invoke(app, [*ASKED, "--held-out", "data.jsonl", "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert facts["divergence_after"] != facts["divergence_before"]
    assert (facts["examples"], facts["lora"], facts["base"]) == (24, "lora", "base")
    assert facts["held_out_tokens"] == 24 * 4


def test_what_cannot_be(place: Path) -> None:
    """A directory with something in it, or no adapter: before anything is loaded."""
    error = CliRunner().invoke(app, [*ASKED[:7], "adapter"]).exception
    assert isinstance(error, ConfigError)
    assert "is there and is no empty directory" in str(error)
    none = CliRunner().invoke(app, ["distill", *ASKED[2:]]).exception
    assert isinstance(none, ConfigError)
    assert "there is no adapter to teach" in str(none)


def test_a_save_that_fails_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a LoRA would load as another one, or keep the next run from writing there."""

    def half(model: PeftModel, folder: Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "adapter_config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(PeftModel, "save_pretrained", half)
    before = sorted(place.iterdir())
    error = CliRunner().invoke(app, [*ASKED, "--epochs", "0.1"]).exception
    assert "disk full" in str(error)
    assert sorted(place.iterdir()) == before


def test_an_empty_directory_that_is_there_is_filled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current one, too, which cannot be put in another's place; nothing but the LoRA is left in it."""
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    asked = [
        "distill",
        "../adapter",
        "--base",
        "../base",
        "--data",
        "../data.jsonl",
        "--output",
        ".",
        "--epochs",
        "0.1",
    ]
    CliRunner().invoke(app, asked, catch_exceptions=False)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {one.name for one in Path().iterdir()}
    assert not list(Path().glob(".*"))
    PeftModel.from_pretrained(tiny_model("llama", seed=1), ".")
