"""What a push does to a repository, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters_on_hub import REPO, WEIGHTS, publish, put, requests, save, server
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from testkit.local_hub import LocalHub
from valueadapter import ConfigError, ValueAdapter, hub
from valueadapter.artifact.card import is_generated
from valueadapter.errors import ArtifactError, NotAValueAdapterError

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
OWN = "---\nlicense: mit\n---\nMine.\n"
HAND_WRITTEN = "---\nlicense: mit\n---\nWritten by hand.\n"


def _files(revision: str | None = None) -> set[str]:
    return set(HfApi().list_repo_files(REPO, revision=revision)) - {".gitattributes"}


def _card() -> str:
    return Path(hf_hub_download(REPO, "README.md")).read_text(encoding="utf-8")


def test_push_is_one_commit_on_what_was_looked_at(server: LocalHub, tmp_path: Path) -> None:
    """The whole adapter arrives in one commit with the message given."""
    how = hub.Push(commit_message="First", commit_description="and more")
    commit = publish(tmp_path / "a", how=how)
    newest, first = HfApi().list_repo_commits(REPO)
    assert (newest.commit_id, newest.title, newest.message) == (commit, "First", "and more")
    assert first.title == "initial commit"
    assert len(requests(server, "POST", "/commit/")) == 1


def test_unchanged_push_makes_no_commit(server: LocalHub, tmp_path: Path) -> None:
    """Pushing the same again changes nothing and uploads no weights."""
    commit = publish(tmp_path / "a")
    server.log.clear()
    assert publish(tmp_path / "b") == commit
    assert not requests(server, "PUT", "")


def test_files_of_the_earlier_adapter_go(server: LocalHub, tmp_path: Path) -> None:
    """Shards, network directories and alignments that the new adapter lacks are deleted; other files stay."""
    hub.push(save(tmp_path / "old", networks=2, shard="8KB"), REPO)
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="alignments/to-x.safetensors", repo_id=REPO)
    put(LICENSE="mine", notes__md="mine")
    assert "value_network_1/model.safetensors.index.json" in _files()
    hub.push(save(tmp_path / "new"), REPO)
    local = {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert _files() == local | {"LICENSE", "notes.md"}


def test_network_directories_of_any_name_go(server: LocalHub, tmp_path: Path) -> None:
    """The earlier adapter's own configuration says which directories were its networks."""
    old = save(tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config["networks"][0]["path"] = "expert"
    (old / "config.json").write_text(json.dumps(config))
    (old / "value_network").rename(old / "expert")
    hub.push(old, REPO)
    hub.push(save(tmp_path / "new"), REPO)
    assert not [name for name in _files() if name.startswith("expert")]


def test_earlier_adapter_may_be_unreadable(server: LocalHub, tmp_path: Path) -> None:
    """Over an adapter of a format that this library cannot read, the usual directories are replaced."""
    publish(tmp_path / "a")
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="value_network_1/model.safetensors", repo_id=REPO)
    put(config__json='{"model_type": "value_adapter", "format_version": 99}')
    publish(tmp_path / "b", seed=5)
    assert not [name for name in _files() if name.startswith("value_network_1")]


