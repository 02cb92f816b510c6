"""Runs of `valueadapter train`: nothing that was learned is lost, and what cannot end well does not begin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ArtifactError, CheckpointError, ConfigError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.artifact import verification
from valueadapter.errors import ValueAdapterError
from valueadapter.evaluation.held_out import bits_per_byte
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe
from valueadapter.training.run_callbacks import TrainingStopped

__all__ = ["server"]
DATA = [{"prompt": f"Q{i}", "completion": "AB"[: 1 + i % 2]} for i in range(40)]
QUICK = {"use_cpu": True, "max_steps": 8, "learning_rate": 1e-2, "logging_steps": 1}


@pytest.fixture
def base(tmp_path: Path) -> str:
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def make(base: str, tmp_path: Path) -> Callable[..., Recipe]:
    def recipe(name: str, **changes: Any) -> Recipe:
        settings = {"base": base, "data": DATA, "arguments": QUICK, "lora_rank": 2, "base_prefix_examples": 2}
        return Recipe(output_dir=tmp_path / name, **{**settings, **changes})

    return recipe


def silent(line: str) -> None:
    """What a run says."""


def stopped_after(recipe: Recipe, step: int, **options: Any) -> str:
    """Runs until Ctrl-C comes while a step is logged; the last words."""

    def say(line: str) -> None:
        if f"step {step:>4}/" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStopped) as stopped:
        run(recipe, say=say, **options)
    return str(stopped.value)


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    adapter = ValueAdapter.from_pretrained(recipe.output_dir / "adapter")
    return {f"{i}.{k}": v for i, one in enumerate(adapter.networks) for k, v in one.state_dict().items()}


@pytest.mark.parametrize("kind", ["lora in a directory", "lora on the Hub", "full"])
def test_stopping_and_resuming_equals_not_stopping(
    server: LocalHub, make: Callable[..., Recipe], base: str, kind: str
) -> None:
    """With the default recipe too: bit-equal weights and the same record, whatever names the base."""
    changes: dict[str, Any] = {"network": "full"} if kind == "full" else {}
    if kind == "lora on the Hub":
        HfApi().create_repo("alice/base")
        HfApi().upload_folder(repo_id="alice/base", folder_path=base)
        changes["base"] = "alice/base"
    whole, parted = make("whole", **changes), make("parted", **changes)
    run(whole, say=silent)
    words = stopped_after(parted, 3)
    assert "--resume" in words
    assert "step 4 of 8" in words or "step 3 of 8" in words
    assert not (parted.output_dir / "adapter").exists()
    said: list[str] = []
    run(parted, resume=True, say=said.append)
    assert any("going on from" in line for line in said)
    expected, got = weights(whole), weights(parted)
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    records = [verification.verify(one.output_dir / "adapter").training for one in (whole, parted)]
    assert records[0] == records[1]


def test_a_finished_adapter_is_not_trained_over(make: Callable[..., Recipe]) -> None:
    """Refused unless asked for; resuming what is finished leaves it, byte for byte; overwriting begins anew."""
    recipe = make("out")
    run(recipe, say=silent)
    config = recipe.output_dir / "adapter" / "config.json"
    calibrated = ValueAdapter.from_pretrained(config.parent).with_config(scale=0.6)
    calibrated.save_pretrained(config.parent)  # as `calibrate --output` does, after hours perhaps
    before = config.read_bytes()
    with pytest.raises(ConfigError, match="holds a finished adapter, which a new run would destroy"):
        run(recipe, say=silent)
    said: list[str] = []
    run(recipe, resume=True, say=said.append)
    assert any("finished already" in line for line in said)
    assert config.read_bytes() == before
    run(recipe, overwrite=True, say=silent)
    assert verification.read_config(config.parent).scale == 1.0
    trained = weights(recipe)
    shutil.rmtree(config.parent)  # killed after the last step, before the adapter was saved
    assert run(recipe, resume=True, say=silent)["steps"] == 8
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights(recipe).items())
    with pytest.raises(ConfigError, match="give one of them"):
        run(recipe, resume=True, overwrite=True, say=silent)


def test_an_unfinished_run_is_not_trained_over(make: Callable[..., Recipe]) -> None:
    """Its checkpoint is its work; one that was never written to its end does not count."""
    recipe = make("out")
    stopped_after(recipe, 5)
    with pytest.raises(ConfigError, match=r"holds an unfinished run \(checkpoint-\d\)"):
        run(recipe, say=silent)
    (whole,) = recipe.output_dir.glob("checkpoint-*")
    broken = whole.with_name("checkpoint-7")
    shutil.copytree(whole, broken)
    (broken / "trainer_state.json").unlink()
    said: list[str] = []
    run(recipe, resume=True, say=said.append)
    assert f"going on from {whole}" in said
    with pytest.raises(ConfigError, match="nothing to resume: no complete checkpoint"):
        run(make("nowhere"), resume=True, say=silent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [*DATA[:-1], {"prompt": "other", "completion": "A"}]}, "began with data '"),
        ({"lora_rank": 3}, "began with lora_rank 2, and is to go on with 3"),
        ({"arguments": {**QUICK, "learning_rate": 1e-3}}, r"began with learning_rate 0.01, and is to go on with 0.001"),
        ({"base_prefix_examples": 0}, "began with base_prefix 'sha256"),
        ({"network": "full", "lora_rank": 2}, "began with network 'lora'"),
    ],
)
def test_a_run_goes_on_as_it_began(make: Callable[..., Recipe], changes: dict[str, Any], message: str) -> None:
    """A checkpoint depends on data and settings; under others it is refused before anything is loaded."""
    stopped_after(make("out"), 3)
    with pytest.raises(CheckpointError, match=message):
        run(make("out", **changes), resume=True, say=silent)


def test_a_run_goes_on_with_the_base_it_began_with(make: Callable[..., Recipe], base: str) -> None:
    """Other weights in the same directory are another base."""
    stopped_after(make("out"), 3)
    tiny_model("llama", seed=7).save_pretrained(base)
    with pytest.raises(CheckpointError, match="began with base 'sha256"):
        run(make("out"), resume=True, say=silent)


def test_more_steps_are_the_same_run(make: Callable[..., Recipe]) -> None:
    """A finished run may go on for longer."""
    run(make("out"), say=silent)
    longer = make("out", arguments={**QUICK, "max_steps": 12})
    assert run(longer, resume=True, say=silent)["steps"] == 12


class _Unloadable:
    """A base whose tokenizer is there and whose weights are not: whoever loads it fails otherwise than expected."""

    def __init__(self, base: str) -> None:
        (Path(base) / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scale": float("nan")}, ConfigError, "scale must be a finite number"),
        ({"initialisation": "warm", "network": "full"}, ConfigError, "initialisation must be one of"),
        ({"connection": "serial", "network": "full"}, ConfigError, "connection must be one of"),
        ({"arguments": {**QUICK, "penalty": "l3"}}, ConfigError, "penalty must be"),
        ({"eval_data": [{"prompt": "a"}]}, ValueAdapterError, "completion"),
        ({"data": [{"prompt": "a", "completion": "b"}, {"prompt": "c"}] * 20}, ValueAdapterError, "completion"),
        ({"data": "nowhere.jsonl"}, FileNotFoundError, "nowhere.jsonl"),
        ({"arguments": {**QUICK, "max_length": 1}}, ConfigError, "no response token is left"),
        ({"base_prefix": "", "base_prefix_examples": None}, ConfigError, "prefix"),
        ({"data": [{"prompt": "a", "completion": "b"}] * 4, "base_prefix_examples": 4}, ConfigError, "leaves nothing"),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    make: Callable[..., Recipe], base: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Settings and every record are checked before the base is loaded."""
    _Unloadable(base)
    with pytest.raises(error, match=message):
        run(make("out", **changes), say=silent)
    assert not (make("out").output_dir / "adapter").exists()


