"""What several models have in common is held once, and what changes one of them changes no other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server as server
from bodies import lora_on, pair_of
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.lora import build_lora_network
from valueadapter.adapter.shared_tensors import held_bytes
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.model.bodies import Bodies

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def bytes_of(model: Any) -> int:
    """Of its weights."""
    return sum(parameter.nbytes for parameter in model.parameters())


def test_adapters_of_one_body_hold_it_once(tokenizer: Any) -> None:
    """Two LoRAs, each less their body, on another base: one body and two LoRAs."""
    model = pair_of(tiny_model("llama", seed=1), tokenizer, tokenizer, tiny_model("qwen3", seed=9), None)
    lora = sum(p.nbytes for name, p in model.adapters["a"].networks[0].named_parameters() if "lora_" in name)
    body = bytes_of(tiny_model("qwen3", seed=9))
    assert bytes_of(model) == bytes_of(model.base) + body + 2 * lora
    assert held_bytes(model.adapters["b"].networks) < body + 2 * lora


def inside(model: ValueAdapterForCausalLM) -> None:
    """Past the model that is guarded."""
    model.adapters["a"].networks[0].get_base_model().lm_head.to(torch.bfloat16)


def one_row(model: ValueAdapterForCausalLM) -> None:
    """A token of which somebody knows better."""
    with torch.no_grad():
        model.base.get_input_embeddings().weight[5] += 1


def another_dtype(model: ValueAdapterForCausalLM) -> None:
    """A layer of the base."""
    model.base.model.layers[0].to(torch.float64)


@pytest.mark.parametrize("change", [inside, one_row, another_dtype])
def test_whatever_changes_in_place_is_an_error(tokenizer: Any, change: Callable[[Any], None]) -> None:
    """Of part of the weights, too; and no other adapter is attached on top, nor the model moved."""
    body = tiny_model("qwen3", seed=9)
    model = pair_of(copy.deepcopy(body), tokenizer, tokenizer, body, None)
    change(model)
    for call in (
        lambda: model.generate(IDS, **GREEDY),
        lambda: model.to(torch.float32),
        lambda: model.add_adapter(
            ValueAdapter.from_networks([lora_on(body, 7)], tokenizer, base_model_name_or_path="x/y"), "c"
        ),
    ):
        with pytest.raises(UnsupportedModeError, match="attach it"):
            call()
    assert "c" not in model.adapters


def test_a_swap_of_the_lora_leaves_the_body_held_once(tokenizer: Any) -> None:
    """After a text, too."""
    body = tiny_model("qwen3", seed=9)
    model = ValueAdapterForCausalLM(copy.deepcopy(body), tokenizer=tokenizer).eval()
    for seed in (5, 6):
        networks = [lora_on(body, seed), copy.deepcopy(body)]
        adapter = ValueAdapter.from_networks(networks, tokenizer, base_model_name_or_path="x/y", coefficients=[1, -1])
        if seed == 5:
            model.add_adapter(adapter, "a")
            model.generate(IDS, **GREEDY)
            held = bytes_of(model)
    model.hotswap_adapter(adapter, "a")
    assert bytes_of(model) == held
    assert model.get_adapter_status()[0].passes == 1


def test_status_says_what_each_adapter_adds(tokenizer: Any) -> None:
    """The first brings the body, the second its LoRA alone; two networks of one body are one pass."""
    model = pair_of(tiny_model("llama", seed=1), tokenizer, tokenizer, tiny_model("qwen3", seed=9), None)
    first, second = model.get_adapter_status()
    lora = sum(p.nbytes for name, p in model.adapters["b"].networks[0].named_parameters() if "lora_" in name)
    assert first.held_bytes > bytes_of(tiny_model("qwen3", seed=9)) > 2 * second.held_bytes
    assert second.held_bytes >= lora
    assert [(one.passes, one.apart) for one in (first, second)] == [(1, ()), (1, ())]
    model.adapters["b"].networks[0].train()
    assert model.get_adapter_status()[1].apart == ("0: it is being trained",)
    assert model.get_adapter_status()[1].passes == 2


def test_an_adapter_on_its_training_base_holds_no_second_model(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is the body: only the LoRAs come to it, and the sum is what it was."""
    body = tiny_model("qwen3", seed=9)
    model = pair_of(copy.deepcopy(body), tokenizer, tokenizer, body, "Q:A ")
    loras = [p.nbytes for one in model.adapters.values() for n, p in one.networks[0].named_parameters() if "lora_" in n]
    assert bytes_of(model) == bytes_of(body) + sum(loras)
    together = model.generate(IDS, attention_mask=PADDED, **GREEDY)
    monkeypatch.setattr(Bodies, "hold_once", lambda *args: None)
    apart_from_it = pair_of(copy.deepcopy(body), tokenizer, tokenizer, body, "Q:A ")
    assert bytes_of(apart_from_it) > 3 * bytes_of(body)
    assert torch.equal(together, apart_from_it.generate(IDS, attention_mask=PADDED, **GREEDY))


