"""What was measured of an adapter, or how it was trained, is said of the weights that it was made of alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_model

from valueadapter import RECORDED, ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments
from valueadapter.artifact.config import EvaluationRecord, RecommendedWeights, Regularisation, TrainingRecord, Weights

DATA = Dataset.from_list([{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(16)])
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
PREFIX = "A:b\nC:d\n"


def plain_adapter(seed: int = 2, **how: Any) -> ValueAdapter:
    network = tiny_model("llama", seed=seed)
    return ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base", **how)


def records(base: str, fingerprint: str, scale: float = 0.35) -> dict[str, Any]:
    measured = RecommendedWeights(fingerprint, base, Weights(1.0, (1.0,)), "alice/examples", 20, 2.0, 1.5, scale=scale)
    evaluated = EvaluationRecord(base, "the same", "alice/held-out", 50, scale, 2.0, None, 1.5)
    trained = TrainingRecord(
        "0.1", "random", None, None, Regularisation("none", 0.0), "alice/data", 10, 100, 5, 3.0, 2.0
    )
    return {"weights": (measured,), "evaluation": (evaluated,), "training": trained}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """An adapter with every record, which acts at 0.35 on the base that it was measured on."""
    adapter = plain_adapter()
    place = tmp_path / "published"
    adapter.with_config(**records("llama", adapter.config.vocabulary.byte_fingerprint)).save_pretrained(place)
    return place


def base(dtype: torch.dtype = torch.float32) -> Any:
    model = tiny_model("llama", seed=1).to(dtype)
    model.name_or_path = model.config.name_or_path = "llama"
    return model


def wrapper(adapter: Any = None, *, dtype: torch.dtype = torch.float32, **how: Any) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(base(dtype), tokenizer=byte_tokenizer())
    if adapter is not None:
        adapter = adapter if isinstance(adapter, ValueAdapter) else ValueAdapter.from_pretrained(adapter)
        model.add_adapter(adapter, "default", **how)
    return model


def trainer(model: ValueAdapterForCausalLM, folder: Path, **changes: Any) -> ValueTrainer:
    how: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "learning_rate": 1e-2, "report_to": []}
    quiet: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4}
    return ValueTrainer(
        model, ValueTrainingArguments(output_dir=str(folder), **how, **quiet, **changes), train_dataset=DATA
    )


# -- ways to other weights -------------------------------------------------------------------------------------------
def by_trainer(model: ValueAdapterForCausalLM, folder: Path) -> None:
    run = trainer(model, folder)
    run.train()
    run.save_model(str(folder))


def own_loop(model: ValueAdapterForCausalLM, folder: Path) -> None:
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)


@torch.no_grad()
def one_element(model: ValueAdapterForCausalLM, folder: Path) -> None:
    next(model.adapters["default"].networks[0].parameters()).data[3, 3] += 1e-3
    model.save_pretrained(folder)


def of_the_adapter(model: ValueAdapterForCausalLM, folder: Path) -> None:
    adapter = model.adapters["default"]
    adapter.networks[0].load_state_dict(tiny_model("llama", seed=9).state_dict())
    adapter.copy().with_config(scale=0.9).save_pretrained(folder)


def given_state(model: ValueAdapterForCausalLM, folder: Path) -> None:
    state = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)


def lora_of_peft(model: ValueAdapterForCausalLM, folder: Path) -> None:
    targets = r"value_networks\..*(q_proj|v_proj)"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    tuned.base_model.model.save_pretrained(folder)


WAYS: dict[str, Callable[[ValueAdapterForCausalLM, Path], None]] = {
    "trainer": by_trainer,
    "own loop": own_loop,
    "one element": one_element,
    "the adapter itself": of_the_adapter,
    "given state": given_state,
    "LoRA of PEFT": lora_of_peft,
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_other_weights_have_no_old_records(
    way: str, published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Measured scales, evaluation and training are left out of what is saved, and its card; it is said which."""
    model = wrapper(published, scale=1.0, is_trainable=True)
    WAYS[way](model, tmp_path / "new")
    config = ValueAdapter.from_pretrained(tmp_path / "new").config
    assert (config.weights, config.evaluation) == ((), ())
    assert config.training is None or config.training.data == "unnamed"
    card = (tmp_path / "new" / "README.md").read_text()
    assert "alice/held-out" not in card
    assert "alice/examples" not in card
    assert "weights fitted on 'llama'; evaluation on 'llama' with alice/held-out" in caplog.text
    expected = 0.9 if way == "the adapter itself" else 1.0
    assert wrapper(tmp_path / "new").scales["default"] == expected


def test_a_trained_adapter_acts_at_the_scale_it_was_trained_at(published: Path, tmp_path: Path) -> None:
    """Attached again from memory or disk; the scale measured of the old weights is not taken."""
    model = wrapper(published, scale=1.0, is_trainable=True)
    run = trainer(model, tmp_path)
    run.train()
    trained = run.trained_adapter()
    expected = model.eval()(IDS).logits
    torch.testing.assert_close(wrapper(trained.copy()).eval()(IDS).logits, expected)
    model.delete_adapter("default")
    assert wrapper(model_adapter := trained.copy()).scales["default"] == 1.0
    assert model_adapter.config.weights == ()
    run_of_old = ValueAdapter.from_pretrained(published)
    run_of_old.networks[0].load_state_dict(trained.networks[0].state_dict())
    assert wrapper(run_of_old).scales["default"] == run_of_old.config.scale