def test_a_directory_that_cannot_be_saved_to_is_refused_at_once(make: Callable[..., Recipe], base: str) -> None:
    """Not after the training: something else lies where the adapter would go."""
    _Unloadable(base)
    place = make("out").output_dir / "adapter"
    (place / "notes").mkdir(parents=True)
    (place / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds something else|would be lost"):
        run(make("out"), say=silent)
    assert (place / "notes" / "mine.txt").read_text() == "mine"


def test_what_becomes_unusable_meanwhile_costs_no_work(make: Callable[..., Recipe]) -> None:
    """Somebody writes into the adapter's place while it is trained: the adapter is saved beside, and that is said."""
    recipe, said = make("out"), []

    def say(line: str) -> None:
        said.append(line)
        if "step    3/" in line:
            (recipe.output_dir / "adapter" / "notes").mkdir(parents=True)
            (recipe.output_dir / "adapter" / "notes" / "mine.txt").write_text("mine")

    summary = run(recipe, say=say)
    place = Path(str(summary["adapter"]))
    assert place != recipe.output_dir / "adapter"
    assert verification.verify(place).training is not None
    assert any(str(place) in line for line in said)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("not a name!", HFValidationError, r"repo_id|Repo id"),
        ("bob/adapter", ConfigError, "creates repositories for alice"),
        ("alice/model", ArtifactError, "would spoil it"),
    ],
)
def test_who_may_not_publish_learns_it_first(
    server: LocalHub, make: Callable[..., Recipe], base: str, name: str, error: type[Exception], message: str
) -> None:
    """A name that is none, somebody else's account, a repository that holds something else."""
    HfApi().create_repo("alice/model")
    HfApi().upload_folder(repo_id="alice/model", folder_path=base)
    _Unloadable(base)
    with pytest.raises(error, match=message):
        run(make("out", base_name="alice/base"), push_to=name, say=silent)
    with pytest.raises(ConfigError, match="base is a path"):
        run(make("out"), push_to="alice/new", say=silent)


