"""Publishing and loading over a real Hub on loopback, and how what cannot be had reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters_on_hub import REPO, WEIGHTS, contents, publish, put, requests, save, server
from hub_clients import REMEMBERS_LISTINGS
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from testkit.local_hub import LocalHub
from valueadapter import ConfigError, ValueAdapter, hub
from valueadapter.errors import ArtifactError, MissingFileError, NotAValueAdapterError

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
OFFLINE = hub.Download(local_files_only=True)


def test_what_was_pushed_is_what_arrives(server: LocalHub, tmp_path: Path) -> None:
    """Every file of the artifact arrives byte for byte."""
    publish(tmp_path / "a")
    assert contents(hub.fetch(REPO)) == contents(tmp_path / "a")


def test_directory_is_used_as_it_is(server: LocalHub, tmp_path: Path) -> None:
    """A local adapter is verified where it lies; the Hub is not asked."""
    save(tmp_path / "all" / "a")
    assert hub.fetch(tmp_path / "all" / "a") == tmp_path / "all" / "a"
    assert hub.fetch(str(tmp_path / "all"), hub.Download(subfolder="a")) == tmp_path / "all" / "a"
    assert not server.log


def test_only_the_adapters_files_are_downloaded(server: LocalHub, tmp_path: Path) -> None:
    """Pickles, other models and notes in the repository stay there."""
    publish(tmp_path / "a")
    put(pytorch_model__bin="x", notes__txt="x", other__safetensors="x")
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="checkpoint-5/optimizer.pt", repo_id=REPO)
    assert set(contents(hub.fetch(REPO))) == set(contents(tmp_path / "a"))


def test_everything_comes_from_one_commit(server: LocalHub, tmp_path: Path) -> None:
    """After the commit is known, no request names a branch."""
    commit = publish(tmp_path / "a")
    server.log.clear()
    assert hub.fetch(REPO).name == commit
    files = requests(server, "GET", "/resolve/")
    assert files
    assert all(f"/resolve/{commit}/" in path for path in files)


@REMEMBERS_LISTINGS
def test_second_fetch_asks_only_for_the_commit(server: LocalHub, tmp_path: Path) -> None:
    """What the cache has is not asked for again; a commit hash needs no request at all."""
    commit = publish(tmp_path / "a")
    hub.fetch(REPO)
    server.log.clear()
    hub.fetch(REPO)
    assert len(server.log) == 1
    hub.fetch(REPO, hub.Download(revision=commit))
    assert len(server.log) == 1


@pytest.mark.parametrize("name", ["branch", "tag", "commit"])
def test_revision_is_honoured(server: LocalHub, tmp_path: Path, name: str) -> None:
    """A branch, a tag and a commit hash each give what they name."""
    commit = publish(tmp_path / "old", seed=3)
    HfApi().create_branch(REPO, branch="branch")
    HfApi().create_tag(REPO, tag="tag")
    publish(tmp_path / "new", seed=4)
    revision = commit if name == "commit" else name
    assert contents(hub.fetch(REPO, hub.Download(revision=revision))) == contents(tmp_path / "old")


def test_subfolder_of_a_repository(server: LocalHub, tmp_path: Path) -> None:
    """An adapter may lie deeper, and only it is downloaded."""
    HfApi().create_repo(REPO)
    for name, seed in (("one", 3), ("two", 4)):
        HfApi().upload_folder(repo_id=REPO, folder_path=save(tmp_path / name, seed=seed), path_in_repo=f"deep/{name}")
    directory = hub.fetch(REPO, hub.Download(subfolder="deep/two"))
    assert contents(directory) == contents(tmp_path / "two")
    assert not (directory.parent / "one").exists()


def _stop(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> hub.Download:
    server.__exit__(None, None, None)
    close_session()
    return hub.Download()


def _go_offline(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> hub.Download:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    return hub.Download()


def _answer(status: int) -> Callable[[LocalHub, pytest.MonkeyPatch], hub.Download]:
    def fail(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> hub.Download:
        server.fault("/api/models/", status=status, times=100)
        return hub.Download()

    return fail


def _forbid(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> hub.Download:
    return OFFLINE


UNREACHABLE = pytest.mark.parametrize(
    ("how", "reason"),
    [
        (_forbid, "local_files_only=True forbids asking"),
        (_go_offline, "HF_HUB_OFFLINE forbids asking"),
        (_stop, r"cannot be asked \(ConnectError\)"),
        (_answer(503), r"cannot be asked \(it answered 503\)"),
        (_answer(429), r"cannot be asked \(it answered 429\)"),
    ],
    ids=["local_files_only", "HF_HUB_OFFLINE", "no server", "503", "429"],
)
Unreachable = Callable[[LocalHub, pytest.MonkeyPatch], hub.Download]


@UNREACHABLE
def test_cache_serves_without_the_hub(
    server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Unreachable, reason: str
) -> None:
    """What was downloaded once loads without the Hub, and so do its facts."""
    publish(tmp_path / "a")
    online = hub.fetch(REPO)
    download = how(server, monkeypatch)
    assert hub.fetch(REPO, download) == online
    assert hub.repository_facts(REPO, download).commit == online.name


@UNREACHABLE
def test_nothing_cached_and_no_hub(
    server: LocalHub, monkeypatch: pytest.MonkeyPatch, how: Unreachable, reason: str
) -> None:
    """The message says why the Hub was not asked, and where was looked."""
    download = how(server, monkeypatch)
    with pytest.raises(LocalEntryNotFoundError, match=f"'{REPO}' .*is not complete in the cache '.*{reason}"):
        hub.fetch(REPO, download)


def _missing_revision() -> hub.Download:
    return hub.Download(revision="v9")


def _private() -> hub.Download:
    HfApi().update_repo_settings(REPO, private=True)
    return hub.Download(token=False)


def _private_of_another() -> hub.Download:
    HfApi().update_repo_settings(REPO, private=True)
    return hub.Download(token="hf_bob")


def _gated() -> hub.Download:
    HfApi().update_repo_settings(REPO, gated="manual")
    return hub.Download(token=False)


def _gated_with_token() -> hub.Download:
    HfApi().update_repo_settings(REPO, gated="manual")
    return hub.Download(token="hf_bob")


def _wrong_token() -> hub.Download:
    return hub.Download(token="hf_mistyped")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_missing_revision, RevisionNotFoundError, "has no revision 'v9'; it has 'main', 'draft', 'v1'. Pass one"),
        (_private, RepositoryNotFoundError, "no public model repository .* no token was sent"),
        (_private_of_another, RepositoryNotFoundError, "no model repository .* that the token sent may see"),
        (_gated, GatedRepoError, "is gated: .* No token was sent. Ask for access at http"),
        (_gated_with_token, GatedRepoError, "is gated: .* The account of the token that was sent has no access"),
        (_wrong_token, HfHubHTTPError, "does not accept the token that was sent .*/settings/tokens"),
    ],
)
def test_each_refusal_reads_differently(
    server: LocalHub, tmp_path: Path, make: Callable[[], hub.Download], error: type[Exception], message: str
) -> None:
    """One line says what happened, what was sent and what to do; the client's class and words are kept."""
    publish(tmp_path / "a")
    HfApi().create_branch(REPO, branch="draft")
    HfApi().create_tag(REPO, tag="v1")
    with pytest.raises(error, match=message) as caught:
        hub.fetch(REPO, make())
    assert "\n" not in str(caught.value)
    assert caught.value.__notes__[0].startswith("The Hub client said: ")


