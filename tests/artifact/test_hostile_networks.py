"""A network's configuration asks for no code, and for no size that its tensors lack: before anything is built."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KINDS, tiny_model
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from valueadapter import ArtifactError, ConfigError, ValueAdapter
from valueadapter.artifact import verification
from valueadapter.artifact.network_settings import check_lora, check_settings, model_types
from valueadapter.errors import ValueAdapterError

LLAMA: dict[str, Any] = {
    "model_type of no transformers": {"model_type": "llama17"},
    "model_type that is no text": {"model_type": 5},
    "hidden_size of a billion": {"hidden_size": 10**9},
    "ten million layers": {"num_hidden_layers": 10**7},
    "a layer more": {"num_hidden_layers": 3},
    "a layer less": {"num_hidden_layers": 1},
    "no layers": {"num_hidden_layers": 0},
    "no heads": {"num_attention_heads": 0},
    "heads that divide nothing": {"num_attention_heads": 5},
    "a billion heads": {"num_key_value_heads": 10**9},
    "less than nothing inside": {"intermediate_size": -1},
    "another size inside": {"intermediate_size": 7},
    "seven tokens": {"vocab_size": 7},
    "a token more": {"vocab_size": 98},
    "half a size": {"hidden_size": 16.0},
    "size in words": {"hidden_size": "16"},
    "size that is true": {"num_attention_heads": True},
    "no size": {"hidden_size": None},
    "sizes": {"vocab_size": []},
    "heads of a billion": {"head_dim": 10**9},
    "negative positions": {"max_position_embeddings": -1},
    "layers of one kind": {"layer_types": ["full_attention"]},
    "ten million kinds": {"layer_types": ["full_attention"] * 100_000},
    "beyond any number": {"bos_token_id": 10**400},
    "not a number": {"rms_norm_eps": float("nan")},
    "not a number inside": {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
    "endless": {"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}},
    "dropout of seven": {"attention_dropout": 7.0},
    "text in text": {"text_config": {"hidden_size": 10**9}},
}
CODE: dict[str, Any] = {
    "attention of a repository": {"attn_implementation": "org/kernel"},
    "attention of a repository, by its inner name": {"_attn_implementation": "org/kernel@main:f"},
    "attention by its innermost name": {"_attn_implementation_internal": "org/kernel"},
    "attention that a package brings": {"attn_implementation": "flash_attention_2"},
    "attention for each part": {"attn_implementation": {"": "sdpa", "text_config": "org/kernel"}},
    "attention inside": {"text_config": {"attn_implementation": "org/kernel"}},
    "experts": {"experts_implementation": "org/kernel"},
    "code": {"auto_map": {"AutoConfig": "x--y.Z"}},
    "empty code": {"auto_map": {}},
    "code inside": {"text_config": {"auto_map": {"AutoConfig": "x--y.Z"}}},
    "quantization": {"quantization_config": {"quant_method": "fp8"}},
    "kernels": {"kernel_config": {"RMSNorm": "org/kernel:RMSNorm"}},
    "fusions": {"fusion_config": {"x": True}},
    "other weights": {"transformers_weights": "../other.safetensors"},
    "a backbone from elsewhere": {"backbone": "org/model", "use_pretrained_backbone": True},
}
VALUES = (0, -1, 7, 10**9, 10**12, 10**400, 1e300, "x", True, [])


def small(kind: str) -> PreTrainedModel:
    if kind == "mamba":
        return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    if kind == "mixtral":
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = MixtralConfig(**shape, vocab_size=97, num_key_value_heads=1, num_local_experts=4, sliding_window=8)
        return MixtralForCausalLM(config).eval()
    return tiny_model(kind, seed=1)


@pytest.fixture
def saved(tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path) -> Path:
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def changed(directory: Path, changes: dict[str, Any]) -> None:
    path = directory / "value_network" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", LLAMA)
def test_sizes_are_those_of_the_tensors(saved: Path, kind: str) -> None:
    """`verify` refuses any other, by the headers of the weight files alone."""
    changed(saved, LLAMA[kind])
    begun = time.monotonic()
    with pytest.raises(ArtifactError, match=r"value_network/config\.json"):
        verification.verify(saved)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("kind", CODE)
def test_code_and_kernels_are_refused(saved: Path, kind: str) -> None:
    """At any depth, under any name by which transformers takes them."""
    changed(saved, CODE[kind])
    with pytest.raises(ArtifactError, match="custom code"):
        verification.verify(saved)


def test_what_is_in_torch_is_no_code(saved: Path) -> None:
    """Attention of torch's own may be named, and nothing may be said."""
    changed(saved, {"attn_implementation": "eager", "quantization_config": None, "experts_implementation": None})
    assert ValueAdapter.from_pretrained(saved).networks[0].config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", [*KINDS, "mamba", "mixtral"])
