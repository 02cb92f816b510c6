"""Whether a directory holds the model of a repository is told by its bytes, and nothing is downloaded to tell it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters_on_hub import server as server
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import hub

NAME = "acme/base"
FILE = "model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def commit(server: LocalHub, base: Path) -> str:
    HfApi().create_repo(NAME)
    return str(HfApi().upload_folder(repo_id=NAME, folder_path=base).oid)


def test_the_commit_of_the_same_model_is_found(server: LocalHub, base: Path, commit: str) -> None:
    """Whatever else lies there, however config.json is written; the weights stay where they are."""
    seen = len(server.log)
    assert hub.commit_of_same(base, NAME) == (commit, "")
    assert not [one.path for one in server.log[seen:] if "resolve/" in one.path and FILE in one.path]
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "transformers_version": "0", "use_cache": False}))
    (base / "notes.txt").write_text("mine")
    later = HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="notes.md", repo_id=NAME).oid
    assert hub.commit_of_same(base, NAME).commit == later
    assert hub.commit_of_same(base, NAME, revision=commit).commit == commit


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("weights", "'model.safetensors' holds other weights there"),
        ("size", "bytes here and"),
        ("more", "'model-2.safetensors' is only here"),
        ("none", "the directory holds no model.safetensors"),
        ("settings", "config.json says other things there"),
    ],
)
def test_another_model_is_none(base: Path, commit: str, change: str, reason: str) -> None:
    """One bit of a weight, a file more or fewer, a setting; the reason is said."""
    data = bytearray((base / FILE).read_bytes())
    if change == "weights":
        data[-1] ^= 1
        (base / FILE).write_bytes(data)
    elif change == "size":
        (base / FILE).write_bytes(data + b"x")
    elif change == "more":
        (base / "model-2.safetensors").write_bytes(data)
    elif change == "none":
        (base / FILE).unlink()
    else:
        settings = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.5}))
    found = hub.commit_of_same(base, NAME)
    assert found.commit is None
    assert reason in found.reason


def test_a_repository_that_cannot_be_asked_is_no_error(server: LocalHub, base: Path) -> None:
    """Missing, no name at all, or a Hub that fails: the reason in one line."""
    assert "there is no" in hub.commit_of_same(base, "acme/none").reason
    assert hub.commit_of_same(base, "a/b/c").commit is None
    server.fault("acme/none", status=400, times=5)
    found = hub.commit_of_same(base, "acme/none")
    assert (found.commit, "\n" in found.reason, found.reason == "") == (None, False, False)
