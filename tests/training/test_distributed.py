"""Training on several processes gives the adapter that one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_model

from valueadapter.artifact import verification

SCRIPT = Path(__file__).parents[1] / "distributed_run.py"


def launch(processes: int, *arguments: str) -> None:
    """Runs a script on several CPU processes as `accelerate launch` does."""
    # several CPU processes go through accelerate's torchrun path; ACCELERATE_USE_CPU keeps them off a GPU
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_processes", str(processes), "--main_process_port", "0"]
    command += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def train(folder: Path, processes: int, batch_size: int) -> dict[str, torch.Tensor]:
    launch(processes, str(SCRIPT), str(folder), str(batch_size))
    return load_file(folder / "final" / "value_network" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(tmp_path: Path) -> None:
    """Half the batch on each of two CPU processes, gradients averaged per token: equal weights, penalty included."""
    one, two = train(tmp_path / "one", 1, 8), train(tmp_path / "two", 2, 4)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    assert one["lm_head.weight"].abs().max() > 1e-3


@pytest.mark.slow
def test_the_command_line_trains_on_two_processes(tmp_path: Path) -> None:
    """One of them saves; the adapter is whole."""
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"Q{i}", "completion": "AB"} for i in range(16)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--base", tmp_path / "base", "--data", tmp_path / "data.jsonl", "--output", tmp_path / "out"]
    launch(2, "-m", "valueadapter", "train", *map(str, options))
    assert verification.verify(tmp_path / "out" / "adapter").training is not None
