"""Adapters through Xet, with the Hub's client as installed: what its cache looks like is accepted, and only that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters_on_hub import REPO, WEIGHTS, contents, publish, requests, save, server
from hub_clients import SHARES_BLOBS, SPEAKS_XET
from huggingface_hub import constants

from testkit.local_hub import LocalHub
from valueadapter import ArtifactError, ValueAdapter, hub
from valueadapter.artifact import verification
from valueadapter.errors import MissingFileError

__all__ = ["server"]
PUSH = (
    "import sys; from pathlib import Path; from valueadapter import hub; hub.push(Path(sys.argv[1]), 'alice/adapter')"
)
LOAD = (
    "from valueadapter import ValueAdapter; "
    "print(ValueAdapter.from_pretrained('alice/adapter').networks[0].lm_head.weight.double().sum().item())"
)
FETCH = "import sys; from valueadapter import hub; print(hub.fetch('alice/adapter', hub.Download(cache_dir={cache})))"


def _as_installed(hub: LocalHub, home: Path, code: str, *arguments: str, **variables: str) -> str:
    """What a program prints that has nothing set but which Hub, whose token and where its cache is."""
    environment = {"PATH": "", "PYTHONPATH": os.pathsep.join(sys.path), **hub.env("hf_alice", home), **variables}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@SPEAKS_XET
def test_pushed_by_one_process_and_loaded_by_another(tmp_path: Path) -> None:
    """By its Hub ID, from an empty cache; the weights go through Xet both ways and lie in the store that all share."""
    saved = save(tmp_path / "a")
    with LocalHub(tmp_path / "server") as hub:
        _as_installed(hub, tmp_path / "pushing", PUSH, str(saved))
        loaded = float(_as_installed(hub, tmp_path / "loading", LOAD))
        asked = {request.path.partition("?")[0] for request in hub.log}
    assert loaded == ValueAdapter.from_pretrained(saved).networks[0].lm_head.weight.double().sum().item()
    assert any("/xet-write-token/" in path for path in asked)
    assert any("/xet-read-token/" in path for path in asked)
    assert not any("/_lfs/" in path or "/_cdn/" in path for path in asked)
    (weights,) = (tmp_path / "loading/hub/models--alice--adapter/snapshots").glob(f"*/{WEIGHTS}")
    assert weights.resolve().is_relative_to(tmp_path / "loading/hub/blobs")


@pytest.mark.parametrize("place", ["HF_HOME", "HF_HUB_CACHE", "cache_dir", "link", "no shared store"])
def test_a_cache_may_lie_anywhere(tmp_path: Path, place: str) -> None:
    """In its usual place, moved by a variable, named in the call, behind a link, or without blobs that are shared."""
    saved, variables, cache = save(tmp_path / "a"), {}, "None"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    if place == "HF_HUB_CACHE":
        variables = {"HF_HUB_CACHE": str(tmp_path / "real" / "deep" / "cache")}
    elif place == "no shared store":
        variables = {"HF_HUB_DISABLE_SHARED_BLOBS": "1"}
    elif place == "cache_dir":
        cache = repr(str(tmp_path / "real"))
    elif place == "link":
        cache = repr(str(tmp_path / "link" / "snapshots"))  # a name that the cache uses inside, too
    with LocalHub(tmp_path / "server") as server:
        _as_installed(server, tmp_path / "pushing", PUSH, str(saved))
        found = [
            Path(_as_installed(server, tmp_path / "home", FETCH.format(cache=cache), **variables)) for _ in range(2)
        ]
    assert contents(found[0]) == contents(found[1]) == contents(saved)
    assert (found[0] / WEIGHTS).is_symlink()
    assert ("snapshots" in (found[0] / WEIGHTS).resolve().parts) == (place == "link")


@SHARES_BLOBS
def test_repositories_share_blobs(server: LocalHub, tmp_path: Path) -> None:
    """The same weights under a second name are not downloaded again, and load."""
    publish(tmp_path / "a")
    publish(tmp_path / "b", repo_id="alice/second")
    first, second = hub.fetch(REPO), hub.fetch("alice/second")
    assert (first / WEIGHTS).resolve() == (second / WEIGHTS).resolve()
    assert contents(second) == contents(tmp_path / "b")
    loaded = ValueAdapter.from_pretrained("alice/second").networks[0].lm_head.weight
    assert torch.equal(loaded, ValueAdapter.from_pretrained(tmp_path / "a").networks[0].lm_head.weight)
    assert not requests(server, "GET", "/_cdn/")


@pytest.mark.usefixtures("by_lfs")
def test_what_came_without_xet_loads(server: LocalHub, tmp_path: Path) -> None:
    """A cache filled by LFS has each repository's blobs for itself."""
    publish(tmp_path / "a")
    directory = hub.fetch(REPO)
    assert (directory / WEIGHTS).resolve().parent.parent.name == "models--alice--adapter"
    assert contents(directory) == contents(tmp_path / "a")


