"""What an adapter costs is told from its small files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from valueadapter import ValueAdapter
from valueadapter.adapter.lora import build_lora_network
from valueadapter.artifact.card import render_card
from valueadapter.artifact.config import NetworkSpec, ValueAdapterConfig
from valueadapter.artifact.cost import Cost, cost_of
from valueadapter.cli.app import app

COMMIT, OTHER = "a" * 40, "b" * 40
LORA = {"base_model_name_or_path": "alice/body", "revision": COMMIT, "use_dora": False}
FILES = {
    "config.json": 1_000,
    "value_network/adapter_config.json": 500,
    "value_network/adapter_model.safetensors": 20_000,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ValueAdapterConfig:
    """Of an adapter of one network."""
    adapter = ValueAdapter.from_networks([tiny_model("llama", seed=1)], byte_tokenizer(), base_model_name_or_path="a/b")
    return adapter.config


def cost(
    config: ValueAdapterConfig, *networks: NetworkSpec, lora: dict[str, Any] = LORA, size: int | None = 9_000
) -> Cost:
    """Of an adapter of these networks."""
    own = dataclasses.replace(config, networks=networks)
    return cost_of(own, FILES, lambda path: lora, lambda name, commit: size)


IN_IT = NetworkSpec(1.0, path="value_network")
BODY = NetworkSpec(-1.0, repo="alice/body", revision=COMMIT)


def test_a_lora_less_its_body_is_one_body(config: ValueAdapterConfig) -> None:
    """Downloaded and held once, one pass; and where the base is the body, the LoRA alone is held."""
    found = cost(config, IN_IT, BODY)
    assert [(body.name, body.revision, body.num_networks) for body in found.bodies] == [("alice/body", COMMIT, 2)]
    assert (found.num_passes, found.download_bytes, found.memory_bytes()) == (1, 21_500 + 9_000, 20_000 + 9_000)
    assert found.memory_bytes("alice/body") == 20_000


def test_another_commit_is_another_body(config: ValueAdapterConfig) -> None:
    """And so is another kind of LoRA a pass of its own, on a body that is held once."""
    found = cost(config, IN_IT, dataclasses.replace(BODY, revision=OTHER))
    assert (len(found.bodies), found.num_passes, found.memory_bytes()) == (2, 2, 20_000 + 2 * 9_000)
    found = cost(config, IN_IT, BODY, lora=LORA | {"use_dora": True})
    assert (len(found.bodies), found.num_passes, found.memory_bytes()) == (1, 2, 20_000 + 9_000)


def test_a_size_that_nobody_tells_is_none(config: ValueAdapterConfig) -> None:
    """Where the Hub cannot be asked; what lies in the artifact is known."""
    found = cost(config, IN_IT, BODY, size=None)
    assert (found.num_passes, found.download_bytes, found.memory_bytes()) == (1, None, None)
    assert found.memory_bytes("alice/body") == 20_000
    full = cost_of(
        dataclasses.replace(config, networks=(IN_IT,)),
        {"value_network/model.safetensors": 300, "value_network/config.json": 5},
        lambda path: {},
        lambda name, commit: None,
    )
    assert (full.num_passes, full.download_bytes, full.memory_bytes("alice/body")) == (1, 305, 300)


def test_inspect_and_the_card_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a directory, with nobody to ask for the size of the body."""
    body = tiny_model("llama", seed=1)
    lora = build_lora_network(body, rank=2, name="alice/body", revision=COMMIT)
    adapter = ValueAdapter.from_networks([lora], byte_tokenizer(), base_model_name_or_path="alice/body")
    both = dataclasses.replace(adapter.config, networks=(adapter.config.networks[0], BODY))
    ValueAdapter(both, [lora, body], byte_tokenizer()).save_pretrained(tmp_path)
    monkeypatch.setattr("valueadapter.hub.small_files.SmallFiles.weight_bytes", lambda self: 9_000_000)
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    said = json.loads(shown.stdout)["cost"]
    weights = (tmp_path / "value_network" / "adapter_model.safetensors").stat().st_size
    assert said["memory_bytes"] == 9_000_000 + weights
    assert (said["passes_per_token"], said["bodies"][0]["num_networks"]) == (1, 2)
    text = " ".join(CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout.split())
    assert "9.0 MB of alice/body@aaaaaaaaaaaa" in text
    assert "1 pass beside the base's own, with a row for each of 2 networks" in text
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "the weights of `alice/body`" in card
    assert "1 pass of a small model per token, with a row for each of its 2 networks." in card
    assert "one more pass" in render_card(both, repo_id="alice/a")