def test_any_number_is_refused_or_harmless(kind: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Every number of a configuration, changed to every kind of harm: the stored tensors load, or it is an error.

    Nothing else is raised, and no memory is taken by a number that nobody checked.
    """
    model = small(kind)
    ValueAdapter.from_networks([model], tokenizer, base_model_name_or_path="a/b").save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "value_network" / "config.json"
    good = json.loads(path.read_text())
    names = [name for name, value in good.items() if type(value) in (int, float) or name.endswith("layers")]
    assert len(names) > 8
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for name in names:
        for value in VALUES:
            path.write_text(json.dumps(good | {name: value}))
            try:
                network = ValueAdapter.from_pretrained(tmp_path / "a").networks[0]
            except ValueAdapterError:
                continue
            loaded += 1
            state = network.state_dict()
            assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items()), (name, value)
    assert loaded < len(names) * len(VALUES) / 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_tables_that_are_computed_are_bounded_too(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """GPT-J makes a table of positions that no tensor stores."""
    from transformers import GPTJConfig, GPTJForCausalLM

    model = GPTJForCausalLM(GPTJConfig(vocab_size=97, n_embd=16, n_layer=2, n_head=2, n_positions=64, rotary_dim=4))
    adapter = ValueAdapter.from_networks([model.eval()], tokenizer, base_model_name_or_path="a/b")
    adapter.save_pretrained(tmp_path / "a")
    ValueAdapter.from_pretrained(tmp_path / "a")
    changed(tmp_path / "a", {"n_positions": 10**9})
    with pytest.raises(ArtifactError, match=r"asks for tables|n_positions"):
        ValueAdapter.from_pretrained(tmp_path / "a")


def test_a_network_that_could_not_be_loaded_is_refused_before_it_is_trained(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Where the adapter is made, not where it is saved."""
    model = tiny_model("llama", seed=1)
    model.config.num_hidden_layers = 5
    with pytest.raises(ConfigError, match="could not be loaded again"):
        ValueAdapter.from_networks([model], tokenizer, base_model_name_or_path="a/b")


def test_verification_needs_no_torch(saved: Path) -> None:
    """Neither for a good artifact nor for a bad one, and it knows the installed transformers' architectures."""
    changed(saved, {"model_type": "llama17"})
    program = """
        import sys
        from pathlib import Path
        from valueadapter.artifact import verification
        from valueadapter.errors import ArtifactError
        try:
            verification.verify(Path(sys.argv[1]))
        except ArtifactError as error:
            print("llama17" in str(error), "torch" in sys.modules, "transformers" in sys.modules)
    """
    command = [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines()), str(saved)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False", "False"]
    assert {"llama", "gpt2", "gemma3_text", "mamba"} <= model_types()


@pytest.mark.parametrize(
    "config",
    [
        {"r": 10**9},
        {"r": 0},
        {"r": -1},
        {"r": "8"},
        {"r": True},
        {"r": 4, "rank_pattern": {"q_proj": 10**9}},
        {"r": 4, "rank_pattern": 7},
        {"r": 4, "megatron_config": {"x": 1}},
        {"r": 4, "layer_replication": [[0, 10**9]]},
    ],
)
def test_a_lora_has_the_ranks_of_its_tensors(config: dict[str, Any]) -> None:
    """And names no module that PEFT would import."""
    shapes = {"base_model.model.q.lora_A.weight": (4, 16), "base_model.model.q.lora_B.weight": (16, 4)}
    check_lora({"r": 4}, shapes, place="a")
    with pytest.raises(ArtifactError, match="'a'"):
        check_lora(config, shapes, place="a")


def test_a_mixture_of_experts_may_name_sizes_that_no_layer_has() -> None:
    """Some have experts in every layer, and a size of the layers that they do not have."""
    shapes = {f"model.layers.{i}.mlp.experts.down_proj": (4, 16, 8) for i in range(2)}
    shapes["lm_head.weight"] = (97, 16)
    config = {"model_type": "deepseek_v2", "hidden_size": 16, "num_hidden_layers": 2, "n_routed_experts": 4}
    config |= {"moe_intermediate_size": 8, "vocab_size": 97}
    check_settings(config | {"intermediate_size": 21}, shapes, place="a")
    for wrong in ({"n_routed_experts": 10**9}, {"moe_intermediate_size": 0}, {"intermediate_size": 10**9}):
        with pytest.raises(ArtifactError, match="'a'"):
            check_settings(config | wrong, shapes, place="a")
