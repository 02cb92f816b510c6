"""A training run from names: what is asked for reaches the trainer and the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, ValueTrainingArguments, Weights
from valueadapter.artifact import verification
from valueadapter.demonstrations.selection import draw
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.training.recipe import Recipe, run
from valueadapter.training.recipe_settings import DEFAULT_WEIGHTS, run_settings
from valueadapter.training.state_store import default_place

__all__ = ["server"]
DATA = [{"prompt": f"Q{i}", "completion": "AB"} for i in range(16)]
DIGESTS = (  # of these demonstrations, and of the prefix "Q: A\n\n"
    "16 demonstrations, sha256:b1eb3bc6f2f29f11dd8b2317f0aa9f865e5fadab5dd453fed3143523cbf58810",
    "sha256:49126483de93cd25d4ccbbb0d276cc6dda459970d76340b6f27b16bed6199dc5",
)
QUICK = {"use_cpu": True, "max_steps": 2, "learning_rate": 1e-2}


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
        network="full",
        dropout=0.25,
        base_prefix_examples=0,
        arguments=arguments,
    )
    said: list[str] = []
    run(recipe, say=said.append)
    assert sum("hidden states of the base for 16" in line and str(default_place()) in line for line in said) == 2
    config = verification.verify(tmp_path / "out" / "adapter")
    assert config.training is not None
    assert config.training.other_bases == ("two",)
    assert config.training.regularisation.centred is False
    assert (config.training.learning_rate, config.training.epochs) == (2e-3, 1.0)
    saved = verification.load_json(tmp_path / "out" / "adapter" / "value_network" / "config.json")
    assert saved["attention_dropout"] == 0.25


@pytest.mark.parametrize("network", ["lora", "full"])
def test_a_prefix_of_demonstrations_is_drawn_and_not_trained_on(tmp_path: Path, bases: list[str], network: Any) -> None:
    """The same ones that a few-shot prompt of that seed has, and they are in the record as text."""
    settings: dict[str, Any] = {"network": network, "base_prefix_examples": 3, "arguments": QUICK}
    recipe = Recipe(base=bases[0], data=DATA, output_dir=tmp_path / "out", **settings)
    said: list[str] = []
    run(recipe, say=said.append)
    config = verification.verify(tmp_path / "out" / "adapter")
    assert config.base_prefix == "".join(f"{one['prompt']}{one['completion']}\n\n" for one in draw(DATA, 3))
    assert config.training is not None
    assert config.training.num_examples == 13
    assert any("a prefix of" in line for line in said)


CHATS = [
    {"messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "AB"}]} for i in range(16)
]


@pytest.mark.parametrize(
    ("changes", "recorded", "told"),
    [
        ({"network": "lora"}, ("\n\n",), False),
        ({"network": "full"}, ("\n\n",), False),
        ({"data": [*DATA, {"prompt": "Q", "completion": "A\n\nB"}]}, (), True),
        ({"data": [{**one, "completion": "AB\n\n"} for one in DATA]}, ("\n\n",), False),
        ({"base_prefix_examples": None, "base_prefix": "Q0AB\n\n"}, (), False),
        ({"base_prefix_examples": 0}, (), False),
        ({"data": CHATS}, (), False),
    ],
)
def test_what_stands_between_examples_is_recorded_as_an_end(
    tmp_path: Path, bases: list[str], changes: dict[str, Any], recorded: tuple[str, ...], told: bool
) -> None:
    """Where the run wrote them as text; not where a response holds it itself, which the run says."""
    settings = {"data": DATA, "base_prefix_examples": 3, "arguments": QUICK, **changes}
    said: list[str] = []
    run(Recipe(base=bases[0], output_dir=tmp_path / "out", **settings), say=said.append)
    assert verification.verify(tmp_path / "out" / "adapter").stop_strings == recorded
    assert any("no stop string" in line for line in said) == told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_prefix": "A", "base_prefix_examples": 2}, "exclude each other"),
        ({"base_prefix_examples": 16}, "leaves nothing to train on of 16"),
        ({"num_layers": 1, "connection": "cascade"}, "for num_layers, connection train network='full'"),
        ({"network": "wide"}, "must be one of lora, full; got 'wide'"),
        ({"lora_rank": 0}, "must be at least 1; got 0"),
    ],
)
def test_settings_that_exclude_each_other(
    tmp_path: Path, bases: list[str], changes: dict[str, Any], message: str
) -> None:
    """With what to leave out."""
    with pytest.raises(ConfigError, match=message):
        run(
            Recipe(base=bases[0], data=DATA, output_dir=tmp_path / "out", arguments=QUICK, **changes),
            say=lambda line: None,
        )


@pytest.mark.parametrize("network", ["lora", "full"])
def test_prefix_and_demonstration_must_fit_the_base(tmp_path: Path, bases: list[str], network: Any) -> None:
    """Said before anything is trained: such an adapter would train, and read nothing afterwards."""
    long = [{"prompt": f"{number} ", "completion": "AB" * 60} for number in range(16)]
    recipe = Recipe(base=bases[0], data=long, output_dir=tmp_path / "out", arguments=QUICK, network=network)
    with pytest.raises(
        ConfigError, match=r"the longest demonstration 1\d\d, and the base reads 256 at most; give a lower"
    ):
        run(recipe, say=lambda line: None)
    assert not (tmp_path / "out" / "adapter").exists()


def test_by_default_a_lora_with_a_prefix_of_eight(tmp_path: Path, bases: list[str]) -> None:
    """As docs/transfer.md argues; plain text shows nothing, and a prefix that is given is enough."""
    for changes, examples in (
        ({}, 8),
        ({"base_prefix": "A"}, 16),
        ({"data": [{"text": f"{number} AB"} for number in range(16)]}, 16),
    ):
        recipe = Recipe(
            **{"base": bases[0], "data": DATA, "output_dir": tmp_path / "out", "arguments": QUICK, **changes}
        )
        run(recipe, overwrite=True, say=lambda line: None)
        training = verification.verify(tmp_path / "out" / "adapter").training
        assert training is not None
        assert (training.num_examples, training.lora_rank, training.learning_rate) == (examples, 16, 1e-2)
    assert Recipe(base="b", data=[], output_dir=tmp_path).network == "lora"


def test_a_lora_on_a_base_without_commit_is_saved_whole(tmp_path: Path, bases: list[str]) -> None:
    """+1 the base with the LoRA in its weights, -1 the base, which training leaves alone."""
    recipe = Recipe(base=bases[0], data=DATA, output_dir=tmp_path / "out", lora_rank=2, arguments=QUICK)
    run(recipe, say=lambda line: None)
    config = verification.verify(tmp_path / "out" / "adapter")
    assert config.default_weights == DEFAULT_WEIGHTS["lora"]
    assert [one.weights for one in config.weights] == [Weights(1.0, (1.0, -1.0))]
    assert config.training is not None
    assert config.training.lora_rank == 2
    adapter = ValueAdapter.from_pretrained(tmp_path / "out" / "adapter")
    base = tiny_model("llama", seed=1)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(adapter.networks[1](ids).logits, base(ids).logits)
    assert not torch.allclose(adapter.networks[0](ids).logits, base(ids).logits)


@pytest.mark.parametrize("reads_it", [True, False])
def test_a_lora_on_a_base_of_the_hub_is_saved_alone(
    server: LocalHub, tmp_path: Path, bases: list[str], reads_it: bool
) -> None:
    """Both networks name the base at its commit, and what is loaded computes base + LoRA - base: as the network gives
    it, behind the prefix where it was trained there."""
    HfApi().create_repo("alice/base")
    HfApi().upload_folder(repo_id="alice/base", folder_path=bases[0])
    how: dict[str, Any] = {"arguments": QUICK, **({} if reads_it else {"lora_reads_prefix": False})}
    recipe = Recipe(base="alice/base", data=DATA, output_dir=tmp_path / "out", lora_rank=2, **how)
    run(recipe, push_to="alice/adapter", say=lambda line: None)
    names = {path.name for path in (tmp_path / "out" / "adapter" / "value_network").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    model = ValueAdapterForCausalLM.from_pretrained("alice/base", "alice/adapter", scale=1.0)
    assert model.base_prefix is not None
    assert [spec.reads_prefix for spec in model.adapters["default"].config.networks] == [reads_it, True]
    config = model.adapters["default"].config
    assert (config.scale, config.default_weights) == (1.0, DEFAULT_WEIGHTS["lora"])
    assert model.weights["default"] == Weights(1.0, (1.0, -1.0))  # as trained: there was too little to hold out
    ids = torch.tensor([[5, 6, 7]])
    before = torch.tensor([prefix_ids(model.base_prefix, model.base_tokenizer) if reads_it else []], dtype=torch.long)
    network = model.adapters["default"].networks[0]
    expected = network(torch.cat([before, ids], dim=1)).logits[:, before.shape[1] :]
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, model.base(ids).logits)


def test_a_run_is_known_by_what_earlier_versions_wrote(tmp_path: Path) -> None:
    """The digests lie in run directories: others would make every run that was begun another one."""
    recipe = Recipe(base="alice/base", data=DATA, output_dir=tmp_path / "out")
    arguments = ValueTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    found = [
        run_settings(recipe, arguments, base="alice/base", data=DATA, prefix=prefix) for prefix in ("Q: A\n\n", None)
    ]
    assert found[0]["data"] == DIGESTS[0]
    assert [one["base_prefix"] for one in found] == [DIGESTS[1], None]
