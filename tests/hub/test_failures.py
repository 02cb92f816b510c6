"""Whatever breaks between us and the Hub, both hold the old adapter or the new one, and running again succeeds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import switched_off
from adapters_on_hub import REPO, contents, publish, put, save, server
from hub_clients import SPEAKS_XET
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter, hub
from valueadapter.compat import http

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

BY_LFS = ("/_cdn/", "/_lfs/", "/objects/batch")
"""What only a client without Xet asks for."""
BREAKS = (HfHubHTTPError, LocalEntryNotFoundError, http().TransportError, ConnectionError)
OFFLINE = hub.Download(local_files_only=True)
TRIES = 10


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub client sleeps between its own retries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


DOWNLOAD_FAULTS = [
    ("/api/models/alice/adapter", {"status": 503}),
    ("/api/models/alice/adapter", {"status": 429, "headers": {"Retry-After": "1"}}),
    ("/tree/", {"status": 503}),
    ("/resolve/", {"status": 503}),
    ("/resolve/", {"status": 429}),
    ("/resolve/", {"cut": 5}),
    ("/xet-read-token/", {"status": 503}),
    ("/xet-read-token/", {"status": 429}),
    ("/xet-read-token/", {"cut": 5}),
    ("/_cdn/", {"status": 503}),
    ("/_cdn/", {"status": 429}),
    ("/_cdn/", {"cut": 10_000}),
    ("/_cdn/", {"cut": 0}),
]


@pytest.mark.parametrize("cached", [True, False], ids=["update", "first"])
@pytest.mark.parametrize(("pattern", "fault"), DOWNLOAD_FAULTS, ids=str)
def test_download_breaks(
    server: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    fault: dict[str, Any],
    cached: bool,
) -> None:
    """After each failure the cache gives the old adapter or the new one; in the end the new one arrives."""
    if pattern in BY_LFS:
        switched_off.without_xet(monkeypatch)
    publish(tmp_path / "old", seed=3)
    if cached:
        hub.fetch(REPO)
    publish(tmp_path / "new", seed=4)
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    server.fault(pattern, times=7, **fault)
    messages = []
    for _ in range(TRIES):
        try:
            if contents(hub.fetch(REPO)) == new:
                break
        except BREAKS as error:
            messages.append(str(error))
        if cached:
            assert contents(hub.fetch(REPO, OFFLINE)) == old
        else:
            with pytest.raises(LocalEntryNotFoundError, match="not complete in the cache"):
                hub.fetch(REPO, OFFLINE)
    assert contents(hub.fetch(REPO)) == contents(hub.fetch(REPO, OFFLINE)) == new
    assert all("run again" in text or "while the Hub can be reached" in text for text in messages)


UPLOAD_FAULTS = [
    ("POST", "/repos/create", {"status": 503}),
    ("POST", "/validate-yaml", {"status": 429}),
    ("POST", "/preupload/", {"status": 503}),
    # of others, hf_xet waits minutes before it tells
    pytest.param("GET", "/xet-write-token/", {"status": 403}, marks=SPEAKS_XET),
    ("POST", "/objects/batch", {"status": 429, "headers": {"Retry-After": "1"}}),
    ("PUT", "/_lfs/", {"status": 503}),
    ("PUT", "/_lfs/", {"status": 429}),
    ("PUT", "/_lfs/", {"cut_upload": 10_000}),
    ("POST", "/commit/", {"status": 503}),
    ("POST", "/commit/", {"status": 429}),
    ("POST", "/commit/", {"cut_upload": 100}),
    ("POST", "/commit/", {"cut": 0}),
]


@pytest.mark.parametrize(("method", "pattern", "fault"), UPLOAD_FAULTS, ids=str)
def test_upload_breaks(
    server: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    pattern: str,
    fault: dict[str, Any],
) -> None:
    """After each failure the Hub gives the old adapter or the new one; in the end the new one is there."""
    if pattern in BY_LFS:
        switched_off.without_xet(monkeypatch)
    publish(tmp_path / "old", seed=3)
    new = save(tmp_path / "new", seed=4)
    states = contents(tmp_path / "old"), contents(new)
    server.fault(pattern, method=method, times=7, **fault)
    messages: list[str] = []
    for number in range(TRIES):
        try:
            hub.push(new, REPO)
            break
        except BREAKS as error:
            messages.append(str(error))
        fresh = hub.Download(cache_dir=tmp_path / f"cache-{number}")
        assert contents(hub.fetch(REPO, fresh)) in states
    assert contents(hub.fetch(REPO)) == contents(new)
    assert messages
    assert all("run again" in text for text in messages)


def test_lost_answer_is_no_second_commit(server: LocalHub, tmp_path: Path) -> None:
    """A commit whose answer got lost was made; running again finds nothing left to do."""
    directory = save(tmp_path / "a")
    server.fault("/commit/", cut=0)
    with pytest.raises(http().TransportError, match="Nothing was left half done: run again"):
        hub.push(directory, REPO)
    commit = hub.resolve_commit(REPO)
    assert hub.push(directory, REPO).oid == commit


def test_someone_else_pushes_meanwhile(server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit between our look and our commit stops ours; theirs stays; running again succeeds."""
    publish(tmp_path / "old", seed=3)
    new = save(tmp_path / "new", seed=4)
    create_commit = HfApi.create_commit

    def overtaken(self: HfApi, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        theirs.append(put(notes__md="theirs"))
        return create_commit(self, *args, **kwargs)

    theirs: list[str] = []
    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(HfHubHTTPError, match=f"someone else pushed to '{REPO}'.*nothing was changed.*run again"):
        hub.push(new, REPO)
    assert hub.resolve_commit(REPO) == theirs[0]
    hub.push(new, REPO)
    assert contents(hub.fetch(REPO)) == contents(new)
    assert HfApi().file_exists(REPO, "notes.md")


def test_two_pushes_at_once(server: LocalHub, tmp_path: Path) -> None:
    """The Hub ends up with one adapter or the other, whole."""
    publish(tmp_path / "old", seed=3)
    directories = [save(tmp_path / "a", seed=4), save(tmp_path / "b", seed=5, networks=2, shard="8KB")]

    def attempt(directory: Path) -> str:
        try:
            return str(hub.push(directory, REPO).oid)
        except HfHubHTTPError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, directories))
    assert hub.resolve_commit(REPO) in outcomes
    assert contents(hub.fetch(REPO)) in [contents(directory) for directory in directories]


def _may_mount() -> bool:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.parametrize("kind", ["mount", "limit"])
def test_disk_full_on_download(server: LocalHub, tmp_path: Path, kind: str) -> None:
    """A full disk leaves the old adapter usable and is named; with room, running again succeeds."""
    if kind == "mount" and not _may_mount():
        pytest.skip("mounting a small disk needs root; the case with a limit on file sizes runs")
    publish(tmp_path / "old", seed=3)
    hub.fetch(REPO)
    changed = ValueAdapter.from_pretrained(save(tmp_path / "new", seed=4)).with_config(scale=0.5)
    changed.push_to_hub(REPO)
    small = tmp_path / "small"
    small.mkdir()
    program = Path(__file__).parents[1] / "full_disk.py"
    run = f"cp -a {constants.HF_HUB_CACHE}/. {small} && {sys.executable} {program} {kind} {small}"
    if kind == "mount":
        run = f"unshare --mount sh -c 'mount -t tmpfs -o size=50m none {small} && {run}'"
    environment = {**os.environ, **server.env("hf_alice", tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(run, shell=True, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    message = facts.pop("message")
    assert f"in the cache '{small}'" in message
    assert "Make room there or pass cache_dir=" in message
    assert facts == {"while full": 1.0, "after": 0.5}
