"""The trainer: only the network learns, resuming equals not stopping, what does not fit is an error."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from transformers import Trainer, TrainingArguments

from valueadapter import (
    CheckpointError,
    ConfigError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    build_network,
)
from valueadapter.compat import installed
from valueadapter.demonstrations.tokenized import IGNORED, encode, load_demonstrations
from valueadapter.training.penalty import norm_penalty

DATA = Dataset.from_list([{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(32)])
Fresh = Callable[..., ValueAdapterForCausalLM]


@pytest.fixture
def fresh(tokenizer: object) -> Fresh:
    def make(num_layers: int | None = None) -> ValueAdapterForCausalLM:
        base = tiny_model("llama", seed=1)
        network = build_network(base, num_layers=num_layers)
        model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
        adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base")
        model.add_adapter(adapter, "default", is_trainable=True)
        return model

    return make


def trainer(model: ValueAdapterForCausalLM, folder: Path, **changes: Any) -> ValueTrainer:
    defaults: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-2}
    defaults |= {"lr_scheduler_type": "linear", "warmup_steps": 0}  # six steps are too few to warm up in
    quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0}
    args = ValueTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, **{**defaults, **quiet, **changes}
    )
    return ValueTrainer(model, args, train_dataset=DATA, eval_dataset=DATA.select(range(8)))


def distance(a: ValueAdapterForCausalLM, b: ValueAdapterForCausalLM) -> float:
    pairs = zip(a.value_networks.state_dict().values(), b.value_networks.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def test_only_the_network_learns(fresh: Fresh, tmp_path: Path) -> None:
    """No base weight changes, no base gradient exists, and the loss falls."""
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    run = trainer(model, tmp_path, max_steps=12)
    seen: list[bool] = []
    model.base.model.register_forward_hook(lambda _, inputs, out: seen.append(out.last_hidden_state.requires_grad))
    run.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.base.state_dict().items())
    assert seen
    assert not any(seen), "the base's output carried a graph, so gradients could reach it"
    assert not any(parameter.requires_grad for parameter in model.base.parameters())
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2


def test_checkpoints_hold_the_adapter_only_and_resuming_equals_not_stopping(fresh: Fresh, tmp_path: Path) -> None:
    """Bit-equal weights after an interruption; no tensor of the base in the checkpoint."""
    whole = fresh()
    trainer(whole, tmp_path).train()
    files = {
        p.relative_to(tmp_path / "checkpoint-3").as_posix() for p in (tmp_path / "checkpoint-3").rglob("*.safetensors")
    }
    assert files == {"adapter/value_network/model.safetensors"}
    resumed = fresh()
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert distance(whole, resumed) == 0


def test_a_checkpoint_that_does_not_fit_is_an_error(fresh: Fresh, tmp_path: Path) -> None:
    """Another depth, damage, or nothing there: never a fresh start."""
    trainer(fresh(), tmp_path).train()
    with pytest.raises(CheckpointError, match=r"expected None|has shape None"):
        trainer(fresh(num_layers=1), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    shutil.rmtree(tmp_path / "checkpoint-3" / "adapter" / "value_network")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        trainer(fresh(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"has no optimizer\.pt"):
        trainer(fresh(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    "changes",
    [{"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "eager"}],
    ids=["gradient checkpointing", "torch.compile"],
)
def test_ways_of_computing_give_the_same_weights(fresh: Fresh, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Memory and speed options change no result."""
    plain, other = fresh(), fresh()
    trainer(plain, tmp_path / "a").train()
    trainer(other, tmp_path / "b", **changes).train()
    assert distance(plain, other) < 1e-5