def test_no_such_repository(server: LocalHub) -> None:
    """The name and the Hub that was asked are in the message."""
    with pytest.raises(RepositoryNotFoundError, match=f"no model repository 'alice/nothing' on {server.endpoint}"):
        hub.fetch("alice/nothing")


@pytest.mark.parametrize("name", ["./adapters/mine", "a/b/c", "/nowhere/adapter", "user/has space"])
def test_neither_directory_nor_hub_id(name: str) -> None:
    """A mistyped path does not become a request."""
    with pytest.raises(MissingFileError, match="neither a directory here nor of the form of a Hub ID"):
        hub.fetch(name)


def test_path_object_is_a_directory() -> None:
    """A `Path` never names a repository."""
    with pytest.raises(MissingFileError, match="there is no directory 'alice/adapter'; for a Hub ID pass a string"):
        hub.fetch(Path(REPO))


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"adapter_config__json": "{}", "config__json": "{}"}, NotAValueAdapterError, "is a PEFT adapter"),
        ({"config__json": '{"model_type": "llama"}'}, NotAValueAdapterError, "is a plain model"),
        ({"train__jsonl": "{}"}, NotAValueAdapterError, "holds data"),
        ({"notes__txt": "x"}, MissingFileError, "has no config.json.*it holds model.safetensors, notes.txt"),
    ],
)
def test_something_else_is_named(server: LocalHub, files: dict[str, str], error: type[Exception], message: str) -> None:
    """What is no value adapter is recognised by its small files; its weights are not downloaded."""
    HfApi().create_repo(REPO)
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="model.safetensors", repo_id=REPO)
    put(**files)
    with pytest.raises(error, match=f"^'{REPO}' {message}"):
        hub.fetch(REPO)
    assert not requests(server, "GET", "safetensors")


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_repository_of_another_kind(server: LocalHub, kind: str) -> None:
    """A dataset of that name is said to be one."""
    HfApi().create_repo(REPO, repo_type=kind, space_sdk="static" if kind == "space" else None)
    with pytest.raises(NotAValueAdapterError, match=f"is a {kind} repository, not a value adapter"):
        hub.fetch(REPO)


