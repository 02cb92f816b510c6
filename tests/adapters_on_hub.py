"""A loopback Hub of each test's own, and adapters on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bodies import as_trained
from hub_clients import online
from huggingface_hub import CommitOperationAdd, HfApi, constants, file_download
from tiny import byte_tokenizer, tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import hub as transformers_hub

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter, hub

REPO = "alice/adapter"
WEIGHTS = "value_network/model.safetensors"


@contextmanager
def hub_of_alice(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub that this process's `huggingface_hub` talks to as alice, with an empty cache."""
    with online(root / "server", monkeypatch) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        local = server.endpoint + template[template.index("/{repo_id}") :]
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", local, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # made once, for the endpoint of that moment
        yield server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub of the test's own."""
    with hub_of_alice(tmp_path, monkeypatch) as server:
        yield server


def save(directory: Path, *, seed: int = 2, networks: int = 1, shard: str = "5GB") -> Path:
    """Saves a tiny adapter; its path."""
    models = [tiny_model("llama", seed=seed + i) for i in range(networks)]
    adapter = ValueAdapter.from_networks(models, byte_tokenizer(), base_model_name_or_path="alice/base")
    adapter.save_pretrained(directory, max_shard_size=shard)
    return directory


def publish(directory: Path, *, seed: int = 2, repo_id: str = REPO, how: hub.Push | None = None) -> str:
    """Saves a tiny adapter and pushes it; the commit."""
    return str(hub.push(save(directory, seed=seed), repo_id, how).oid)


def put(repo_id: str = REPO, **files: str) -> str:
    """Commits text files (a double underscore in a name stands for a dot) as alice; the commit."""
    operations = [CommitOperationAdd(name.replace("__", "."), text.encode()) for name, text in files.items()]
    return str(HfApi().create_commit(repo_id, operations, commit_message="by hand").oid)


def contents(directory: Path) -> dict[str, bytes]:
    """Path -> bytes of every file that is not hidden, the card left out."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if name != "README.md"}


def requests(server: LocalHub, method: str, part: str) -> list[str]:
    """The paths of the requests so far of this method that have `part` in them."""
    return [request.path for request in server.log if request.method == method and part in request.path]


def pair(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_repo: str, *, seed: int, prefix: str | None = None
) -> ValueAdapter:
    """An adapter as `train` makes them from a base that is on the Hub."""
    commit = str(HfApi().model_info(base_repo).sha)
    return as_trained(base, tokenizer, seed=seed, prefix=prefix, name=base_repo, revision=commit)