def merge(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """PEFT's merge writes into the layer below."""
    model.adapters["a"].networks[0].merge_adapter()


def merge_and_unload(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """The same, for good."""
    model.adapters["a"].networks[0].merge_and_unload()


def safely_merge(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """The same in another way."""
    model.adapters["a"].networks[0].merge_adapter(safe_merge=True)


def hotswap(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """Another body's weights in the place of this one's."""
    other = tiny_model("qwen3", seed=19)
    networks = [lora_on(other, 5), other]
    new = ValueAdapter.from_networks(networks, tokenizer, base_model_name_or_path="x/y", base_prefix="Q:A ")
    model.hotswap_adapter(new, "a")


def train(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """Detached, attached elsewhere to be trained, and trained."""
    adapter = model.adapters["a"]
    model.delete_adapter("a")
    elsewhere = ValueAdapterForCausalLM(tiny_model("llama", seed=3), tokenizer=tokenizer)
    elsewhere.add_adapter(adapter, "a", is_trainable=True)
    with torch.no_grad():
        for parameter in adapter.networks[0].parameters():
            parameter.add_(1)


def moved(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """A network in another dtype than the rest."""
    model.value_networks["a"].to(torch.float64)


@pytest.mark.parametrize("change", [merge, merge_and_unload, safely_merge, hotswap, train, moved])
@pytest.mark.parametrize("on_its_base", [True, False])
def test_what_changes_one_network_changes_no_other(
    tokenizer: Any, change: Callable[[Any, Any], None], on_its_base: bool
) -> None:
    """Neither the other adapter nor the base, though they held the same weights."""
    body = tiny_model("qwen3", seed=9)
    base = copy.deepcopy(body) if on_its_base else tiny_model("llama", seed=1)
    model = pair_of(base, tokenizer, tokenizer, body, None)
    if change in (hotswap, moved):  # a network that two adapters have is changed for both
        model.delete_adapter("b")
        model.add_adapter(ValueAdapter.from_networks([lora_on(body, 6)], tokenizer, base_model_name_or_path="x/y"), "b")
    with model.only("b", scale=1.0):
        before = model(IDS).logits
    alone = model.base(IDS).logits
    change(model, tokenizer)
    with model.only("b", scale=1.0):
        assert torch.equal(model(IDS).logits, before)
        assert model.generate(IDS, **GREEDY).shape == (2, 13)
    assert torch.equal(model.base(IDS).logits, alone)


def test_moving_the_model_keeps_what_is_held_once(tokenizer: Any) -> None:
    """In another dtype it holds half; the base alone in another dtype leaves the networks in theirs."""
    body = tiny_model("qwen3", seed=9)
    model = pair_of(copy.deepcopy(body), tokenizer, tokenizer, body, None)
    held = bytes_of(model)
    model.to(torch.float64)
    assert bytes_of(model) == 2 * held
    assert model.generate(IDS, **GREEDY).shape == (2, 13)
    model.base.to(torch.float32)
    assert {p.dtype for one in model.adapters["a"].networks for p in one.parameters()} == {torch.float64}


def test_adapters_attached_to_two_bases_move_neither(tokenizer: Any) -> None:
    """The second base of another dtype changes the networks, as it always did, and never the first base."""
    body = tiny_model("qwen3", seed=9)
    model = ValueAdapterForCausalLM(copy.deepcopy(body), tokenizer=tokenizer).eval()
    adapter = ValueAdapter.from_networks([lora_on(body, 5)], tokenizer, base_model_name_or_path="x/y")
    model.add_adapter(adapter, "a")
    before = model.base(IDS).logits
    other = ValueAdapterForCausalLM(tiny_model("llama", seed=3).to(torch.float64), tokenizer=tokenizer)
    other.add_adapter(adapter, "a")
    assert {p.dtype for p in model.base.parameters()} == {torch.float32}
    assert torch.equal(model.base(IDS).logits, before)


def test_weights_in_common_are_not_trained(tokenizer: Any) -> None:
    """By a loop of one's own, where nothing said that the adapter is trained."""
    model = pair_of(tiny_model("llama", seed=1), tokenizer, tokenizer, tiny_model("qwen3", seed=9), None)
    model.value_networks["a"].requires_grad_(True)
    with pytest.raises(ConfigError, match="is_trainable=True"):
        model.train()


def test_a_base_that_changes_under_its_networks_is_an_error(tokenizer: Any) -> None:
    """Merging into it, or loading other weights; moving it to another dtype is none."""
    body = tiny_model("qwen3", seed=9)
    model = pair_of(copy.deepcopy(body), tokenizer, tokenizer, body, None)
    model.to(torch.float64)
    assert model.generate(IDS, **GREEDY).shape == (2, 13)
    lora_on(body, 7)  # elsewhere
    get_peft_model(model.base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).merge_and_unload()
    for use_cache in (True, False):
        with pytest.raises(UnsupportedModeError, match="attach it"):
            model(IDS, use_cache=use_cache)
    with pytest.raises(UnsupportedModeError, match="attach it"):
        model.generate(IDS, **GREEDY)
    model.delete_adapter(["a", "b"])
    assert model.generate(IDS, **GREEDY).shape == (2, 13)


def test_a_base_with_a_lora_or_of_others_shares_nothing(tokenizer: Any) -> None:
    """Its LoRA may be merged at any time."""
    body = tiny_model("qwen3", seed=9)
    base = get_peft_model(copy.deepcopy(body), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer).eval()
    model.add_adapter(ValueAdapter.from_networks([body], tokenizer, base_model_name_or_path="x/y"), "a")
    before = body(IDS).logits
    base.merge_adapter()
    assert torch.equal(body(IDS).logits, before)
    assert model.generate(IDS, **GREEDY).shape == (2, 13)


def test_copies_begin_anew(tokenizer: Any) -> None:
    """A deep copy of the model shares nothing with it; a copied cache goes on in one pass."""
    model = pair_of(tiny_model("llama", seed=1), tokenizer, tokenizer, tiny_model("qwen3", seed=9), None)
    expected = model.generate(IDS, **GREEDY)
    twin = copy.deepcopy(model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    networks = twin.adapters["a"].networks
    networks[0].merge_adapter()
    assert torch.equal(networks[1](IDS).logits, model.adapters["a"].networks[1](IDS).logits)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(model.generate(IDS, **GREEDY), expected)
    read = model(IDS, use_cache=True).cache
    again = pickle.loads(pickle.dumps(copy.deepcopy(read)))
    token = IDS[:, :1]
    with torch.no_grad():
        assert torch.equal(model(token, cache=again).logits, model(token, cache=read).logits)


@pytest.mark.parametrize("how", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_what_peft_writes_into_a_body_stays_with_its_network(
    server: Any, tmp_path: Path, tokenizer: Any, how: dict[str, Any]
) -> None:
    """Biases that a LoRA trains, and a body of which PiSSA has taken something: the body beside it is as it came."""
    body = tiny_model("gpt2", seed=9)
    body.push_to_hub("alice/body")
    tokenizer.push_to_hub("alice/body")
    commit = str(HfApi().model_info("alice/body").sha)
    config = LoraConfig(
        **{"init_lora_weights": False} | how,
        r=3,
        target_modules=["c_attn", "c_fc"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        revision=commit,
    )
    lora = get_peft_model(copy.deepcopy(body), config).eval()
    lora.peft_config["default"].base_model_name_or_path = "alice/body"
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    ValueAdapter.from_networks(
        [lora, "alice/body"], tokenizer, base_model_name_or_path="alice/body", coefficients=[1.0, -1.0]
    ).save_pretrained(tmp_path / "adapter")
    found = ValueAdapter.from_pretrained(tmp_path / "adapter")
    assert torch.equal(found.networks[1](IDS).logits, body(IDS).logits)


def test_a_repository_that_two_networks_name_is_loaded_once(
    server: Any, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA on a body less that body: one model is made of the files, and both give what they gave."""
    body = tiny_model("qwen3", seed=9)
    body.push_to_hub("alice/body")
    tokenizer.push_to_hub("alice/body")
    commit = str(HfApi().model_info("alice/body").sha)
    lora = build_lora_network(body, rank=3, name="alice/body", revision=commit)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    made = ValueAdapter.from_networks(
        [lora, "alice/body"], tokenizer, base_model_name_or_path="alice/body", coefficients=[1.0, -1.0]
    )
    made.save_pretrained(tmp_path / "adapter")
    loads = []
    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **more: loads.append(args) or original(*args, **more)
    )
    found = ValueAdapter.from_pretrained(tmp_path / "adapter")
    assert len(loads) == 1
    assert held_bytes(found.networks) < 1.5 * held_bytes([body])
    for mine, theirs in zip(found.networks, made.networks, strict=True):
        assert torch.equal(mine(IDS).logits, theirs(IDS).logits)
    trained = ValueAdapter.from_pretrained(tmp_path / "adapter")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    model.add_adapter(trained, "a", is_trainable=True)
    with torch.no_grad():
        for parameter in trained.networks[0].parameters():
            parameter.add_(1)
    assert torch.equal(trained.networks[1](IDS).logits, body(IDS).logits)
    own = found.copy()
    assert held_bytes(own.networks) > 1.9 * held_bytes([body])
    found.networks[0].merge_and_unload()
    assert torch.equal(found.networks[1](IDS).logits, body(IDS).logits)
