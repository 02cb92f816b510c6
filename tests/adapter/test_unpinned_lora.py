"""A LoRA whose base has no commit: no artifact can name that base, so the network is saved whole, and that is said."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from bodies import as_trained
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM

IDS = torch.tensor([[5, 6, 7, 8, 9]])
DATA = Dataset.from_dict({"prompt": ["!#$%"] * 4, "completion": ["&'()"] * 4})


def wrapped(adapter: ValueAdapter, tokenizer: PreTrainedTokenizerFast) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    model.add_adapter(adapter, is_trainable=True)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("gathered", [False, True], ids=["its own weights", "gathered weights"])
def test_what_is_saved_computes_the_same(
    kind: str, gathered: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """The network that is attached stays a LoRA."""
    model = wrapped(as_trained(tiny_model(kind, seed=2), tokenizer, seed=0, prefix="!!##"), tokenizer)
    expected = model(IDS).logits
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()} if gathered else None
    if gathered:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
    model.save_pretrained(tmp_path / "adapter", state_dict=state)
    assert "not named at a commit" in caplog.text
    assert any("lora_" in name for name in model.state_dict())
    loaded = wrapped(ValueAdapter.from_pretrained(tmp_path / "adapter"), tokenizer)
    assert not any("lora_" in name for name in loaded.state_dict())
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning")
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
def test_on_a_weight_that_two_layers_share_it_changes_its_own_layer(
    how: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The network is saved with two weights."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, **how)
    network = get_peft_model(tiny_model("llama", seed=2, tied=True), config)
    for name, parameter in network.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1
    model = wrapped(ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base"), tokenizer)
    model.save_pretrained(tmp_path / "adapter")
    loaded = wrapped(ValueAdapter.from_pretrained(tmp_path / "adapter"), tokenizer)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)


def test_nothing_is_left_of_the_copy_that_is_saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Not even where adapters share their body, and without the garbage collector."""
    body = tiny_model("llama", seed=2)
    model = wrapped(as_trained(body, tokenizer, seed=0, prefix=None), tokenizer)
    model.add_adapter(as_trained(body, tokenizer, seed=1, prefix=None), "other")
    kind = type(body)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(one) is kind for one in gc.get_objects())
        for place in ("a", "b"):
            model.save_pretrained(tmp_path / place, adapter_name="other")
        assert sum(type(one) is kind for one in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_one_that_is_switched_off_is_refused(
    revision: str | None, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """It would act where it is loaded."""
    adapter = as_trained(tiny_model("llama", seed=2), tokenizer, seed=0, prefix=None, revision=revision)
    adapter.networks[0].base_model.disable_adapter_layers()
    with pytest.raises(ConfigError, match="switched off"):
        adapter.save_pretrained(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    adapter.networks[0].base_model.enable_adapter_layers()
    adapter.save_pretrained(tmp_path / "adapter")


def test_a_pinned_one_is_saved_alone_without_a_word(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Its base is loaded from that commit."""
    adapter = as_trained(tiny_model("llama", seed=2), tokenizer, seed=0, prefix=None, revision="0" * 40)
    adapter.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "value_network" / "adapter_config.json").exists()
    assert not caplog.text


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")  # TRL's own arguments
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_trainer_that_is_not_ours_has_its_checkpoints(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Nothing that was trained is lost at the first of them."""
    model = wrapped(as_trained(tiny_model("llama", seed=2), tokenizer, seed=0, prefix=None), tokenizer)
    how = SFTConfig(str(tmp_path), max_steps=2, save_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False)
    SFTTrainer(model, how, train_dataset=DATA, processing_class=tokenizer).train()
    loaded = wrapped(ValueAdapter.from_pretrained(tmp_path / "checkpoint-2"), tokenizer)
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits, atol=1e-5, rtol=0)
