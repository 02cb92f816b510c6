"""Adapters with LoRAs that no artifact can hold: a checkpoint has all that is trained, of whichever networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bodies import lora_on
from test_trainer import distance, trainer
from tiny import tiny_model
from transformers import PreTrainedTokenizerFast

from valueadapter import CheckpointError, ValueAdapter, ValueAdapterForCausalLM


def named(seed: int) -> Any:
    """A LoRA that is not PEFT's "default"."""
    network = lora_on(tiny_model("llama", seed=2), seed)
    network.add_adapter("mine", network.peft_config["default"])
    network.set_adapter("mine")
    network.delete_adapter("default")
    return network


def unpinned(seed: int) -> Any:
    return lora_on(tiny_model("llama", seed=2), seed)


def pinned(seed: int) -> Any:
    return lora_on(tiny_model("llama", seed=2), seed, revision="0" * 40)


def whole(seed: int) -> Any:
    return tiny_model("gpt2", seed=seed)


SHAPES: dict[str, tuple[Sequence[Any], Sequence[float]]] = {
    "two added": ((unpinned, unpinned), (1.0, 1.0)),
    "the second added": ((unpinned, unpinned), (-1.0, 1.0)),
    "beside one with a commit": ((pinned, unpinned), (1.0, 1.0)),
    "less it, a whole one": ((whole, unpinned), (1.0, -1.0)),
    "of another name": ((named, whole), (1.0, -1.0)),
}


def fresh(shape: str, tokenizer: PreTrainedTokenizerFast) -> ValueAdapterForCausalLM:
    makers, weights = SHAPES[shape]
    torch.manual_seed(0)
    networks = [make(seed) for seed, make in enumerate(makers, start=3)]
    named: dict[str, Any] = {"base_model_name_or_path": "alice/base", "coefficients": weights}
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    model.add_adapter(ValueAdapter.from_networks(networks, tokenizer, **named), is_trainable=True)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_resuming_is_not_stopping(shape: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """To the last bit; and the best of the checkpoints comes back whole."""
    through = fresh(shape, tokenizer)
    trainer(through, tmp_path / "through").train()
    first, again = fresh(shape, tokenizer), fresh(shape, tokenizer)
    trainer(first, tmp_path / "stopped", save_steps=3).train()
    assert distance(again, through) > 1e-3
    trainer(again, tmp_path / "stopped").train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-3"))
    assert distance(again, through) == 0
    back = fresh(shape, tokenizer)
    trainer(back, tmp_path / "back").take_up(tmp_path / "through" / "checkpoint-6")
    assert distance(back, through) == 0


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """It says which tensor, and nothing is taken."""
    trainer(fresh("two added", tokenizer), tmp_path / "a").train()
    other = fresh("the second added", tokenizer)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"does not fit the network: tensor '0\..*lora"):
        trainer(other, tmp_path / "b").take_up(tmp_path / "a" / "checkpoint-6")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
