"""Training on several processes gives the adapter that one process gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("distributed_run.py")


def train(folder: Path, processes: int, batch_size: int) -> dict[str, torch.Tensor]:
    # several CPU processes go through accelerate's torchrun path; ACCELERATE_USE_CPU keeps them off a GPU
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--num_processes", str(processes), "--main_process_port", "0"]
    launch += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    command = [*launch, str(SCRIPT), str(folder), str(batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "final" / "value_network" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(tmp_path: Path) -> None:
    """Half the batch on each of two CPU processes, gradients averaged per token: equal weights, penalty included."""
    one, two = train(tmp_path / "one", 1, 8), train(tmp_path / "two", 2, 4)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    assert one["lm_head.weight"].abs().max() > 1e-3
