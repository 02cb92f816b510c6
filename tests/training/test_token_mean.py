"""The loss of an evaluation is per response token, however rows fall into batches and processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from eval_loss_run import ROWS
from test_distributed import launch
from tiny import tiny_model

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments
from valueadapter.demonstrations.tokenized import IGNORED, encode

DATA = Dataset.from_list(ROWS)
Make = Callable[..., ValueAdapterForCausalLM]


@pytest.fixture
def make(tokenizer: Any) -> Make:
    def made() -> ValueAdapterForCausalLM:
        model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
        network = tiny_model("llama", seed=2)
        adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base")
        model.add_adapter(adapter, "default", is_trainable=True)
        return model

    return made


def per_token(model: ValueAdapterForCausalLM, tokenizer: Any) -> float:
    """Cross-entropy over all response tokens, row by row."""
    total, count = 0.0, 0
    for record in ROWS:
        row = encode(record, tokenizer)
        labels = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = model.eval()(torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return total / count


def trainer(model: ValueAdapterForCausalLM, place: Path, batch_size: int, **more: Any) -> ValueTrainer:
    metrics = more.pop("compute_metrics", None)
    args = ValueTrainingArguments(
        output_dir=str(place),
        per_device_eval_batch_size=batch_size,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )
    return ValueTrainer(model, args, train_dataset=DATA, eval_dataset=DATA, compute_metrics=metrics)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("way", ["hidden states", "logits"])
def test_the_evaluation_loss_does_not_depend_on_the_batch_size(
    make: Make, tokenizer: Any, tmp_path: Path, batch_size: int, way: str
) -> None:
    """Answers of 1 to 11 tokens, 11 rows: no batch size gives batches of as many tokens."""
    more = {"compute_metrics": lambda _: {}} if way == "logits" else {}
    found = trainer(make(), tmp_path, batch_size, **more).evaluate()
    assert found["eval_loss"] == pytest.approx(per_token(make(), tokenizer), rel=1e-5)


def test_the_best_checkpoint_is_the_same_for_every_batch_size(make: Make, tmp_path: Path) -> None:
    """What is logged, and what the best checkpoint is chosen by, is that loss; of a named data set too."""
    losses = []
    for batch_size in (1, 8):
        how = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "seed": 0}
        running = trainer(make(), tmp_path / str(batch_size), batch_size, **how, load_best_model_at_end=True)
        running.train()
        losses.append([entry["eval_loss"] for entry in running.state.log_history if "eval_loss" in entry])
        assert running.state.best_metric == min(losses[-1])
        assert running.predict(running.eval_dataset).metrics["test_loss"] == pytest.approx(min(losses[-1]), rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_find_the_same_loss(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    """The last batch of the second process is filled up with rows that were there before, and these do not count."""
    launch(tmp_path, str(Path(__file__).parents[1] / "eval_loss_run.py"), str(tmp_path / "loss"), "4")
    assert float((tmp_path / "loss").read_text()) == pytest.approx(per_token(make(), tokenizer), rel=1e-5)
