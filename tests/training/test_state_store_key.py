"""Hidden states on disk are found again by all that they depend on, and a trainer relies on none out of date."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from base_states_run import DATA, VOCABULARY
from datasets import Dataset
from test_prefix_states import scale_up, with_loras
from tiny import byte_tokenizer, tiny_model

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, ValueTrainer, ValueTrainingArguments
from valueadapter.adapter.causal_lm import set_trainable
from valueadapter.training.state_store import BaseStates, sample_key, store_key

RECORDS = Dataset.from_list([{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(8)])
Change = Callable[[Any], object]


def buffers(model: Any) -> None:
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer.mul_(3)


def head(model: Any) -> None:
    model.get_base_model().lm_head.weight.data += 1


SETTINGS: dict[str, Change] = {
    "another LoRA": lambda model: model.set_adapter("two"),
    "both LoRAs": lambda model: model.base_model.set_adapter(["one", "two"]),
    "LoRA off": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(["two"]),
    "scaling": scale_up,
    "buffers": buffers,
    "dropout on": lambda model: model.train(),
    "attention": lambda model: model.get_base_model().set_attn_implementation("eager"),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_how_a_base_is_set_has_a_store_of_its_own(change: str, tmp_path: Path) -> None:
    """Found again when it is set so again; and the states in it are the base's."""
    base = with_loras(tiny_model("llama", seed=1))
    key = store_key(base, VOCABULARY)
    BaseStates.build(base, DATA, tmp_path, vocabulary=VOCABULARY)
    SETTINGS[change](base)
    assert store_key(base, VOCABULARY) != key
    states = BaseStates.build(base, DATA, tmp_path, vocabulary=VOCABULARY)
    record = DATA[0]
    hidden = base.get_base_model().model(torch.tensor([record["input_ids"]])).last_hidden_state[0].detach()
    positions = [i for i, label in enumerate(record["labels"][1:]) if label != -100]
    torch.testing.assert_close(states[sample_key(record)].float(), hidden[positions], rtol=1e-2, atol=1e-3)
    again = with_loras(tiny_model("llama", seed=1))
    assert store_key(again, VOCABULARY) == key
    SETTINGS[change](again)
    assert store_key(again, VOCABULARY) == store_key(base, VOCABULARY)


def test_precision_has_a_store_of_its_own() -> None:
    """What autocast computes is not what is computed without."""
    base = tiny_model("llama", seed=1)
    keys = {store_key(base, VOCABULARY)}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            keys.add(store_key(base, VOCABULARY))
    assert len(keys) == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "mistral", "qwen3"])
def test_what_changes_nothing_has_no_store_of_its_own(kind: str, tmp_path: Path) -> None:
    """Use of the base, saving and loading it, and where it came from."""
    base = tiny_model(kind, seed=1)
    key = store_key(base, VOCABULARY)
    ids = torch.randint(3, 97, (2, 7))
    base(ids, output_hidden_states=True)
    base.generate(ids, max_new_tokens=3, do_sample=False)
    assert store_key(base, VOCABULARY) == key
    base.save_pretrained(tmp_path / "copy")
    assert store_key(type(base).from_pretrained(tmp_path / "copy").eval(), VOCABULARY) == key
    assert store_key(copy.deepcopy(base), VOCABULARY) == key


def test_a_head_has_no_part_in_it() -> None:
    """Hidden states come before it."""
    base = with_loras(tiny_model("llama", seed=1))
    key = store_key(base, VOCABULARY)
    head(base)
    assert store_key(base, VOCABULARY) == key


def test_what_a_hook_makes_of_a_layer_is_not_kept() -> None:
    """Nothing tells what it does."""
    base = tiny_model("llama", seed=1)
    base.model.layers[0].register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ConfigError, match=r"'layers\.0' of the base has a hook"):
        store_key(base, VOCABULARY)


# -- in a trainer ----------------------------------------------------------------------------------------------------
def trainer(base: Any, tmp_path: Path, *, stands_in: bool = False, **how: Any) -> ValueTrainer:
    model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer())
    networks = [tiny_model("llama", seed=2)]
    coefficients = [1.0]
    if stands_in:
        networks.append(copy.deepcopy(base))
        coefficients.append(-1.0)
    adapter = ValueAdapter.from_networks(
        networks, byte_tokenizer(), base_model_name_or_path="alice/base", coefficients=coefficients
    )
    model.add_adapter(adapter, "default", scale=1.0, is_trainable=True)
    if stands_in:
        set_trainable(networks[-1], False)
        networks[-1].eval()
    quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = ValueTrainingArguments(output_dir=str(tmp_path), num_train_epochs=1, **quiet, **how)
    return ValueTrainer(model, args, train_dataset=RECORDS)


@pytest.mark.parametrize("change", ["another LoRA", "LoRA off", "scaling"])
@pytest.mark.parametrize("relied_on", ["cached states", "a network that stands in"])
def test_a_base_that_changes_after_the_trainer_was_made_is_refused(change: str, relied_on: str, tmp_path: Path) -> None:
    """Before a step is trained on what the base no longer says."""
    how: Any = {"cache_base": True, "cache_base_dir": str(tmp_path / "cache")} if relied_on == "cached states" else {}
    base = with_loras(tiny_model("llama", seed=1))
    run = trainer(base, tmp_path, stands_in=relied_on != "cached states", **how)
    SETTINGS[change](base)
    base.requires_grad_(False)
    with pytest.raises(ConfigError, match="has changed since the trainer was made"):
        run.train()
    assert run.state.global_step == 0


def test_a_prefix_that_changes_after_the_trainer_was_made_is_refused(tmp_path: Path) -> None:
    """It has taken up the one before."""
    run = trainer(tiny_model("llama", seed=1), tmp_path)
    run.model.set_base_prefix("A:b\n")
    with pytest.raises(ConfigError, match="the base prefix was changed after the trainer was made"):
        run.train()


def test_networks_of_one_base_with_other_loras_are_two(tmp_path: Path) -> None:
    """Equal weights do not make them one network, to be held and run once for two adapters."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
    networks = [with_loras(tiny_model("llama", seed=2)) for _ in range(2)]
    networks[1].set_adapter("two")
    networks[1].requires_grad_(False)
    expected = model.base(ids).logits + sum(network(ids).logits for network in networks)
    for name, network in zip("ab", networks, strict=True):
        adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base")
        model.add_adapter(adapter, name, scale=1.0)
    model.set_adapter(["a", "b"])
    torch.testing.assert_close(model(ids).logits, expected)
