"""Training on several processes gives the adapter that one process gives, whole models on each or parts of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed_run
import pytest
import torch
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_model

from valueadapter import ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments
from valueadapter.artifact import verification
from valueadapter.errors import ConfigError
from valueadapter.training import sharding
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe

SCRIPT = Path(__file__).parents[1] / "distributed_run.py"
CLI = Path(__file__).parents[1] / "distributed_cli.py"
FSDP = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
}
ZERO_3 = {"zero_stage": 3, "zero3_init_flag": False, "gradient_accumulation_steps": 1}


KINDS: dict[str, dict[str, Any]] = {
    "full": {"penalty": "l2"},
    "tied": {"tied": True},
    "cached": {"tied": True, "cache_base": True},
    "lora": {"network": "lora"},
    "prefix": {"network": "lora behind a prefix"},
}
EVERY = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
WORST = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}


def launch(folder: Path, *arguments: str, sharding: dict[str, Any] | None = None) -> None:
    """Runs a script on two CPU processes as `accelerate launch` does."""
    config: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}
    # several CPU processes go through accelerate's torchrun path; the variable keeps them off a GPU
    config |= {"mixed_precision": "no", "use_cpu": False, "distributed_type": "MULTI_GPU"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if sharding is not None and "zero_stage" in sharding:
        config |= {"distributed_type": "DEEPSPEED", "deepspeed_config": sharding}
        environment |= {"DS_ACCELERATOR": "cpu"}
        del environment["ACCELERATE_USE_CPU"]
    elif sharding is not None:
        config |= {"distributed_type": "FSDP", "fsdp_config": sharding}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accelerate.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
    command += ["--main_process_port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def trained(folder: Path, cases: dict[str, dict[str, Any]], *, sharding: dict[str, Any] | None = None) -> Path:
    """Trains each case on two processes, with as many rows a step as `alone` has."""
    common = {"per_device_train_batch_size": 4, "cache_base_dir": str(folder / "states")}
    settings = [{"output_dir": str(folder / name), **common, **case} for name, case in cases.items()]
    launch(folder, str(SCRIPT), json.dumps(settings), sharding=sharding)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, case in KINDS.items():
        states = {"cache_base_dir": str(folder / "states")}
        distributed_run.run(str(folder / name), per_device_train_batch_size=8, **states, **case)
    return folder


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By two processes, each with all weights."""
    return trained(tmp_path_factory.mktemp("two"), KINDS)


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By two processes with FSDP2, each with half of every weight."""
    folder = tmp_path_factory.mktemp("parts")
    whole = folder / "whole" / "checkpoint-2"
    more = {"whole": EVERY, "rest": {**EVERY, "resume": str(whole)}, "worst": {**EVERY, **WORST}}
    return trained(folder, KINDS | more, sharding=FSDP)


def assert_equal_weights(one: Path, two: Path, *, tolerance: float = 1e-5) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    for file in files:
        mine, theirs = load_file(one / file), load_file(two / file)
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=tolerance)


def assert_same_training(one: Path, two: Path, *, from_hidden_states: bool = True) -> None:
    """Equal weights, and an equal loss on held-out rows, of which the last batch has fewer than there are processes."""
    assert_equal_weights(one / "final", two / "final")
    assert_equal_weights(two / "final", two / "pushed", tolerance=0)
    loss = json.loads((one / "said_0.json").read_text())["loss"]
    for process in (0, 1):
        said = json.loads((two / f"said_{process}.json").read_text())
        assert said["loss"] == pytest.approx(loss, rel=1e-5)
        assert said["from_hidden_states"] == from_hidden_states


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_the_same_adapter(kind: str, alone: Path, on_two: Path) -> None:
    """Half the batch on each, gradients averaged per token; penalty and cached states included."""
    assert_same_training(alone / kind, on_two / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_parts_train_the_same_adapter(kind: str, alone: Path, in_parts: Path) -> None:
    """With the loss from hidden states: base, heads and networks lie in parts."""
    assert_same_training(alone / kind, in_parts / kind)


@pytest.mark.slow
def test_something_is_trained(alone: Path) -> None:
    """The head begins with zeros."""
    weights = load_file(alone / "full" / "final" / "value_network" / "model.safetensors")
    assert weights["lm_head.weight"].abs().max() > 1e-3


@pytest.mark.slow
def test_parts_go_on_from_a_checkpoint(in_parts: Path) -> None:
    """Written after an evaluation, which leaves some of FSDP's modules together; without the base."""
    assert not list(in_parts.glob("whole/checkpoint-2/pytorch_model*"))
    assert_equal_weights(in_parts / "whole" / "final", in_parts / "rest" / "final", tolerance=0)
    # the "best" one is here that of the largest loss, the first
    assert_equal_weights(in_parts / "worst" / "checkpoint-1" / "adapter", in_parts / "worst" / "final", tolerance=0)