def test_gradient_accumulation_equals_a_larger_batch(fresh: Fresh, tmp_path: Path) -> None:
    """The loss is per token of the whole accumulated batch, penalty included."""
    plain, other = fresh(), fresh()
    args = {"penalty": "l2", "penalty_coefficient": 10.0, "max_steps": 4, "optim": "sgd", "learning_rate": 0.3}
    one = ValueTrainingArguments(
        output_dir=str(tmp_path / "a"), per_device_train_batch_size=8, report_to=[], use_cpu=True, seed=0, **args
    )
    two = ValueTrainingArguments(
        output_dir=str(tmp_path / "b"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        seed=0,
        **args,
    )
    ValueTrainer(plain, one, train_dataset=DATA).train()
    ValueTrainer(other, two, train_dataset=DATA).train()
    assert distance(plain, other) < 1e-5
    assert distance(plain, fresh()) > 1e-2


@pytest.mark.parametrize("kind", ["l1", "l2", "entropy"])
def test_penalty_ignores_constants_and_masked_positions(kind: str) -> None:
    """Adding a constant to a position's logits changes no distribution, so it costs nothing."""
    values = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[:, 3:] = True
    penalty = norm_penalty(values, mask, kind)
    assert penalty > 0
    torch.testing.assert_close(norm_penalty(values + 3.0, mask, kind), penalty, rtol=1e-4, atol=1e-5)
    changed = values.clone()
    changed[:, :3] = 1e3 * torch.arange(11)
    torch.testing.assert_close(norm_penalty(changed, mask, kind), penalty)
    assert norm_penalty(torch.zeros_like(values), mask, kind) < 1e-6


def test_penalty_keeps_value_logits_small_and_is_recorded(fresh: Fresh, tmp_path: Path) -> None:
    """A strong penalty shrinks the value logits; kind and coefficient stand in the artifact."""
    ids = torch.tensor([encode(DATA[0], fresh().adapters["default"].tokenizer)["input_ids"]])
    norms = []
    for name, changes in (("free", {}), ("tight", {"penalty": "l2", "penalty_coefficient": 50.0})):
        model = fresh()
        run = trainer(model, tmp_path / name, **changes)
        run.train()
        run.save_model(str(tmp_path / name / "final"))
        norms.append(float(model.eval()(ids, output_value_logits=True).value_logits.detach().abs().mean()))
    assert norms[1] < norms[0]
    record = json.loads((tmp_path / "tight" / "final" / "config.json").read_text())["training"]["regularisation"]
    assert record == {"kind": "l2", "coefficient": 50.0, "mask": "response", "centred": True}


def test_evaluation_during_training_and_the_best_adapter(fresh: Fresh, tmp_path: Path) -> None:
    """Held-out loss at every interval; the adapter that scored best is the one that is kept."""
    model = fresh()
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    every |= {"learning_rate": 1.0, "lr_scheduler_type": "constant", "save_total_limit": None}
    run = trainer(model, tmp_path, **every)
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(losses) == 6
    assert min(losses) < losses[-1] - 1e-3, "this learning rate must overshoot, or the test sees nothing"
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize("source", ["list", "file", "dataset"])
def test_demonstrations_come_in_every_form(tmp_path: Path, source: str) -> None:
    """Records at hand, a JSONL file and a `datasets` object are the same demonstrations."""
    rows = list(DATA)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"list": rows, "file": path, "dataset": DATA}[source]
    assert list(load_demonstrations(given)) == rows
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_demonstrations(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="at least one record"):
        load_demonstrations([])


def test_plain_text_carries_the_loss_everywhere(tokenizer: Any) -> None:
    """Every token of the text that another precedes, and the end, are learned."""
    row = encode({"text": "ABC"}, tokenizer)
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]
    assert tokenizer.decode(row["input_ids"]) == "ABC</s>"


def test_label_smoothing_shifts_labels(fresh: Fresh, tmp_path: Path) -> None:
    """Smoothing by almost nothing is the plain loss; without the shift it would be far off."""
    smooth = trainer(fresh(), tmp_path, label_smoothing_factor=1e-6).evaluate()["eval_loss"]
    assert smooth == pytest.approx(trainer(fresh(), tmp_path).evaluate()["eval_loss"], abs=1e-3)


