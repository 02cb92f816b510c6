"""The loss from hidden states is the loss of the logits: same number, same gradients, with every setting."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from transformers import PreTrainedModel
from vocabularies import tokenizer_of

from valueadapter import (
    ConfigError,
    IncompatibleBaseError,
    UnsupportedModeError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
)
from valueadapter.adapter.causal_lm import set_trainable
from valueadapter.training.bases import public_name
from valueadapter.training.fast_path import _stand_ins

DATA = Dataset.from_list([{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(16)])
Make = Callable[..., ValueTrainer]


@pytest.fixture
def make(tokenizer: Any, tmp_path: Path) -> Make:
    def trainer(scale: float = 0.7, network: str = "qwen3", width: int = 97, **changes: Any) -> ValueTrainer:
        base = changes.pop("base", None) or tiny_model("llama", seed=1)
        model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
        wider = changes.pop("wider", 0)  # columns that each network has more than the one before it
        networks = [tiny_model(network, seed=2 + i, width=width + i * wider) for i in range(changes.pop("networks", 1))]
        prefix = changes.pop("prefix", None)
        stands_in = changes.pop("stands_in", False)  # the last network is the base itself, frozen
        if stands_in:
            networks.append(copy.deepcopy(base))
        adapter = ValueAdapter.from_networks(
            networks,
            tokenizer,
            base_model_name_or_path="alice/base",
            base_prefix=prefix,
            coefficients=changes.pop("coefficients", None),
            reads_prefix=changes.pop("reads_prefix", None),
        )
        model.add_adapter(adapter, "default", scale=scale, is_trainable=True)
        if stands_in and not changes.pop("unfrozen", False):
            set_trainable(networks[-1], False)
        theirs = {key: changes.pop(key) for key in ("other_bases", "compute_metrics") if key in changes}
        quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 0}
        settings = {"cache_base_dir": str(tmp_path / "states"), "max_steps": 4, "learning_rate": 1e-2, **quiet}
        args = ValueTrainingArguments(output_dir=str(tmp_path), **{**settings, **changes})
        return ValueTrainer(model, args, train_dataset=DATA, eval_dataset=DATA.select(range(4)), **theirs)

    return trainer


def noted(module: torch.nn.Module, note: Callable[[], None]) -> None:
    """Has it noted when a module runs; not by a hook, which could change what it gives, and would be refused."""
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        note()
        return forward(*args, **kwargs)

    module.forward = watched


def whole(run: ValueTrainer) -> ValueTrainer:
    """The same trainer, made to go through the logits."""
    run.hidden_state_loss = None
    return run


def loss_and_gradients(run: ValueTrainer, count: int | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = run.data_collator([run.train_dataset[i] for i in range(6)])
    run.model.train()
    torch.manual_seed(0)  # GPT-2 has dropout
    loss = run.compute_loss(run.model, batch, num_items_in_batch=count)
    assert isinstance(loss, torch.Tensor)
    torch.autograd.backward(loss)
    parameters = [p for p in run.model.value_networks.parameters() if p.grad is not None]
    return loss.detach(), [p.grad for p in parameters if p.grad is not None]


def assert_same(one: ValueTrainer, two: ValueTrainer, *, rtol: float, count: int | None = None) -> None:
    (a, mine), (b, theirs) = loss_and_gradients(one, count), loss_and_gradients(two, count)
    torch.testing.assert_close(a, b, rtol=rtol, atol=0)
    assert len(mine) == len(theirs) > 10
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=rtol * float(y.abs().max()) + 1e-9)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalty": {"penalty": "l1", "penalty_coefficient": 3.0},
    "raw penalty": {"penalty": "l2", "penalty_coefficient": 3.0, "centred": False},
    "entropy": {"penalty": "entropy"},
    "smoothing": {"label_smoothing_factor": 0.2},
    "smoothing and penalty": {"label_smoothing_factor": 0.1, "penalty": "l2"},
    "gpt2 network": {"network": "gpt2"},
    "sliding windows": {"network": "gemma3"},
    "wider network": {"width": 104},
    "prefix": {"prefix": "Q:A Q:B"},
    "two networks": {"networks": 2, "coefficients": [0.5, -1.5], "penalty": "l2"},
    "a weighted network": {"coefficients": [0.5]},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("count", [None, 11])
def test_same_loss_and_gradients_as_from_logits(make: Make, changes: dict[str, Any], count: int | None) -> None:
    """Per token of the batch or of the accumulated batch, in fp32 to a few rounding errors."""
    run = make(**changes)
    assert run.hidden_state_loss is not None
    assert_same(run, whole(make(**changes)), rtol=5e-6, count=count)


@pytest.mark.parametrize("changes", [{}, {"label_smoothing_factor": 0.1}], ids=["plain", "smoothing"])
def test_a_base_with_padded_logits(make: Make, changes: dict[str, Any]) -> None:
    """Columns that no token has take part in the softmax as they do in the sum."""
    bases = [tiny_model("llama", seed=1, width=103) for _ in range(2)]
    assert_same(make(base=bases[0], **changes), whole(make(base=bases[1], **changes)), rtol=5e-6)


PAIR = {"stands_in": True, "coefficients": [1.0, -1.0]}


@pytest.mark.parametrize(
    "changes",
    [{"scale": 1.0}, {"scale": 0.7}, {"scale": 0.7, "penalty": "l1"}, {"scale": 1.0, "penalty": "entropy"}],
    ids=["cancels", "in part", "penalty", "cancels but is penalised"],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_frozen_network_that_is_the_base_does_not_run(
    make: Make, kind: str, cached: bool, changes: dict[str, Any]
) -> None:
    """Same loss and gradients as from all logits; the base runs where it counts, and only then. GPT-2 has dropout."""
    bases = [tiny_model(kind, seed=1) for _ in range(2)]
    run, slow = (make(base=base, cache_base=cached, **PAIR, **changes) for base in bases)
    assert run.hidden_state_loss is not None
    assert run.hidden_state_loss.stand_ins == {1}
    ran = []
    run.model.value_networks["default"][1].register_forward_pre_hook(lambda *_: ran.append("network"))
    noted(run.model.value_networks["default"][1].base_model, lambda: ran.append("network"))
    noted(run.model.base.base_model, lambda: ran.append("base"))
    assert_same(run, whole(slow), rtol=2e-3 if cached else 5e-6)
    assert ran == ([] if cached or ("penalty" not in changes and changes["scale"] == 1) else ["base"])


@pytest.mark.parametrize("changed", ["weights", "prefix", "trainable", "another base"])
def test_a_network_that_is_not_the_base_runs(make: Make, tokenizer: Any, changed: str) -> None:
    """Other weights, other text, weights that move, or rows that another base reads."""
    base = tiny_model("llama", seed=1)
    more: dict[str, dict[str, Any]] = {
        "weights": {},
        "prefix": {"prefix": "Q:A "},
        "trainable": {"unfrozen": True},
        "another base": {"other_bases": [other(tokenizer)]},
    }
    run = make(base=base, **PAIR, **more[changed])
    if changed == "weights":
        run.model.value_networks["default"][1].base_model.norm.weight.data[0] += 1e-6
        assert _stand_ins(run.model, [base]) == frozenset()
        return
    assert run.hidden_state_loss is not None
    assert run.hidden_state_loss.stand_ins == frozenset()


@pytest.mark.parametrize("base", ["llama", "gemma3"])
def test_a_prefix_on_a_base_with_windows(make: Make, base: str) -> None:
    """Padding beside a prefix that a window of 4 tokens cannot hold."""
    runs = [make(base=tiny_model(base, seed=1), prefix="Q:A Q:B") for _ in range(2)]
    assert_same(runs[0], whole(runs[1]), rtol=5e-6)


@pytest.mark.parametrize("prefix", [None, "Q:A Q:B"])
def test_states_from_disk_give_the_loss_within_rounding(make: Make, prefix: str | None) -> None:
    """Float16 keeps 11 bits: 5e-4 of a state, and no more than 2e-3 of the largest gradient."""
    assert_same(make(cache_base=True, prefix=prefix), make(prefix=prefix), rtol=2e-3)


def test_with_cached_states_no_epoch_touches_the_base(make: Make) -> None:
    """Two epochs and the evaluations between them, the base raising all the while; the result is the uncached one."""
    settings = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "optim": "sgd", "learning_rate": 0.3}
    cached, plain, start = make(cache_base=True, **settings), make(**settings), make()

    def forbidden(*args: object) -> None:
        raise AssertionError("the base ran")

    cached.model.base.register_forward_pre_hook(forbidden)
    noted(cached.model.base.model, forbidden)
    cached.train()
    plain.train()
    assert distance(cached, plain) < 2e-3
    assert distance(cached, start) > 0.03
    losses = [
        [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry] for run in (cached, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert len(losses[0]) == 2


def plain_loss(run: ValueTrainer, batch: dict[str, Any]) -> torch.Tensor:
    loss = run.compute_loss(run.model.train(), batch, num_items_in_batch=1)
    assert isinstance(loss, torch.Tensor)
    return loss.detach()


def distance(a: ValueTrainer, b: ValueTrainer) -> float:
    pairs = zip(a.model.value_networks.parameters(), b.model.value_networks.parameters(), strict=True)
    return max(float((x - y).detach().abs().max()) for x, y in pairs)


# -- several bases ---------------------------------------------------------------------------------------------------
def other(tokenizer: Any, kind: str = "gpt2", seed: int = 9, width: int = 97) -> ValueAdapterForCausalLM:
    return ValueAdapterForCausalLM(tiny_model(kind, seed=seed, width=width), tokenizer=tokenizer)


@pytest.mark.parametrize("cached", [False, True])
def test_each_row_is_read_by_its_base(make: Make, tokenizer: Any, cached: bool) -> None:
    """The loss of a mixed batch is the sum over bases of the losses of their rows, each as from one base alone."""
    run = make(other_bases=[other(tokenizer)], cache_base=cached)
    assert run.hidden_state_loss is not None
    batch = run.data_collator([run.train_dataset[i] for i in range(8)])
    drawn = [run.hidden_state_loss.bases.drawn(key, 0) for key in batch["sample_keys"]]
    assert set(drawn) == {0, 1}
    expected = torch.tensor(0.0)
    for index, base in enumerate((tiny_model("llama", seed=1), tiny_model("gpt2", seed=9))):
        rows = [i for i, one in enumerate(drawn) if one == index]
        alone = whole(make(base=base))
        part = alone.data_collator([alone.train_dataset[i] for i in rows])
        expected += plain_loss(alone, part)
    torch.testing.assert_close(plain_loss(run, batch), expected, rtol=1e-3 if cached else 5e-6, atol=0)


@pytest.mark.parametrize("cached", [False, True])
def test_each_base_reads_its_rows_behind_the_prefix(make: Make, tokenizer: Any, cached: bool) -> None:
    """As without one: the sum over bases, each as if it were the only one; evaluation is on the training base."""
    run = make(prefix="Q:A ", other_bases=[other(tokenizer)], cache_base=cached)
    assert run.hidden_state_loss is not None
    batch = run.data_collator([run.train_dataset[i] for i in range(12)])
    drawn = [run.hidden_state_loss.bases.drawn(key, 0) for key in batch["sample_keys"]]
    assert set(drawn) == {0, 1}
    expected = torch.tensor(0.0)
    for index, base in enumerate((tiny_model("llama", seed=1), tiny_model("gpt2", seed=9))):
        rows = [i for i, one in enumerate(drawn) if one == index]
        alone = whole(make(base=base, prefix="Q:A "))
        expected += plain_loss(alone, alone.data_collator([alone.train_dataset[i] for i in rows]))
    torch.testing.assert_close(plain_loss(run, batch), expected, rtol=1e-3 if cached else 5e-6, atol=0)
    alone = make(prefix="Q:A ").evaluate()["eval_loss"]
    assert run.evaluate()["eval_loss"] == pytest.approx(alone, rel=1e-3 if cached else 1e-5)


def test_bases_are_drawn_anew_each_epoch_and_evenly(make: Make, tokenizer: Any) -> None:
    """By seed, epoch and demonstration, whoever asks; about half each."""
    one, two = (make(other_bases=[other(tokenizer)]).hidden_state_loss for _ in range(2))
    assert one is not None
    assert two is not None
    keys = [f"{i:032x}" for i in range(400)]
    draws = [[one.bases.drawn(key, epoch) for key in keys] for epoch in (0, 1)]
    assert draws[0] == [two.bases.drawn(key, 0) for key in keys]
    assert draws[0] != draws[1]
    assert all(150 < sum(draw) < 250 for draw in draws)
    two.bases.seed = 1
    assert draws[0] != [two.bases.drawn(key, 0) for key in keys]


def test_resuming_draws_the_same_bases(make: Make, tokenizer: Any, tmp_path: Path) -> None:
    """Stopped in the second of three epochs and taken up again: bit-equal weights."""
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 8}
    runs = [make(other_bases=[other(tokenizer)], **settings) for _ in range(2)]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert distance(*runs) == 0
    record = runs[1].trained_adapter().config.training
    assert record is not None
    assert (record.epochs, record.learning_rate, len(record.other_bases)) == (3.0, 1e-2, 1)


def test_a_base_of_another_vocabulary_is_refused(make: Make) -> None:
    """The loss of one batch is in one vocabulary."""
    theirs = tokenizer_of("bytes")
    with pytest.raises(IncompatibleBaseError, match="another vocabulary than the training base"):
        make(other_bases=[other(theirs, width=len(theirs))])


def test_a_record_names_no_path(tmp_path: Path) -> None:
    """A Hub ID as it is; of a directory the last part."""
    model: PreTrainedModel = tiny_model("llama", seed=1)
    model.name_or_path = "alice/base"
    assert public_name(model) == "alice/base"
    model.name_or_path = str(tmp_path)
    assert public_name(model) == tmp_path.name


# -- where it cannot be ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "torch_compile"),
        ({"networks": 2, "wider": 3}, "the networks' logits have different widths"),
    ],
    ids=["compiled", "widths"],
)
def test_otherwise_logits_are_computed_and_the_log_says_why(
    make: Make, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    """One line, and the training goes on; with a cache it is an error instead."""
    with caplog.at_level(logging.INFO, logger="valueadapter"):
        run = make(**changes)
    assert run.hidden_state_loss is None
    assert [reason in record.message for record in caplog.records if "whole logits" in record.message] == [True]
    with pytest.raises(ConfigError, match=reason):
        make(cache_base=True, **changes)


def test_metrics_get_logits(make: Make) -> None:
    """Evaluation with metrics sees whole rows; training beside it needs none."""
    seen: list[tuple[int, ...]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {}

    run = make(compute_metrics=metrics)
    without = make().evaluate()["eval_loss"]
    assert run.evaluate()["eval_loss"] == pytest.approx(without, rel=1e-5)
    assert seen == [(4, max(len(row["input_ids"]) for row in run.eval_dataset), 97)]


def test_a_batch_without_a_response_has_gradients_of_zero(make: Make) -> None:
    """Other processes wait for them."""
    run = make()
    batch = run.data_collator([run.train_dataset[0]])
    batch["labels"].fill_(-100)
    loss = run.compute_loss(run.model.train(), batch, num_items_in_batch=3)
    assert isinstance(loss, torch.Tensor)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert run.model.value_networks["default"][0].model.norm.weight.grad.abs().max() == 0


# -- giving the base's memory back -------------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [{}, {"prefix": "Q:A ", "penalty": "l1"}, {**PAIR, "scale": 1.0}])
def test_training_needs_no_more_of_a_cached_base_than_its_head(make: Make, changes: dict[str, Any]) -> None:
    """Same weights as with the base at hand, evaluation included; its body holds no memory."""
    settings = {"cache_base": True, "eval_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}
    released, plain = (make(release_base=given, **settings, **copy.deepcopy(changes)) for given in (True, False))
    base = released.model.base
    assert sum(p.numel() for p in base.parameters()) == base.get_output_embeddings().weight.numel()
    released.train()
    plain.train()
    assert distance(released, plain) == 0
    assert released.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert released.trained_adapter().config.training is not None


def test_a_base_without_its_body_says_so(make: Make) -> None:
    """Whatever else is asked of the model, and what the option needs."""
    model = make(cache_base=True, release_base=True).model
    ids = torch.tensor([[5, 6]])
    for ask in (lambda: model(ids), lambda: model.generate(ids, max_new_tokens=2), model.unload):
        with pytest.raises(UnsupportedModeError, match="attach it to a base that is loaded anew"):
            ask()
    with pytest.raises(ConfigError, match="needs cache_base=True and no compute_metrics"):
        make(release_base=True)
    with pytest.raises(ConfigError, match="needs cache_base=True and no compute_metrics"):
        make(cache_base=True, release_base=True, compute_metrics=lambda prediction: {})
