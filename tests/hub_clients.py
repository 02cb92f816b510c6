"""Clients of a loopback Hub: `huggingface_hub` in this process, and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.utils import _xet

from testkit.local_hub import LocalHub
from valueadapter.compat import installed

ASKS_ITS_ENDPOINT = pytest.mark.skipif(
    installed("huggingface-hub") < (2, 3), reason="up to 2.2 the client asks huggingface.co here, whatever its endpoint"
)
REMEMBERS_LISTINGS = pytest.mark.skipif(
    installed("huggingface-hub") < (1, 31), reason="before 1.31 the client's cache has no listings"
)
SPEAKS_XET = pytest.mark.skipif(
    installed("huggingface-hub") < (2, 0), reason="the loopback Hub speaks Xet with clients from 2.0 on; others use LFS"
)
RESUMES = pytest.mark.skipif(
    installed("huggingface-hub") < (2, 0), reason="this client does not go on by itself where a connection was cut"
)
SHARES_BLOBS = pytest.mark.skipif(
    not hasattr(constants, "HF_HUB_DISABLE_SHARED_BLOBS"), reason="this client gives each repository blobs of its own"
)
ID = "alice/adapter"
WEIGHTS = os.urandom(1_000_000) + b"compressible" * 100_000 + os.urandom(800_000)
CARD = """---
library_name: peft
base_model: org/base
base_model_relation: adapter
tags: [value-adapter, lora]
pipeline_tag: text-generation
license: mit
---
# hi
"""
FILES = {
    "README.md": CARD.encode(),
    "adapter_config.json": b'{"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}',
    "adapter_model.safetensors": WEIGHTS,
    "sub/a.txt": b"a",
    "empty.safetensors": b"",
}


@contextmanager
def online(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[LocalHub]:
    """A hub, and this process's `huggingface_hub` (imported offline) able to reach it, as installed."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _xet.XET_CONNECTION_INFO_CACHE.clear()  # of a hub of another test at the same port
    with LocalHub(root, **options) as hub:
        yield hub
    close_session()


def client(hub: LocalHub, name: str = "alice") -> HfApi:
    """The Hub's client as alice, bob, alice_read, or anonymous."""
    return HfApi(endpoint=hub.endpoint, token=False if name == "anonymous" else f"hf_{name}")


def publish(hub: LocalHub, folder: Path, repo_id: str = ID) -> str:
    """Make alice's repository with `FILES`; the id of its commit."""
    for name, content in FILES.items():
        path = folder / "upload" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    alice = client(hub)
    alice.create_repo(repo_id)
    commit = alice.upload_folder(repo_id=repo_id, folder_path=folder / "upload", commit_message="v1")
    return str(commit.oid)


def put(api: HfApi, path: str, content: bytes = b"x", repo_id: str = ID, **options: Any) -> Any:
    """Commit one file."""
    return api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo_id, **options)


def run(hub: LocalHub, code: str, token: str | None = None, **variables: str) -> str:
    """What a Python program that uses the hub prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", **hub.env(token), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