def test_chat_loss_is_on_assistant_turns_only(tokenizer: Any) -> None:
    """Header and user text carry no loss; the end of an assistant's turn does."""
    messages = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "YO"}]
    row = encode({"messages": messages * 2}, tokenizer)
    learned = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    assert learned == "YO</s>YO</s>"


def test_gradient_checkpointing_recomputes(fresh: Fresh, tmp_path: Path) -> None:
    """It is really on: each layer of the network runs twice a step, each of the base once."""
    runs = {"network": 0, "base": 0}
    model = fresh()

    def count(name: str) -> Callable[..., None]:
        def hook(*args: object) -> None:
            runs[name] += 1

        return hook

    model.adapters["default"].networks[0].model.layers[0].self_attn.register_forward_hook(count("network"))
    model.base.model.layers[0].self_attn.register_forward_hook(count("base"))
    renamed = installed("transformers") >= (5, 24)
    with pytest.warns(FutureWarning, match="gradient_checkpointing") if renamed else nullcontext():
        run = trainer(model, tmp_path, gradient_checkpointing=True, max_steps=2, save_strategy="no")
    runs.update(network=0, base=0)  # the trainer has tried which heads they have
    run.train()
    assert runs == {"network": 4, "base": 2}


def test_a_chat_template_that_hides_where_the_answer_begins_is_refused(tokenizer: Any) -> None:
    """Templates of reasoning models open an answer with more than they render for a finished one."""
    template = tokenizer.chat_template
    other = copy.deepcopy(tokenizer)
    other.chat_template = template.replace("[a]{% endif %}", "[a]<think>{% endif %}")
    messages = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "HELLOWORLD"}]
    with pytest.raises(ConfigError, match="where the response begins"):
        encode({"messages": messages}, other)


def test_the_record_says_what_happened(fresh: Fresh, tmp_path: Path) -> None:
    """Steps, tokens, scale and data as they were."""
    model = fresh()
    model.set_scale("default", 0.5)
    run = trainer(model, tmp_path, max_steps=8, data_name="letters")
    run.train()
    config = run.trained_adapter().config
    tokens = sum(2 + i % 5 for i in range(32))  # a completion of 1 to 5 letters and the end, one epoch of 8 x 4
    assert config.scale == 0.5
    assert config.training is not None
    assert (config.training.steps, config.training.num_response_tokens) == (8, tokens)
    assert (config.training.num_examples, config.training.data) == (32, "letters")


def test_misuse_is_refused(fresh: Fresh, tokenizer: object, tmp_path: Path) -> None:
    """Nothing trainable, unknown penalty, records of no known shape, a response cut away."""
    model = fresh()
    model.value_networks.requires_grad_(False)
    with pytest.raises(ConfigError, match="is_trainable=True"):
        trainer(model, tmp_path)
    with pytest.raises(ConfigError, match="penalty must be"):
        ValueTrainingArguments(output_dir=str(tmp_path), penalty="l3")
    with pytest.raises(ConfigError, match="got the columns question"):
        encode({"question": "x"}, tokenizer)
    with pytest.raises(ConfigError, match="raise max_length"):
        encode(DATA[0], tokenizer, max_length=2)


def test_a_plain_trainer_predicts(fresh: Fresh, tmp_path: Path) -> None:
    """Logits, and not the caches that came with them, which are no tensors."""
    model = fresh()
    rows = [{"input_ids": torch.arange(5, 11), "labels": torch.arange(5, 11)}] * 3
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    out = Trainer(model, arguments, eval_dataset=rows).predict(rows)
    assert out.predictions.shape == (3, 6, 97)
    with torch.no_grad():
        expected = model(rows[0]["input_ids"][None]).logits[0]
    torch.testing.assert_close(torch.from_numpy(out.predictions[2]), expected, rtol=1e-4, atol=1e-4)
