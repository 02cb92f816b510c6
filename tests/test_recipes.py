"""A training run from names: what is asked for reaches the trainer and the record."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_model

from valueadapter import artifact
from valueadapter.base_states import default_place
from valueadapter.recipes import Recipe, run


@pytest.fixture
def bases(tmp_path: Path) -> list[str]:
    for name, kind in (("one", "llama"), ("two", "gpt2")):
        tiny_model(kind, seed=1).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("one", "two")]


def test_cached_bases_dropout_and_raw_penalty(tmp_path: Path, bases: list[str]) -> None:
    """The states of both bases are said and lie in the Hugging Face home; the record says what was done."""
    arguments = {"cache_base": True, "centred": False, "penalty": "l1", "learning_rate": 2e-3, "use_cpu": True}
    recipe = Recipe(
        base=bases[0],
        other_bases=bases[1:],
        data=[{"prompt": f"Q{i}", "completion": "AB"} for i in range(16)],
        output_dir=tmp_path / "out",
        dropout=0.25,
        arguments=arguments,
    )
    said: list[str] = []
    run(recipe, say=said.append)
    assert sum("hidden states of the base for 16" in line and str(default_place()) in line for line in said) == 2
    config = artifact.verify(tmp_path / "out" / "adapter")
    assert config.training is not None
    assert config.training.other_bases == ("two",)
    assert config.training.regularisation.centred is False
    assert (config.training.learning_rate, config.training.epochs) == (2e-3, 3.0)
    saved = artifact.load_json(tmp_path / "out" / "adapter" / "value_network" / "config.json")
    assert saved["attention_dropout"] == 0.25
