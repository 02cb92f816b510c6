"""A network is its own: how the model that it was made of generates, was quantized or is hooked stays behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import byte_tokenizer, tiny_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from valueadapter import (
    ConfigError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    build_network,
)
from valueadapter.adapter.lora import build_lora_network, merged

DATA = Dataset.from_list([{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(8)])
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


def invalid_generation(base: Any) -> None:
    base.generation_config.temperature = 0.6  # without do_sample, which transformers refuses to save


def in_the_configuration(base: Any) -> None:
    base.config.top_p = 0.9


def named_code(base: Any) -> None:
    base.config.auto_map = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}


def was_quantized(base: Any) -> None:
    base.config.quantization_config = {"quant_method": "gguf"}


LEFTOVERS: dict[str, Callable[[Any], None]] = {
    "generation settings": invalid_generation,
    "generation settings in the configuration": in_the_configuration,
    "code that transformers has": named_code,
    "quantization that is over": was_quantized,
}
KINDS: dict[str, Callable[[Any], Any]] = {
    "built": build_network,
    "random": lambda base: build_network(base, initialisation="random"),
    "merged LoRA": lambda base: merged(build_lora_network(base, rank=2, name="alice/base")),
    "a copy": copy.deepcopy,
    "the model itself": lambda base: base,
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_a_network_is_saved_without_what_is_not_its_own(leftover: str, kind: str, tmp_path: Path) -> None:
    """Saved, verified and loaded, with equal logits; the model that it was made of stays as it was."""
    base = tiny_model("llama", seed=1)
    LEFTOVERS[leftover](base)
    settings, generation = dict(vars(base.config)), base.generation_config
    network = KINDS[kind](base)
    expected = network(IDS).logits
    adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base")
    adapter.save_pretrained(tmp_path / "new")
    found = ValueAdapter.from_pretrained(tmp_path / "new")
    assert torch.equal(found.networks[0](IDS).logits, expected)
    config = json.loads((tmp_path / "new" / "value_network" / "config.json").read_text())
    assert not {"top_p", "auto_map", "quantization_config"} & config.keys()
    assert not (tmp_path / "new" / "value_network" / "generation_config.json").exists()
    left = {key: value for key, value in vars(base.config).items() if key not in ("dtype", "architectures")}
    assert left == {key: value for key, value in settings.items() if key not in ("dtype", "architectures")}
    assert base.generation_config is generation


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_training_on_such_a_base_ends_with_an_adapter(leftover: str, tmp_path: Path) -> None:
    """Checkpoints on the way, too."""
    base = tiny_model("llama", seed=1)
    LEFTOVERS[leftover](base)
    model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer())
    adapter = ValueAdapter.from_networks([build_network(base)], byte_tokenizer(), base_model_name_or_path="alice/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 2, "save_steps": 1}
    run = ValueTrainer(model, ValueTrainingArguments(output_dir=str(tmp_path), **quiet), train_dataset=DATA)
    run.train()
    run.save_model()
    trained = model.adapters["default"].networks[0].state_dict()
    assert ValueAdapter.from_pretrained(tmp_path / "checkpoint-1" / "adapter").config.training is not None
    (saved,) = ValueAdapter.from_pretrained(tmp_path / "adapter").networks
    assert all(torch.equal(tensor, trained[name]) for name, tensor in saved.state_dict().items())
    assert not all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("content", ['{"temperature": 0.6}', '{"num_beams": 0, "top_p": 9}', "no JSON", "[]"])
def test_how_a_network_would_generate_is_not_read(content: str, tmp_path: Path) -> None:
    """An adapter with such a file, of an earlier version or by hand, loads, and is saved again without it."""
    adapter = ValueAdapter.from_networks(
        [tiny_model("llama", seed=1)], byte_tokenizer(), base_model_name_or_path="alice/base"
    )
    adapter.save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "value_network" / "generation_config.json").write_text(content)
    found = ValueAdapter.from_pretrained(tmp_path / "one")
    assert torch.equal(found.networks[0](IDS).logits, adapter.networks[0](IDS).logits)
    found.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / "value_network" / "generation_config.json").exists()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_hook_on_the_base_is_none_of_the_networks() -> None:
    """What someone has steering the base steers no copy of it."""
    base = tiny_model("llama", seed=1)
    expected = base(IDS).logits
    base.model.layers[0].register_forward_hook(lambda module, args, output: output + 1)
    base.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    for network in (build_network(base, initialisation="pretrained"), build_lora_network(base, rank=2, name="a/b")):
        torch.testing.assert_close(network(IDS).logits, expected)
    assert not torch.allclose(base(IDS).logits, expected, atol=1e-3)


def test_a_network_of_quantized_weights_is_refused(tmp_path: Path) -> None:
    """Naming the tensor, and what to do; with fresh weights it can be had."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=97)).save_pretrained(tmp_path)
    how: Any = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    base = LlamaForCausalLM.from_pretrained(tmp_path, **how)
    with pytest.raises(ConfigError, match=r"are quantized: '.*' is .* of torch.int8"):
        build_network(base)
    network = build_network(base, initialisation="random")
    adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base")
    adapter.save_pretrained(tmp_path / "new")
    assert torch.equal(ValueAdapter.from_pretrained(tmp_path / "new").networks[0](IDS).logits, network(IDS).logits)


def test_a_network_that_needs_code_of_its_own_is_refused_before_training() -> None:
    """No artifact could hold it."""

    class OwnConfig(LlamaConfig):
        model_type = "own"

    class Own(LlamaForCausalLM):
        config_class = OwnConfig

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match="Own is no class of transformers'"):
        build_network(Own(OwnConfig(**shape, vocab_size=97)))