def test_what_does_not_belong_does_not_travel(server: LocalHub, tmp_path: Path) -> None:
    """Hidden files, checkpoints and data stay; documents at the root go along."""
    directory = save(tmp_path / "a")
    for name in (".secret", "value_network/.cache", "checkpoint-5/model.safetensors", "data.jsonl", "NOTICE", "how.md"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
    hub.push(directory, REPO)
    assert {"NOTICE", "how.md"} < _files()
    assert not {".secret", "value_network/.cache", "checkpoint-5/model.safetensors", "data.jsonl"} & _files()


def test_a_trainers_state_is_never_opened_and_does_not_travel(server: LocalHub, tmp_path: Path) -> None:
    """A checkpoint of transformers' Trainer is an adapter with pickles beside it, which are passed over."""
    directory = save(tmp_path / "checkpoint-5")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_1.pth", "trainer_state.json"):
        (directory / name).write_bytes(b"x")
    assert hub.fetch(directory) == directory
    hub.push(directory, REPO)
    assert not [name for name in _files() if name.endswith((".bin", ".pt", ".pth")) or "trainer" in name]
    (directory / "value_network" / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="may be a pickle"):
        hub.fetch(directory)


def test_damaged_adapter_is_not_pushed(server: LocalHub, tmp_path: Path) -> None:
    """Verification comes before the first request."""
    directory = save(tmp_path / "a")
    (directory / "weights.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="may be a pickle"):
        hub.push(directory, REPO)
    assert not server.log


@pytest.mark.parametrize(
    ("on_hub", "local", "overwrite", "expected"),
    [
        (None, None, False, "generated"),
        (None, HAND_WRITTEN, False, HAND_WRITTEN),
        ("generated", HAND_WRITTEN, False, HAND_WRITTEN),
        (HAND_WRITTEN, None, False, HAND_WRITTEN),
        (HAND_WRITTEN, OWN, False, HAND_WRITTEN),
        (HAND_WRITTEN, OWN, True, OWN),
        (HAND_WRITTEN, None, True, "generated"),
    ],
)
def test_a_persons_card_wins(
    server: LocalHub, tmp_path: Path, on_hub: str | None, local: str | None, overwrite: bool, expected: str
) -> None:
    """The Hub's hand-written card stays unless asked, then comes the directory's, then a rendered one."""
    HfApi().create_repo(REPO)
    if on_hub == "generated":
        publish(tmp_path / "before", seed=8)
    elif on_hub:
        put(README__md=on_hub)
    directory = save(tmp_path / "a")
    if local:
        (directory / "README.md").write_text(local)
    hub.push(directory, REPO, hub.Push(overwrite_card=overwrite))
    assert ("generated" if is_generated(_card()) else _card()) == expected


def test_rendered_card_names_the_repository(server: LocalHub, tmp_path: Path) -> None:
    """The published card is rendered anew at each push, with the Hub ID and the tags."""
    publish(tmp_path / "a")
    publish(tmp_path / "b", how=hub.Push(tags=("quiz",)))
    assert f'("alice/base", "{REPO}")' in _card()
    assert [found.id for found in HfApi().list_models(filter=["value-adapter", "quiz"])] == [REPO]


def test_name_without_user_is_ones_own(server: LocalHub, tmp_path: Path) -> None:
    """`push("adapter")` publishes under the token's account, and the card says so."""
    publish(tmp_path / "a", repo_id="adapter")
    assert REPO in _card()


def test_branch_is_created_and_then_used(server: LocalHub, tmp_path: Path) -> None:
    """A push to a branch leaves the main one as it is."""
    main = publish(tmp_path / "a")
    draft = publish(tmp_path / "b", seed=5, how=hub.Push(revision="draft"))
    newer = publish(tmp_path / "c", seed=6, how=hub.Push(revision="draft"))
    refs = {branch.name: branch.target_commit for branch in HfApi().list_repo_refs(REPO).branches}
    assert refs == {"main": main, "draft": newer}
    assert draft in [commit.commit_id for commit in HfApi().list_repo_commits(REPO, revision="draft")]


def test_pull_request_of_another_account(server: LocalHub, tmp_path: Path) -> None:
    """Whoever may not write can propose; what is proposed can be loaded by its reference."""
    main = publish(tmp_path / "a")
    how = hub.Push(create_pr=True, token="hf_bob")
    info = hub.push(save(tmp_path / "b", seed=5), REPO, how)
    assert info.pr_revision == "refs/pr/1"
    assert hub.resolve_commit(REPO) == main
    assert hub.fetch(REPO, hub.Download(revision="refs/pr/1")).name == info.oid


def test_pull_request_against_no_branch(server: LocalHub, tmp_path: Path) -> None:
    """A pull request makes no branch of its own."""
    publish(tmp_path / "a")
    with pytest.raises(RevisionNotFoundError, match="has no revision 'draft'; it has 'main'"):
        publish(tmp_path / "b", seed=5, how=hub.Push(create_pr=True, revision="draft"))


def test_private_repository(server: LocalHub, tmp_path: Path) -> None:
    """A new repository is private when asked; an existing public one is not pushed to as if it were."""
    publish(tmp_path / "a", how=hub.Push(private=True))
    assert HfApi().model_info(REPO).private
    publish(tmp_path / "b", how=hub.Push(private=True), seed=5)
    HfApi().update_repo_settings(REPO, private=False)
    with pytest.raises(ConfigError, match=f"private=True, but '{REPO}' exists and is public; nothing was pushed"):
        publish(tmp_path / "c", how=hub.Push(private=True), seed=6)


@pytest.mark.parametrize("relative", [True, False])
def test_base_named_by_a_path(
    server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    """A base that only this machine has is refused before anything is sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "base").mkdir(parents=True)
    base = "my/base" if relative else str(tmp_path / "elsewhere")
    adapter = ValueAdapter.from_pretrained(save(tmp_path / "a")).with_config(base_model_name_or_path=base)
    with pytest.raises(ConfigError, match=f"is '{base}', a path of this machine.*name the base's Hub ID"):
        adapter.push_to_hub(REPO)
    assert not server.log


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config__json": '{"model_type": "llama"}'}, "is a plain model.*Pushing an adapter there would spoil it"),
        ({"adapter_config__json": "{}"}, "is a PEFT adapter.*choose another repository"),
    ],
)
def test_repository_of_something_else_is_not_spoilt(
    server: LocalHub, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    """A push never turns another model into half an adapter."""
    HfApi().create_repo(REPO)
    commit = put(**files)
    with pytest.raises(NotAValueAdapterError, match=message):
        publish(tmp_path / "a")
    assert HfApi().model_info(REPO).sha == commit


@pytest.mark.parametrize("line", ["*.json", "value_network/", "/value_network/*", "model.safetensors"])
def test_ignored_files_stop_the_push(server: LocalHub, tmp_path: Path, line: str) -> None:
    """The Hub would leave out silently what a .gitignore there names."""
    HfApi().create_repo(REPO)
    HfApi().upload_file(path_or_fileobj=f"# x\n\n{line}\n".encode(), path_in_repo=".gitignore", repo_id=REPO)
    with pytest.raises(ConfigError, match=r"would not arrive: \.gitignore in"):
        publish(tmp_path / "a")


def test_harmless_gitignore_is_no_obstacle(server: LocalHub, tmp_path: Path) -> None:
    """Trainers leave one that names checkpoints."""
    HfApi().create_repo(REPO)
    HfApi().upload_file(path_or_fileobj=b"checkpoint-*/\n", path_in_repo=".gitignore", repo_id=REPO)
    publish(tmp_path / "a")
    assert WEIGHTS in _files()


@pytest.mark.parametrize("token", ["hf_bob", "hf_alice_read"])
def test_token_without_write_access(server: LocalHub, tmp_path: Path, token: str) -> None:
    """The message says what the Hub refused and which token would do."""
    publish(tmp_path / "a")
    with pytest.raises(HfHubHTTPError, match=f"may not do this to '{REPO}' .*Use a token with write access to 'alice'"):
        publish(tmp_path / "b", seed=5, how=hub.Push(token=token))


def test_offline_push_says_so(server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline mode is named."""
    directory = save(tmp_path / "a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode is enabled"):
        hub.push(directory, REPO)