@pytest.mark.slow
def test_zero_3_trains_the_same_adapter(alone: Path, tmp_path: Path) -> None:
    """Where deepspeed is installed; it goes on from a checkpoint of its own."""
    pytest.importorskip("deepspeed", reason="make test-deepspeed runs it")
    halfway = {"save_strategy": "steps", "save_steps": 2}
    rest = {"resume": str(tmp_path / "full" / "checkpoint-2"), "penalty": "l2"}
    cases = {name: {**KINDS[name], **halfway} for name in ("full", "lora")}
    for name, case in {**cases, "rest": rest}.items():  # a process that had a ZeRO-3 training makes no whole model
        trained(tmp_path, {name: case}, sharding=ZERO_3)
    for name in cases:
        assert_same_training(alone / name, tmp_path / name, from_hidden_states=False)
    launch(tmp_path, str(CLI), "train", *_base_and_data(tmp_path), sharding=ZERO_3)
    assert verification.verify(tmp_path / "out" / "adapter").training is not None
    assert_equal_weights(tmp_path / "full" / "final", tmp_path / "rest" / "final", tolerance=0)


def test_what_leaves_no_whole_models_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(state=state), model=torch.nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        sharding.check_sharding(trainer)
    state.fsdp_plugin.fsdp_version = 2
    sharding.check_sharding(trainer)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ConfigError, match="ram_efficient_loading: false"):
        sharding.check_sharding(trainer)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    sharding.check_sharding(trainer)
    trainer.model.weight.ds_id = 0  # as ZeRO-3 marks what it has taken apart
    with pytest.raises(ConfigError, match="before the training arguments are made"):
        sharding.check_sharding(trainer)


@pytest.mark.parametrize("asked", ["other_bases", "release_base"])
def test_what_needs_whole_models_all_through_is_refused(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    cached = (
        {"cache_base": True, "release_base": True, "cache_base_dir": str(tmp_path)} if asked == "release_base" else {}
    )
    args = ValueTrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, **cached)
    other = ValueAdapterForCausalLM(tiny_model("llama", seed=2), tokenizer=byte_tokenizer())
    others: Any = [other] if asked == "other_bases" else []
    with pytest.raises(ConfigError, match="takes them apart"):
        ValueTrainer(distributed_run.wrapper("full"), args, train_dataset=distributed_run.ROWS, other_bases=others)


def _base_and_data(folder: Path) -> list[str]:
    for part in (tiny_model("llama", seed=1, tied=True), byte_tokenizer()):
        part.save_pretrained(folder / "base")
    rows = [{"prompt": f"Q{i}", "completion": "AB"} for i in range(16)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--base", str(folder / "base"), "--data", str(folder / "data.jsonl"), "--output", str(folder / "out")]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [None, FSDP], ids=["whole", "parts"])
def test_the_command_line_trains_on_two_processes(sharding: dict[str, Any] | None, tmp_path: Path) -> None:
    """One of them saves; the adapter is whole."""
    launch(tmp_path, str(CLI), "train", *_base_and_data(tmp_path), sharding=sharding)
    assert verification.verify(tmp_path / "out" / "adapter").training is not None


def test_held_out_data_are_not_scored_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the base is loaded."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    options = _base_and_data(tmp_path)
    with pytest.raises(ConfigError, match="leave eval_data out"):
        run(Recipe(options[1], options[3], tmp_path / "out", eval_data=options[3]), say=print, score=len)
    assert "base model" not in capsys.readouterr().out
