"""Whole programs use the loopback Hub by environment variables alone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub_clients import ASKS_ITS_ENDPOINT, ID, SPEAKS_XET, WEIGHTS, online, publish, run

from testkit.local_hub import LocalHub
from valueadapter.compat import http

# huggingface_hub itself uploads to LFS in a way that its HTTP library deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

CARDS = """
from huggingface_hub import HfApi, ModelCard, ModelHubMixin, hf_hub_download, metadata_update
card = ModelCard.load("alice/adapter")
card.data.tags.append("new")
card.push_to_hub("alice/adapter")
metadata_update("alice/adapter", {"license": "apache-2.0"}, overwrite=True)
print(*HfApi().model_info("alice/adapter").tags)

class Model(ModelHubMixin, library_name="lib", tags=["value-adapter"]):
    def __init__(self, a: int = 1):
        self.a = a
    def _save_pretrained(self, folder):
        (folder / "w.safetensors").write_bytes(bytes(20))
    @classmethod
    def _from_pretrained(cls, *, model_id, token, a=1, **_):
        hf_hub_download(model_id, "w.safetensors", token=token)
        return cls(a=a)

Model(a=7).push_to_hub("alice/mixin", private=True)
print(Model.from_pretrained("alice/mixin").a)
"""

OFFLINE = """
import huggingface_hub as h
h.hf_hub_download("alice/adapter", "adapter_config.json")
h.snapshot_download("alice/adapter")
try:
    h.model_info("alice/adapter")
except h.errors.OfflineModeIsEnabled:
    print("offline")
"""


@ASKS_ITS_ENDPOINT
def test_cards_and_mixins_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no `endpoint=` argument finds the hub by its environment."""
    with online(tmp_path / "server", monkeypatch) as hub:
        publish(hub, tmp_path)
        tags, number = run(hub, CARDS, "hf_alice").splitlines()
    assert {"new", "license:apache-2.0", "value-adapter"} <= set(tags.split())
    assert number == "7"


def test_offline_program_lives_on_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a snapshot, offline mode needs no request."""
    with online(tmp_path / "server", monkeypatch) as hub:
        publish(hub, tmp_path)
        run(hub, f"import huggingface_hub as h; h.snapshot_download({ID!r})")
        requests = len(hub.log)
        assert run(hub, OFFLINE, HF_HUB_OFFLINE="1") == "offline\n"
        assert len(hub.log) == requests


def uploading(folder: Path) -> tuple[str, str]:
    """A file, and a program that uploads it."""
    weights = folder / "weights"
    weights.write_bytes(WEIGHTS)
    program = f"""
import huggingface_hub as h
h.create_repo({ID!r}, exist_ok=True)
h.upload_file(path_or_fileobj={str(weights)!r}, path_in_repo="w.safetensors", repo_id={ID!r})
"""
    return str(weights), program


@SPEAKS_XET
def test_xet_upload_is_served_both_ways(tmp_path: Path) -> None:
    """What came through Xet goes out through Xet and through plain HTTP."""
    weights, upload = uploading(tmp_path)
    upload += f"print(open(h.hf_hub_download({ID!r}, 'w.safetensors'), 'rb').read() == open({weights!r}, 'rb').read())"
    with LocalHub(tmp_path / "server", xet=True) as hub:
        assert run(hub, upload, "hf_alice") == "True\n"
        asked = {mode for request in hub.log for mode in re.findall(r"xet-(\w+)-token", request.path)}
        assert asked == {"read", "write"}
        assert not any("/_cdn/" in request.path or "/_lfs/" in request.path for request in hub.log)
        assert not list((tmp_path / "server" / "lfs").iterdir())  # nobody has asked for it in one piece
        address = f"{hub.endpoint}/{ID}/resolve/main/w.safetensors"
        assert http().get(address, follow_redirects=True).content == WEIGHTS


@SPEAKS_XET
def test_xet_upload_outlives_xet(tmp_path: Path) -> None:
    """A hub without Xet serves, lists and takes again what came through it before; of another content it says so."""
    upload = uploading(tmp_path)[1] + f"print(h.HfApi().get_paths_info({ID!r}, ['w.safetensors'])[0].size)"
    size = f"{len(WEIGHTS)}\n"
    with LocalHub(tmp_path / "server", xet=True) as hub:
        assert run(hub, upload, "hf_alice") == size
    with LocalHub(tmp_path / "server") as hub:
        assert run(hub, upload, "hf_alice") == size
        address = f"{hub.endpoint}/{ID}/resolve/main/w.safetensors"
        assert http().get(address, follow_redirects=True).content == WEIGHTS
        (kept,) = (tmp_path / "server" / "lfs").iterdir()
        kept.unlink()
        for stored in (tmp_path / "server" / "cas").rglob("default.*"):
            stored.write_bytes(stored.read_bytes().replace(WEIGHTS[100:120], bytes(20)))
        assert http().get(address, follow_redirects=True).status_code == 400
        assert not kept.exists()
        for stored in (tmp_path / "server" / "cas").rglob("default.*"):
            stored.unlink()
        assert http().get(address, follow_redirects=True).status_code == 500


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_until_stopped(tmp_path: Path, stop: signal.Signals) -> None:
    """The command says where it serves and how to use it, and ends cleanly."""
    command = [sys.executable, "-m", "testkit.local_hub", "--root", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "the command ended early"
        text = "".join(lines)
        (endpoint,) = re.findall(r"^export HF_ENDPOINT=(\S+)$", text, re.MULTILINE)
        answer = http().get(f"{endpoint}/api/whoami-v2", headers={"Authorization": "Bearer hf_alice"})
        process.send_signal(stop)
        _, errors = process.communicate(timeout=20)
    assert (answer.json()["name"], process.returncode, errors) == ("alice", 0, "")
    assert {"hf_alice", "hf_bob", "hf_alice_read"} <= set(re.findall(r"hf_\w+", text))
