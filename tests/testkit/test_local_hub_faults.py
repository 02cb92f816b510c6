"""The loopback Hub fails on order, and what it holds outlives it."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_clients import ASKS_ITS_ENDPOINT, FILES, ID, RESUMES, WEIGHTS, client, online, publish, put
from huggingface_hub import constants

from testkit.local_hub import LocalHub
from valueadapter.compat import http

# huggingface_hub itself uploads to LFS in a way that its HTTP library deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

# how a hang-up looks depends on how much the client had sent by then
_HUNG_UP = r"(?i)disconnected|reset by peer|broken pipe"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with online(tmp_path / "server", monkeypatch) as hub:
        yield hub


def _answers(hub: LocalHub, part: str, method: str) -> list[int]:
    """The statuses of requests so far whose path has `part`."""
    return [request.status for request in hub.log if part in request.path and request.method == method]


@pytest.mark.usefixtures("by_lfs")
@pytest.mark.parametrize(("status", "headers"), [(503, {}), (429, {"Retry-After": "0"})])
def test_client_retries_after_status(hub: LocalHub, status: int, headers: dict[str, str]) -> None:
    """An ordered status is answered as often as ordered, then things go on."""
    client(hub).create_repo(ID)
    hub.fault("/info/lfs/objects/batch", status=status, headers=headers)
    put(client(hub), "x.bin", b"\0")
    assert _answers(hub, "/objects/batch", "POST") == [status, 200]
    assert client(hub).file_exists(ID, "x.bin")


@pytest.mark.usefixtures("by_lfs")
@RESUMES
def test_cut_download_is_resumed(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a connection cut in a body, the client asks for the rest and gets it."""
    publish(hub, tmp_path)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.fault("/_cdn/", cut=1_000_000)
    path = client(hub).hf_hub_download(ID, "adapter_model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS
    assert _answers(hub, "/_cdn/", "GET") == [200, 206]
    assert hub.log[-1].headers["range"] == "bytes=1000000-"


@pytest.mark.usefixtures("by_lfs")
@RESUMES
def test_cut_upload_stores_nothing_until_repeated(hub: LocalHub, tmp_path: Path) -> None:
    """A large file whose upload was cut is uploaded again, whole."""
    hub.fault("/_lfs/", cut_upload=500_000, method="PUT")
    publish(hub, tmp_path)
    assert sorted(_answers(hub, "/_lfs/", "PUT")) == [0, 200]
    path = client(hub).hf_hub_download(ID, "adapter_model.safetensors", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS


def test_cut_commit_changes_nothing(hub: LocalHub) -> None:
    """A commit cut on its way is no commit."""
    alice = client(hub)
    alice.create_repo(ID)
    before = alice.model_info(ID).sha
    hub.fault("/commit/main", cut_upload=10)
    with pytest.raises(http().TransportError, match=_HUNG_UP):
        put(alice, "x.txt")
    assert alice.model_info(ID).sha == before
    put(alice, "x.txt")
    assert alice.file_exists(ID, "x.txt")


def test_cut_counts_body_bytes(hub: LocalHub, tmp_path: Path) -> None:
    """Exactly so many bytes of a download pass."""
    publish(hub, tmp_path)
    hub.fault("/resolve/", cut=7)
    address = f"{hub.endpoint}/{ID}/resolve/main/README.md"
    with http().Client() as connection, connection.stream("GET", address) as answer:
        received: list[bytes] = []
        with pytest.raises(http().RemoteProtocolError, match="without sending complete message body"):
            received.extend(answer.iter_raw())
    assert b"".join(received) == FILES["README.md"][:7]


def test_chunked_upload_is_read_and_cut(hub: LocalHub) -> None:
    """Bodies without a length in advance are read, and cut like others."""
    address = f"{hub.endpoint}/api/validate-yaml"
    with http().Client() as connection:
        assert connection.post(address, content=iter([b'{"content', b'": ""}'])).status_code == 200
        hub.fault("/validate-yaml", cut_upload=9)
        with pytest.raises(http().TransportError, match=_HUNG_UP):
            connection.post(address, content=iter([b'{"content', b'": ""}']))


def test_fault_is_for_its_method_and_times(hub: LocalHub) -> None:
    """Other methods pass, and so do requests after the last ordered failure."""
    hub.fault("/whoami", status=500, times=2, method="GET")
    statuses = []
    with http().Client(headers={"Authorization": "Bearer hf_alice"}) as connection:
        statuses += [
            connection.request(m, f"{hub.endpoint}/api/whoami-v2").status_code for m in ("HEAD", "GET", "GET", "GET")
        ]
    assert statuses == [200, 500, 500, 200]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of status, cut, cut_upload; got none"),
        ({"status": 500, "cut": 1}, "got status and cut"),
        ({"status": 500, "times": 0}, "`times` must be at least 1; got 0"),
    ],
)
def test_impossible_fault_is_refused(hub: LocalHub, options: dict[str, Any], message: str) -> None:
    """A fault says one thing that goes wrong."""
    with pytest.raises(ValueError, match=message):
        hub.fault("/", **options)


@ASKS_ITS_ENDPOINT
def test_repositories_outlive_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second hub on the same directory has all that the first had."""
    with online(tmp_path / "server", monkeypatch) as hub:
        first, alice = publish(hub, tmp_path), client(hub)
        alice.create_tag(ID, tag="v1", revision=first)
        put(client(hub, "bob"), "bob.txt", create_pr=True)
        alice.update_repo_settings(ID, gated="manual", private=True)
        alice.grant_access(ID, "bob")
        alice.create_repo("alice/old")
        alice.move_repo("alice/old", "alice/new")
    with online(tmp_path / "server", monkeypatch) as hub:
        alice = client(hub)
        info = alice.model_info(ID, revision="v1")
        assert (info.sha, info.gated, info.private) == (first, "manual", True)
        path = alice.hf_hub_download(ID, "adapter_model.safetensors", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == WEIGHTS
        alice.merge_pull_request(ID, 1)
        assert alice.file_exists(ID, "bob.txt")
        assert alice.model_info("alice/old").id == "alice/new"


def test_many_clients_at_once(hub: LocalHub) -> None:
    """Commits of many threads all arrive, each on top of another."""
    client(hub).create_repo(ID)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: put(client(hub), f"{index}.txt"), range(16)))
    assert len(client(hub).list_repo_commits(ID)) == 17
    assert len(client(hub).list_repo_files(ID)) == 17


def test_stopped_hub_leaves_no_threads(tmp_path: Path) -> None:
    """Clients that keep their connections open do not keep the hub."""
    before = set(threading.enumerate())
    hub = LocalHub(tmp_path)
    with http().Client() as connection:
        with hub:
            endpoint = hub.endpoint
            connection.get(endpoint)
            assert len(threading.enumerate()) == len(before) + 3
        assert set(threading.enumerate()) <= before
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(endpoint)
    with pytest.raises(RuntimeError, match="not serving"):
        hub.env()


def test_unknown_address_is_an_answer(hub: LocalHub) -> None:
    """What the hub does not know is told in the answer."""
    answer = http().get(f"{hub.endpoint}/api/nothing")
    assert (answer.status_code, answer.headers["X-Error-Message"]) == (404, "no such endpoint: GET /api/nothing")
