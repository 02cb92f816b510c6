"""What a recipe may ask for, and by which settings a run is known again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_model

from valueadapter import ConfigError
from valueadapter.adapter.lora import build_lora_network
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe, check_settings, run_settings
from valueadapter.training.run_arguments import run_arguments
from valueadapter.training.run_data import demonstrations_of

ROWS = [{"prompt": f"Q{i}:", "completion": "AB"} for i in range(6)]
KNOWN = {
    *("base", "base_prefix", "centred", "connection", "data", "dropout", "gradient_accumulation_steps"),
    *("initialisation", "label_smoothing_factor", "learning_rate", "lora_rank", "max_length", "network", "num_layers"),
    *("other_bases", "penalty", "penalty_coefficient", "per_device_train_batch_size", "seed"),
}
"""What the records of runs have said before there were more settings; those lie in directories."""


def recipe(place: Path = Path("out"), **more: Any) -> Recipe:
    return Recipe(**{"base": "acme/base", "data": ROWS, "output_dir": place, **more})


def settings(**more: Any) -> dict[str, Any]:
    one = recipe(**more)
    return run_settings(one, run_arguments(one), base="b", data=ROWS, prefix=None)


def test_runs_of_before_are_known_again() -> None:
    """A setting that came later is recorded where it was chosen, and another value is another run."""
    assert settings().keys() == KNOWN
    assert settings(lora_alpha=32, dtype="auto", limit=6, arguments={"save_steps": 7, "report_to": []}) == settings()
    for chosen in ({"lora_alpha": 8}, {"target_modules": ["q_proj"]}, {"dtype": "bfloat16"}):
        assert settings(**chosen).keys() - KNOWN == {*chosen}
    assert settings(target_modules=["q", "k"]) == settings(target_modules=("k", "q"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"network": "full", "lora_alpha": 8}, "lora_alpha is of a LoRA network"),
        ({"network": "full", "target_modules": ["q_proj"]}, "target_modules is of a LoRA network"),
        ({"lora_alpha": 0}, "lora_alpha must be at least 1; got 0"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16"),
        ({"split": "test"}, "split is of a dataset on the Hub, and these data are at hand"),
        ({"arguments": {"save_steps": 0}}, "save_steps is a number of steps"),
        ({"arguments": {"report_to": ["nobody"]}}, "nobody can report to 'nobody' here; installed are"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(asked: dict[str, Any], message: str) -> None:
    """With what was got, and what to do."""
    with pytest.raises(ConfigError, match=message):
        check_settings(recipe(**asked), push_to=None)


def test_a_lora_on_some_layers_scaled_otherwise() -> None:
    """A name that no layer has is an error, beside others that some have too."""
    base = tiny_model("llama", seed=1)
    made: Any = build_lora_network(
        base, rank=2, name="acme/base", alpha=3, target_modules=["q_proj", "self_attn.v_proj"]
    )
    layers = {name.split(".lora_A")[0].split(".")[-1] for name, _ in made.named_parameters() if ".lora_A" in name}
    assert (layers, made.peft_config["default"].lora_alpha) == ({"q_proj", "v_proj"}, 3)
    for wrong in ("proj", "lm_head", "w1"):
        with pytest.raises(ConfigError, match=f"no linear layer '{wrong}'.*it has down_proj, gate_proj, k_proj"):
            build_lora_network(base, rank=2, name="acme/base", target_modules=["q_proj", wrong])


def test_the_first_demonstrations(tmp_path: Path) -> None:
    """Of a file and of records; a file has no split."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [*demonstrations_of(recipe(data=str(tmp_path / "a.jsonl"), limit=2))] == ROWS[:2]
    assert len(demonstrations_of(recipe(limit=100))) == len(ROWS)
    with pytest.raises(ConfigError, match=r"split is of a dataset on the Hub, and '.*a\.jsonl' is a file"):
        check_settings(recipe(data=str(tmp_path / "a.jsonl"), split="test"), push_to=None)


@pytest.mark.parametrize("network", ["lora", "full"])
def test_beside_a_base_in_bfloat16_training_is_in_float32(tmp_path: Path, network: Any) -> None:
    """Or the steps of a small learning rate would be rounded away; what is stored holds more than bfloat16 can."""
    for part in (tiny_model("llama", seed=1).bfloat16(), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    how: dict[str, Any] = {"base_prefix_examples": 0, "arguments": {"per_device_train_batch_size": 2}}
    run(recipe(tmp_path / "out", base=str(tmp_path / "base"), network=network, **how), say=lambda line: None)
    (file,) = (tmp_path / "out").glob(f"checkpoint-*/{'lora' if network == 'lora' else 'adapter/value_network'}/*.saf*")
    trained = load_file(file).values()
    assert {tensor.dtype for tensor in trained} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained)