def test_what_is_not_changed_keeps_its_records(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved again, copied, attached for training and not trained, moved to the dtype of a base, or read in another."""
    whole = ValueAdapter.from_pretrained(published).config
    assert whole.weights
    assert whole.evaluation
    assert whole.training is not None
    places = iter(tmp_path / f"again-{number}" for number in range(9))
    narrow = wrapper(published, dtype=torch.bfloat16)
    savers = [
        ValueAdapter.from_pretrained(published),
        ValueAdapter.from_pretrained(published, dtype=torch.float16),
        wrapper(published),
        wrapper(published, is_trainable=True, scale=whole.scale),
        narrow,
        wrapper(published).half(),
        narrow.adapters["default"].copy(),
    ]
    for one in savers:
        place = next(places)
        one.save_pretrained(place)
        config = ValueAdapter.from_pretrained(place).config
        assert (config.weights, config.evaluation) == (whole.weights, whole.evaluation)
        assert config.training == whole.training
    twice = ValueAdapter.from_pretrained(next(iter(sorted(tmp_path.glob("again-4")))))
    twice.save_pretrained(next(places))
    assert "left out" not in caplog.text


def test_what_is_measured_after_the_change_is_kept(published: Path, tmp_path: Path) -> None:
    """And what was measured before it is not, though it stands beside."""
    adapter = ValueAdapter.from_pretrained(published)
    adapter.networks[0].load_state_dict(tiny_model("llama", seed=9).state_dict())
    fingerprint = adapter.config.vocabulary.byte_fingerprint
    new = records("mistral", fingerprint, scale=0.6)
    better = adapter.with_config(
        weights=(*adapter.config.weights, *new["weights"]), evaluation=(*adapter.config.evaluation, *new["evaluation"])
    )
    better.with_config(scale=0.8).save_pretrained(tmp_path / "new")
    config = ValueAdapter.from_pretrained(tmp_path / "new").config
    assert [one.base for one in config.weights] == ["mistral"]
    assert [one.base for one in config.evaluation] == ["mistral"]
    assert config.training is None


def test_the_same_figures_measured_again_are_kept(published: Path, tmp_path: Path) -> None:
    """A record is put in by whoever measured it, whatever it says."""
    adapter = ValueAdapter.from_pretrained(published)
    adapter.networks[0].load_state_dict(tiny_model("llama", seed=9).state_dict())
    again = records("llama", adapter.config.vocabulary.byte_fingerprint)
    adapter.with_config(weights=again["weights"]).save_pretrained(tmp_path / "new")
    assert ValueAdapter.from_pretrained(tmp_path / "new").config.weights == again["weights"]


def test_measured_behind_one_prefix_is_not_said_of_another(published: Path, tmp_path: Path) -> None:
    """Scales and evaluation depend on what the base reads; how the weights were trained does not."""
    adapter = ValueAdapter.from_pretrained(published).with_config(base_prefix=PREFIX)
    adapter.save_pretrained(tmp_path / "new")
    config = ValueAdapter.from_pretrained(tmp_path / "new").config
    assert (config.weights, config.evaluation) == ((), ())
    assert config.training is not None


def test_a_swapped_adapter_brings_its_own_records(published: Path, tmp_path: Path) -> None:
    """Not those of the one whose place it takes, and not fewer than it has."""
    model = wrapper(plain_adapter(seed=7))
    model.hotswap_adapter(ValueAdapter.from_pretrained(published), "default")
    model.save_pretrained(tmp_path / "new")
    assert ValueAdapter.from_pretrained(tmp_path / "new").config.weights
    model.hotswap_adapter(plain_adapter(seed=8), "default")
    model.save_pretrained(tmp_path / "other")
    assert not ValueAdapter.from_pretrained(tmp_path / "other").config.weights


# -- the prefix that it is trained behind ----------------------------------------------------------------------------
def prefixed_model(how: str) -> tuple[ValueAdapterForCausalLM, Any]:
    """A model to be trained, and what its base reads."""
    recorded = {"override": "Old:\n", "none": "Old:\n", "recorded": PREFIX}.get(how)
    adapter = plain_adapter(base_prefix=recorded)
    given = {"attached": PREFIX, "override": PREFIX, "none": None}.get(how, RECORDED)
    model = wrapper(adapter, base_prefix=given, is_trainable=True)
    if how == "set":
        model.set_base_prefix(PREFIX)
    return model, None if how == "none" else PREFIX


@pytest.mark.parametrize("saved_by", ["trainer", "wrapper after the trainer", "own loop"])
@pytest.mark.parametrize("how", ["attached", "set", "override", "none", "recorded"])
def test_the_prefix_that_an_adapter_is_trained_behind_is_recorded(how: str, saved_by: str, tmp_path: Path) -> None:
    """Loaded again it acts as it did; also where another prefix was set between training and saving."""
    model, expected = prefixed_model(how)
    place = tmp_path / "new"
    if saved_by == "own loop":
        own_loop(model, place)
    else:
        run = trainer(model, tmp_path / "run")
        run.train()
        logits = model.eval()(IDS).logits
        model.set_base_prefix("Z: y\n")  # to try something else
        model(IDS)
        if saved_by == "trainer":
            run.save_model(str(place))
        else:
            model.save_pretrained(place)
        model.set_base_prefix(RECORDED)
        torch.testing.assert_close(wrapper(place).eval()(IDS).logits, logits)
    assert ValueAdapter.from_pretrained(place).config.base_prefix == expected


def test_an_adapter_that_is_only_used_is_saved_as_it_came(tmp_path: Path) -> None:
    """A prefix or scale chosen at attaching is not the adapter's."""
    model = wrapper(plain_adapter(base_prefix="Old:\n"), base_prefix=PREFIX, scale=0.3)
    model.save_pretrained(tmp_path / "new")
    config = ValueAdapter.from_pretrained(tmp_path / "new").config
    assert (config.base_prefix, config.scale) == ("Old:\n", 1.0)
