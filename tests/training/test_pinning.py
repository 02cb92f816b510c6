"""A base in a directory that lies on the Hub, too: its commit is recorded, and of a LoRA nothing else is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server as server
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ConfigError, ValueAdapterForCausalLM
from valueadapter.artifact import verification
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe

NAME = "acme/base"
ROWS = [{"prompt": f"Q{i % 7}:", "completion": "AB"} for i in range(8)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    return tmp_path


def asked_for_weights(server: LocalHub, seen: int) -> list[str]:
    return [one.path for one in server.log[seen:] if "resolve/" in one.path and "safetensors" in one.path]


def publish(place: Path) -> str:
    HfApi().create_repo(NAME)
    return str(HfApi().upload_folder(repo_id=NAME, folder_path=place / "base").oid)


def train(place: Path, out: str, **more: Any) -> list[str]:
    """Trains four steps; what was said."""
    said: list[str] = []
    how = {name: more.pop(name) for name in ("resume", "push_to") if name in more}
    arguments = {"per_device_train_batch_size": 4, **more.pop("arguments", {})}
    settings = {"base_name": NAME, "base_prefix_examples": 0, **more}
    run(
        Recipe(base=str(place / "base"), data=ROWS, output_dir=place / out, arguments=arguments, **settings),
        say=said.append,
        **how,
    )
    return said


def test_the_lora_alone_is_stored_and_is_what_was_trained(place: Path, server: LocalHub) -> None:
    """As with a base that is a Hub ID, and without downloading what lies here; the logits are those of a whole one."""
    assert any("stored whole" in line and "there is no" in line for line in train(place, "whole"))
    commit = publish(place)
    seen = len(server.log)
    said = train(place, "pinned", push_to="alice/own", arguments={"hub_private_repo": True})
    assert HfApi().model_info("alice/own").private
    assert any(f"is {NAME} at commit {commit[:12]}, byte for byte" in line for line in said)
    assert asked_for_weights(server, seen) == []
    config = verification.read_config(place / "pinned" / "adapter")
    assert (config.base_model_name_or_path, config.base_model_revision) == (NAME, commit)
    assert [(one.path, one.repo, one.revision) for one in config.networks] == [
        ("value_network", None, None),
        (None, NAME, commit),
    ]
    assert not list((place / "pinned" / "adapter").rglob("model.safetensors"))
    ids = torch.tensor([[1, 40, 41, 42]])
    whole, pinned = (
        ValueAdapterForCausalLM.from_pretrained(place / "base", place / one / "adapter")(ids).logits
        for one in ("whole", "pinned")
    )
    torch.testing.assert_close(whole, pinned, rtol=1e-4, atol=1e-4)
    assert asked_for_weights(server, seen) != []  # by who has only the adapter


def test_another_model_of_that_name_is_said_and_not_recorded(place: Path, server: LocalHub) -> None:
    """One bit decides, see `commit_of_same`."""
    publish(place)
    tiny_model("llama", seed=2).save_pretrained(place / "base")
    assert any("stored whole" in line and "other weights" in line for line in train(place, "other"))
    config = verification.read_config(place / "other" / "adapter")
    assert (config.base_model_revision, [one.repo for one in config.networks]) == (None, [None, None])


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_as_it_began(place: Path, server: LocalHub, before: bool) -> None:
    """Whether the base lies on the Hub is asked once: it may be published, or out of reach, by then."""
    if before:
        publish(place)
    train(place, "out", arguments={"save_steps": 2})
    if before:
        HfApi().delete_repo(NAME)
    else:
        publish(place)
    seen = len(server.log)
    arguments = {"save_steps": 2, "num_train_epochs": 3}
    train(place, "out", resume=True, arguments=arguments)
    assert [one.path for one in server.log[seen:] if "/api/models" in one.path and "revision" not in one.path] == []
    config = verification.read_config(place / "out" / "adapter")
    assert (config.base_model_revision is not None) == before


def test_a_private_repository_is_asked_for_before_anything_is_trained(place: Path, server: LocalHub) -> None:
    """One that is public is refused, as is one that nothing is published to."""
    HfApi().create_repo("alice/public")
    with pytest.raises(ConfigError, match="exists and is public"):
        train(place, "a", push_to="alice/public", arguments={"hub_private_repo": True})
    with pytest.raises(ConfigError, match="nothing is to be published"):
        train(place, "a", arguments={"hub_private_repo": True})
    assert not (place / "a").exists()