def test_held_out_demonstrations_are_scored_before_anything_is_published(
    server: LocalHub, make: Callable[..., Recipe]
) -> None:
    """By the base that was trained on, in memory, with the adapter at scale 1; what fails there publishes nothing."""
    recipe, seen = make("out", base_name="alice/base", eval_data=DATA[:3]), []

    def score(model: ValueAdapterForCausalLM, records: Sequence[Any]) -> dict[str, object]:
        seen.append((list(records), model.scales, model.adapters["default"].config.training is not None))
        raise RuntimeError("the scoring fails")

    with pytest.raises(ConfigError, match=r"score=valueadapter\.evaluation\.held_out\.bits_per_byte"):
        run(recipe, say=silent)
    assert not recipe.output_dir.exists()
    with pytest.raises(RuntimeError, match="the scoring fails"):
        run(recipe, push_to="alice/new", score=score, say=silent)
    assert seen == [(DATA[:3], {"default": 1.0}, True)]
    assert verification.verify(recipe.output_dir / "adapter").training is not None
    assert not HfApi().repo_exists("alice/new")
    again = run(recipe, resume=True, score=score, say=silent)
    assert (list(again), len(seen)) == (["adapter"], 1)  # finished: neither trained nor scored anew


def test_the_summary_says_what_held_out_demonstrations_cost(make: Callable[..., Recipe], base: str) -> None:
    """Under the base and with the adapter, as `evaluate` finds them at the weights that are recorded."""
    recipe = make("out", eval_data=DATA[:5])
    summary = run(recipe, score=bits_per_byte, say=silent)
    model = ValueAdapterForCausalLM.from_pretrained(base, recipe.output_dir / "adapter")
    (record,) = model.adapters["default"].config.weights
    assert (model.weights["default"], record.num_examples) == (record.weights, 5)
    assert summary.items() >= bits_per_byte(model.eval(), DATA[:5]).items()
    assert summary["held_out_total_bits_per_byte_base"] == round(record.base_bits_per_byte, 4)
    assert summary["held_out_total_bits_per_byte_base_and_adapter"] == round(record.adapted_bits_per_byte, 4)
    assert record.adapted_bits_per_byte < record.base_bits_per_byte


def test_a_token_that_only_reads_is_found_first(
    server: LocalHub, make: Callable[..., Recipe], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the training, not after it."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice_read")
    _Unloadable(base)
    with pytest.raises(ConfigError, match="the token of 'alice' only reads"):
        run(make("out", base_name="alice/base"), push_to="alice/new", say=silent)


def test_ctrl_c_on_the_command_line(make: Callable[..., Recipe], base: str, tmp_path: Path) -> None:
    """A checkpoint, one line that says how to go on, exit code 130 and no traceback; the line's advice works."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in DATA))
    command = [sys.executable, "-m", "valueadapter", "train", "--base", base, "--data", str(data)]
    command += ["--output", str(tmp_path / "out"), "--epochs", "30", "--lora-rank", "2"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if "  step " in line:
            break
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "Go on with the same command and --resume" in " ".join(err.split())
    resumed = subprocess.run(
        [*command[:-4], "--epochs", "31", "--lora-rank", "2", "--resume", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == 31 * 4