@SHARES_BLOBS
def test_a_link_elsewhere_is_refused(server: LocalHub, tmp_path: Path) -> None:
    """Out of the cache, into a folder that only looks like its store, or another cache's; nothing of it is removed."""
    publish(tmp_path / "a")
    directory = hub.fetch(REPO)
    cache, weights = Path(constants.HF_HUB_CACHE), directory / WEIGHTS
    blob = weights.resolve()
    for place in (tmp_path / "elsewhere" / "x", cache / "models--other--one" / "blobs" / "x", cache / "x"):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(blob, place)
        weights.unlink()
        weights.symlink_to(place)
        with pytest.raises(ArtifactError, match=r"link that leaves the adapter's directory \(to '.*x'\).*cp -RL"):
            verification.verify(directory)
        assert place.exists()
    weights.unlink()
    weights.symlink_to(blob)
    verification.verify(directory)
    (cache / "blobs" / ".huggingface-shared-blobs").unlink()
    with pytest.raises(ArtifactError, match="link that leaves the adapter's directory"):
        verification.verify(directory)


def test_a_copied_snapshot_says_what_is_missing(server: LocalHub, tmp_path: Path) -> None:
    """Links that were copied out of a cache as links lead to nothing; the message says how to copy files."""
    publish(tmp_path / "a")
    directory = hub.fetch(REPO)
    shutil.copytree(directory, tmp_path / "links", symlinks=True)
    with pytest.raises(MissingFileError, match=r"is a link to .* which is not there.*cp -RL"):
        verification.verify(tmp_path / "links")
    shutil.copytree(directory, tmp_path / "files")
    verification.verify(tmp_path / "files")
    (tmp_path / "a" / "notes.txt").symlink_to("notes.txt")
    with pytest.raises(ArtifactError, match=r"notes\.txt' is a link that cannot be followed"):
        verification.verify(tmp_path / "a")


@SPEAKS_XET
def test_xet_without_its_pieces_is_one_line(server: LocalHub, tmp_path: Path) -> None:
    """What breaks inside hf_xet says that nothing is half done; with the pieces back, running again succeeds."""
    publish(tmp_path / "a")
    pieces = [path for path in (tmp_path / "server" / "cas").rglob("default.*") if path.suffix != ".tagset"]
    for path in pieces:
        path.rename(f"{path}.away")
    with pytest.raises((RuntimeError, OSError), match=r"transfer of large files .* broke \(.*run again") as caught:
        hub.fetch(REPO)
    assert "\n" not in str(caught.value)
    for path in pieces:
        Path(f"{path}.away").rename(path)
    assert contents(hub.fetch(REPO)) == contents(tmp_path / "a")


def test_saving_over_a_download_keeps_the_clients_folder(server: LocalHub, tmp_path: Path) -> None:
    """`hf download --local-dir` leaves `.cache/huggingface` there; an adapter loads, and is saved there."""
    publish(tmp_path / "a")
    from huggingface_hub import snapshot_download

    place = Path(snapshot_download(REPO, local_dir=tmp_path / "local"))
    left = {path for path in place.rglob("*") if ".cache" in path.parts and path.is_file()}
    assert left
    ValueAdapter.from_pretrained(place).with_config(scale=0.25).save_pretrained(place)
    assert ValueAdapter.from_pretrained(place).config.scale == 0.25
    assert all(path.exists() for path in left)