def test_damaged_download_is_refused(server: LocalHub, tmp_path: Path) -> None:
    """What is loaded is what was verified: a file that is not the recorded one does not pass."""
    publish(tmp_path / "a")
    save(tmp_path / "b", seed=9)
    HfApi().upload_file(path_or_fileobj=tmp_path / "b" / WEIGHTS, path_in_repo=WEIGHTS, repo_id=REPO)
    with pytest.raises(ArtifactError, match="has changed since it was saved") as caught:
        hub.fetch(REPO)
    assert "force_download=True" in caught.value.__notes__[0]


def test_force_download_repairs_the_cache(server: LocalHub, tmp_path: Path) -> None:
    """A file that rotted in the cache is fetched again on request."""
    publish(tmp_path / "a")
    weights = (hub.fetch(REPO) / WEIGHTS).resolve()
    weights.chmod(0o644)  # blobs that repositories share are read-only
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match="has changed since it was saved"):
        hub.fetch(REPO)
    assert contents(hub.fetch(REPO, hub.Download(force_download=True))) == contents(tmp_path / "a")


def test_contradicting_options() -> None:
    """Downloading again and not downloading exclude each other."""
    with pytest.raises(ConfigError, match="contradict each other"):
        hub.Download(force_download=True, local_files_only=True)


def test_facts_need_no_weights(server: LocalHub, tmp_path: Path) -> None:
    """Configuration, commit and sizes come without downloading weights, and equal those of the directory."""
    commit = publish(tmp_path / "a")
    facts, local = hub.repository_facts(REPO), hub.repository_facts(tmp_path / "a")
    assert not requests(server, "GET", "/_cdn/")
    assert (facts.name, facts.commit, facts.config) == (REPO, commit, local.config)
    assert {**facts.files, "README.md": 0} == {**local.files, "README.md": 0}
    assert hub.fetch_config(REPO) == hub.fetch_config(tmp_path / "a") == facts.config


def test_commit_of_a_revision(server: LocalHub, tmp_path: Path) -> None:
    """A branch stands for a commit; a directory has none; the cache answers without the Hub."""
    commit = publish(tmp_path / "a")
    assert hub.resolve_commit(REPO) == hub.resolve_commit(REPO, "main") == commit
    assert hub.resolve_commit(str(tmp_path / "a")) is None
    hub.fetch(REPO)
    assert hub.resolve_commit(REPO, local_files_only=True) == commit


def test_cache_directory_of_ones_own(server: LocalHub, tmp_path: Path) -> None:
    """`cache_dir` holds everything; the common cache stays empty, and the copy serves offline."""
    publish(tmp_path / "a")
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    own = tmp_path / "own"
    assert hub.fetch(REPO, hub.Download(cache_dir=own)).is_relative_to(own)
    assert hub.fetch(REPO, hub.Download(cache_dir=str(own), local_files_only=True)).is_relative_to(own)
    assert not Path(constants.HF_HUB_CACHE).exists()


@pytest.mark.parametrize("kind", ["folder", "cache"])
def test_the_hub_librarys_own_command_moves_artifacts(server: LocalHub, tmp_path: Path, kind: str) -> None:
    """`hf upload` publishes a saved adapter, `hf download` brings it: to a directory, or to the cache for later."""
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    environment = {**os.environ, **server.env("hf_alice"), "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}

    def run(*arguments: str) -> None:
        subprocess.run([*hf, *arguments], env=environment, check=True, capture_output=True, timeout=120)

    saved = save(tmp_path / "a")
    run("upload", "alice/by-hand", str(saved), ".")
    assert contents(hub.fetch("alice/by-hand")) == contents(saved)
    place = ["--local-dir", str(tmp_path / "b")] if kind == "folder" else []
    run("download", "alice/by-hand", *place)
    found = tmp_path / "b"
    if kind == "cache":
        (found,) = (tmp_path / "home" / "hub" / "models--alice--by-hand" / "snapshots").iterdir()
    assert {k: v for k, v in contents(found).items() if not k.startswith((".cache", ".git"))} == contents(saved)
    weights = ValueAdapter.from_pretrained(found).networks[0].lm_head.weight
    assert torch.equal(weights, ValueAdapter.from_pretrained(saved).networks[0].lm_head.weight)
