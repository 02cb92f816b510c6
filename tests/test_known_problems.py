"""What users of such libraries report in public threads (docs/known-problems.md) and no other file's tests show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server as server
from datasets import Dataset
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session
from test_from_pretrained import IDS, adapter_of
from test_from_pretrained import base as base
from test_management import Make
from test_management import make as make
from test_management import model as model
from test_mixed_rows import IDS as ROWS
from test_mixed_rows import MASK, Mixed
from test_mixed_rows import mixed as mixed
from tiny import byte_tokenizer, tiny_model
from transformers import AutoModelForCausalLM, pipeline

from testkit.local_hub import LocalHub
from valueadapter import (
    AdapterNameError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
)

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def trainable(model: ValueAdapterForCausalLM) -> dict[str, bool]:
    return {
        name: any(p.requires_grad for network in adapter.networks for p in network.parameters())
        for name, adapter in model.adapters.items()
    }


def test_choosing_and_switching_off_leave_frozen_what_is_frozen(model: ValueAdapterForCausalLM, make: Make) -> None:
    """Active is not trainable: no choice of adapters unfreezes one, nor does leaving a block (peft 3447, 1374)."""
    model.add_adapter(make(21), "t", is_trainable=True)
    expected = {"a": False, "b": False, "c": False, "t": True}
    with model.disable_adapter():
        assert trainable(model) == expected
    assert trainable(model) == expected
    model.disable_adapters()
    model.enable_adapters()
    assert trainable(model) == expected
    for names in (["a", "c"], "t"):
        model.set_adapter(names)
        assert trainable(model) == expected


def test_a_pipeline_by_id_uses_the_adapter(base: str) -> None:
    """`pipeline(model="user/adapter")` once ran the base alone (transformers PR 36480)."""
    adapter_of(tiny_model("gpt2", seed=2), commit=base, scale=0.5).push_to_hub("alice/adapter")
    generate = pipeline("text-generation", model="alice/adapter")
    assert isinstance(generate.model, ValueAdapterForCausalLM)
    assert list(generate.model.adapters) == ["default"]


@pytest.mark.parametrize("by", ["commit", "tag"])
def test_the_adapters_revision_is_not_the_bases(base: str, by: str) -> None:
    """A revision of the adapter is not looked for in the base's repository (transformers 29849)."""
    adapter_of(tiny_model("llama", seed=2), commit=base).push_to_hub("alice/adapter")
    commit = HfApi().list_repo_commits("alice/adapter")[0].commit_id
    HfApi().create_tag("alice/adapter", tag="v1")
    adapter_of(tiny_model("llama", seed=9), commit=base).push_to_hub("alice/adapter")
    model = AutoModelForCausalLM.from_pretrained("alice/adapter", revision=commit if by == "commit" else "v1")
    expected = tiny_model("llama", seed=1)(IDS).logits + tiny_model("llama", seed=2)(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected)


def test_base_and_adapter_load_from_the_cache_alone(
    server: LocalHub, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline nothing is asked for, of either repository (transformers 31700)."""
    adapter_of(tiny_model("llama", seed=2), commit=base).push_to_hub("alice/adapter")
    online = AutoModelForCausalLM.from_pretrained("alice/adapter")(IDS).logits
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    server.log.clear()
    assert torch.equal(AutoModelForCausalLM.from_pretrained("alice/adapter")(IDS).logits, online)
    assert not server.log


def test_saving_asks_the_hub_nothing(server: LocalHub, tmp_path: Path) -> None:
    """Not even whether the base's embedding was resized (peft 1452)."""
    adapter = adapter_of(tiny_model("llama", seed=2))
    server.log.clear()
    adapter.save_pretrained(tmp_path / "a")
    assert not server.log


@pytest.mark.parametrize("name", ["lora", "weight", "value_network", "q_proj", "adapter"])
def test_any_usable_name_saves_and_loads_the_same_weights(
    model: ValueAdapterForCausalLM, make: Make, tmp_path: Path, name: str
) -> None:
    """A name is no part of a tensor's name that is searched for (peft 2252, 2699, 2772)."""
    model.add_adapter(make(31), name)
    model.add_adapter(make(32), f"{name}_more")
    model.save_pretrained(tmp_path / "a", adapter_name=name)
    loaded = ValueAdapter.from_pretrained(tmp_path / "a").networks[0].state_dict()
    own = model.adapters[name].networks[0].state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in own.items())


def test_sampled_answers_keep_their_rows(mixed: Mixed) -> None:
    """Several sampled answers to each prompt, of which each has its adapters (peft 2283)."""
    model, names = mixed(), ["a", "b", None, ["a", "b"], "a"]
    asked = {"attention_mask": MASK, "adapter_names": names}
    expected = model.generate(ROWS, **asked, **GREEDY).repeat_interleave(3, 0)
    sampled = {**GREEDY, "do_sample": True, "top_k": 1, "num_return_sequences": 3}
    assert torch.equal(model.generate(ROWS, **asked, **sampled), expected)


def test_padding_with_the_end_token(mixed: Mixed) -> None:
    """What stands in the padding is of no account, the end of a text included (transformers 25790)."""
    model = mixed()
    model.set_adapter("a")
    ids, mask = ROWS[:2].clone(), torch.ones_like(ROWS[:2])
    mask[1, :3] = 0
    answers = []
    for pad in (0, 2):
        ids[1, :3] = pad
        answers.append(model.generate(ids, attention_mask=mask, **{**GREEDY, "pad_token_id": pad})[:, ids.shape[1] :])
    assert torch.equal(*answers)


def test_a_tokenizer_with_an_id_beyond_the_networks_rows() -> None:
    """A token that was added, and that neither model has a row for in training: no crash (mergekit PR 657)."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    adapter = ValueAdapter.from_networks([tiny_model("llama", seed=2)], tokenizer, base_model_name_or_path="a/b")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=104), tokenizer=tokenizer)
    model.add_adapter(adapter, "default")
    ids = torch.tensor([[5, 97, 7]])
    assert model(ids).logits.isfinite().all()
    assert model.generate(ids, **GREEDY).shape == (1, 8)


def test_several_adapters_in_a_trainer_are_refused(model: ValueAdapterForCausalLM, make: Make, tmp_path: Path) -> None:
    """One adapter is trained at a time, so that a checkpoint is one adapter (transformers 30478)."""
    model.add_adapter(make(21), "t", is_trainable=True)
    args = ValueTrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(AdapterNameError, match="name the adapter"):
        ValueTrainer(model, args, train_dataset=Dataset.from_list([{"prompt": "Q", "completion": "A"}]))
