"""Bases with code of their own: trusted where the user says so, for the base alone, and never for an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import AutoTokenizer

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.cli.models import load
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe

CODE = """
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model, its configuration and its tokenizer, none of which transformers knows."""
    place = tmp_path / "own"
    tiny_model("llama", seed=1).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    (place / "own.py").write_text(CODE)
    config = json.loads((place / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (place / "config.json").write_text(json.dumps(config))
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


def test_a_trusted_base_with_code_of_its_own(
    base: Path, tmp_path: Path, tiny_adapter: Callable[..., ValueAdapter]
) -> None:
    """Tokenizer and configuration are loaded as the weights are, by name and for a model that is loaded."""
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    model = ValueAdapterForCausalLM.from_pretrained(str(base), tmp_path / "adapter", scale=1.0, trust_remote_code=True)
    ids = torch.tensor([[5, 6, 7]])
    network = model.adapters["default"].networks[0]
    torch.testing.assert_close(model(ids).logits, model.base(ids).logits + network(ids).logits)
    again = ValueAdapterForCausalLM.from_pretrained(model.base, tmp_path / "adapter", scale=1.0, trust_remote_code=True)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=True)
    assert type(tokenizer).__name__ == "OwnTokenizer"


def test_no_adapter_is_trained_on_code(base: Path, tmp_path: Path) -> None:
    """An adapter runs none, so that it could not be saved; that is said before anything is loaded."""
    data = [{"prompt": f"Q{i}", "completion": "A"} for i in range(12)]
    with pytest.raises(ConfigError, match="Its networks would need the base's own code, and an adapter runs none"):
        run(Recipe(base=str(base), data=data, output_dir=tmp_path / "out"), say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_the_command_line_can_trust_a_base(
    base: Path, tmp_path: Path, tiny_adapter: Callable[..., ValueAdapter]
) -> None:
    """And does not unless told to."""
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    adapters = [str(tmp_path / "adapter")]
    model, _ = load(str(base), adapters, None, no_base_prefix=False, dtype="auto", trust_remote_code=True)
    assert type(model.base).__name__ == "OwnForCausalLM"
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(str(base), adapters, None, no_base_prefix=False, dtype="auto")
