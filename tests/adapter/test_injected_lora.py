"""PEFT's `get_peft_model` on the whole wrapper: it trains a network's LoRA, and what is saved loads to the same sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters_on_hub import server as server
from test_from_pretrained import IDS, adapter_of, upload
from test_from_pretrained import base as base
from tiny import byte_tokenizer, tiny_model
from transformers import Trainer, TrainingArguments

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM

QUERY = r"value_networks\.default\.0\..*(q_proj|v_proj)"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # asked by peft


def wrapper(*networks: Any, **options: Any) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    model.add_adapter(adapter_of(*networks, **options), "default", scale=0.7, is_trainable=True)
    return model


def with_lora(model: ValueAdapterForCausalLM, target: Any = QUERY, **options: Any) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=target, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


def loaded_from(place: Path) -> ValueAdapterForCausalLM:
    return ValueAdapterForCausalLM.from_pretrained(tiny_model("llama", seed=1), place, tokenizer=byte_tokenizer())


def test_peft_trains_the_lora_of_a_network_and_nothing_else(tmp_path: Path) -> None:
    """Loss, gradients, the Trainer and `generate` go through PEFT's model; PEFT's own save holds the LoRA alone."""
    model = wrapper(tiny_model("llama", seed=2))
    tuned = with_lora(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [{"input_ids": IDS[0].tolist(), "labels": IDS[0].tolist()} for _ in range(4)]
    how = {"max_steps": 3, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    Trainer(tuned, TrainingArguments(str(tmp_path), **how), train_dataset=rows).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 8
    assert all("lora_" in name and name.startswith("value_networks.default.0.") for name in changed)
    tuned.save_pretrained(tmp_path / "peft")
    assert {path.name for path in (tmp_path / "peft").glob("*.safetensors")} == {"adapter_model.safetensors"}
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tuned.eval()
    assert torch.equal(tuned.generate(input_ids=IDS, **greedy), model.generate(IDS, **greedy, use_cache=False))


@pytest.mark.parametrize("gathered", [False, True])
def test_a_network_of_the_hub_is_saved_as_an_ordinary_peft_checkpoint(
    base: str, tmp_path: Path, gathered: bool
) -> None:
    """Its base and commit are those that the adapter named; the other network stays a name."""
    commit = upload("alice/small", tiny_model("llama", seed=2), tmp_path / "small")
    model = wrapper("alice/small", "alice/small", coefficients=[1, -1])
    with_lora(model)
    state = None
    if gathered:  # other weights than the model's own, as a Trainer hands them over
        state = {k: (3 * t if "lora_B" in k else t) for k, t in model.state_dict().items()}
    model.save_pretrained(tmp_path / "a", state_dict=state)
    if state is not None:
        model.load_state_dict(state)
    directory = tmp_path / "a" / "value_network"
    assert {path.name for path in directory.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    record = json.loads((directory / "adapter_config.json").read_text())
    assert (record["base_model_name_or_path"], record["revision"]) == ("alice/small", commit)
    first, second = json.loads((tmp_path / "a" / "config.json").read_text())["networks"]
    assert (first["path"], second["repo"], second["coefficient"]) == ("value_network", "alice/small", -1)
    loaded = loaded_from(tmp_path / "a")
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits)
    with torch.no_grad():
        assert not torch.allclose(loaded(IDS).logits, model.base(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_network_of_the_artifact_is_saved_with_the_lora_in_its_weights(
    kind: str, gathered: bool, tmp_path: Path
) -> None:
    """The attached network stays as it is, LoRA beside its weights."""
    model = wrapper(tiny_model(kind, seed=2))
    transposed = {"target": r"value_networks\.default\.0\..*c_attn", "fan_in_fan_out": True}
    with_lora(model, **(transposed if kind == "gpt2" else {}))
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "a", state_dict=model.state_dict() if gathered else None)
    assert list(model.state_dict()) == names
    loaded = loaded_from(tmp_path / "a")
    assert not [name for name in loaded.state_dict() if "lora" in name or "base_layer" in name]
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits)


def test_a_lora_in_the_base_is_refused_before_training(tmp_path: Path) -> None:
    """It would take no gradients; and a network's alone is not."""
    model = wrapper(tiny_model("llama", seed=2))
    for target in (["q_proj"], "all-linear"):
        tuned = with_lora(wrapper(tiny_model("llama", seed=2)), target)
        with pytest.raises(ConfigError, match="the base is not trained here"):
            tuned.train()
    with_lora(model).train()


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    """The adapter alone does not know the LoRA's configuration; layers trained in whole; two LoRAs."""
    model = wrapper(tiny_model("llama", seed=2))
    tuned = with_lora(model)
    with pytest.raises(ConfigError, match=r"save it from the model that it is attached to"):
        model.adapters["default"].save_pretrained(tmp_path / "a")
    tuned.add_adapter("more", peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=QUERY))
    tuned.base_model.set_adapter(["default", "more"])
    with pytest.raises(ConfigError, match=r"active in it are \['default', 'more'\]"):
        model.save_pretrained(tmp_path / "a")
    whole = wrapper(tiny_model("llama", seed=2))
    with_lora(whole, modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match="as a whole"):
        whole.save_pretrained(tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_on_a_weight_that_two_layers_share_it_changes_its_own_layer(target: str, tmp_path: Path) -> None:
    """The network is saved with two weights; the one that is attached keeps one."""
    model = wrapper(tiny_model("llama", seed=2, tied=True))
    with_lora(model, rf"value_networks\.default\.0\..*{target}")
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "a")
    assert list(model.state_dict()) == names
    own = model.adapters["default"].networks[0]
    weights = [getattr(one, "weight", None) for one in (own.get_input_embeddings(), own.get_output_embeddings())]
    assert weights[0] is weights[1]
    torch.testing.assert_close(loaded_from(tmp_path / "a")(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT:UserWarning")
def test_lora_on_a_lora_network_is_refused(base: str, tmp_path: Path) -> None:
    """PEFT would begin the network's own LoRA anew and say nothing."""
    own = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    network = peft.get_peft_model(tiny_model("llama", seed=2), own)
    model = wrapper(network, tiny_model("gpt2", seed=3))
    with_lora(model, r"value_networks\.default\.1\..*c_attn", fan_in_fan_out=True).train()
    tuned = with_lora(wrapper(network), r"value_networks\.default\.0\..*q_proj")
    with pytest.raises(ConfigError, match="is a LoRA already"):
        tuned.train()


def test_publishing_takes_the_same_way(base: str, tmp_path: Path) -> None:
    """`push_to_hub` of the wrapper, and the Hub's copy loads."""
    upload("alice/small", tiny_model("llama", seed=2), tmp_path / "small")
    model = wrapper("alice/small")
    with_lora(model)
    model.push_to_hub("alice/adapter")
    loaded = ValueAdapter.from_pretrained("alice/adapter")
    torch.testing.assert_close(loaded.networks[0](IDS).logits, model.eval().adapters["default"].networks[0](IDS).logits)
