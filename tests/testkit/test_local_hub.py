"""The loopback Hub does what the Hub does, as the real client sees it."""

from __future__ import annotations

import json
import struct
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_clients import ASKS_ITS_ENDPOINT, FILES, ID, WEIGHTS, client, online, publish, put
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfFileSystem, errors
from huggingface_hub.hf_api import RepoFile, RepoFolder

from testkit.local_hub import LocalHub, User

# huggingface_hub itself uploads to LFS in a way that its HTTP library deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with online(tmp_path / "server", monkeypatch, page_size=3) as hub:
        yield hub


@pytest.fixture
def first(hub: LocalHub, tmp_path: Path) -> str:
    """The commit that published alice's repository."""
    return publish(hub, tmp_path)


def test_token_tells_who_i_am(hub: LocalHub) -> None:
    """Users and organisations come from the token, and a wrong one is refused."""
    me = client(hub).whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("alice", ["acme"])
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
        client(hub, "nobody").whoami()


def test_users_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub has the users it is given and no others."""
    with online(tmp_path, monkeypatch, users={"hf_carol": User("carol")}) as hub:
        assert client(hub, "carol").whoami()["name"] == "carol"
        with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
            client(hub, "alice").whoami()


def test_repository_is_created_once(hub: LocalHub) -> None:
    """A second creation is a conflict unless the client allows it."""
    alice = client(hub)
    assert str(alice.create_repo(ID)) == f"{hub.endpoint}/{ID}"
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        alice.create_repo(ID)
    assert alice.create_repo(ID, exist_ok=True).repo_id == ID
    assert alice.create_repo("acme/model").repo_id == "acme/model"


@pytest.mark.parametrize(("name", "status"), [("alice_read", "403"), ("bob", "403"), ("anonymous", "401")])
def test_only_owners_write(hub: LocalHub, first: str, name: str, status: str) -> None:
    """Read tokens, strangers and nobody can neither create nor change."""
    with pytest.raises(errors.HfHubHTTPError, match=status):
        client(hub, name).create_repo("alice/other")
    with pytest.raises(errors.HfHubHTTPError, match=status):
        put(client(hub, name), "x.txt")
    assert not client(hub).file_exists(ID, "x.txt")


def test_folder_arrives_whole(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """A snapshot equals the folder that was uploaded, byte by byte."""
    folder = Path(client(hub, "anonymous").snapshot_download(ID, cache_dir=tmp_path / "cache"))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_patterns_choose_files(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """A snapshot of a commit into a folder takes only what matches."""
    options: dict[str, Any] = {"revision": first, "allow_patterns": ["*.json"], "local_dir": tmp_path / "local"}
    folder = Path(client(hub).snapshot_download(ID, **options))
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["adapter_config.json"]


def test_unchanged_folder_makes_no_commit(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """Hashes tell the client that nothing changed."""
    assert client(hub).upload_folder(repo_id=ID, folder_path=tmp_path / "upload").oid == first


def test_commit_adds_deletes_and_copies_at_once(hub: LocalHub, first: str) -> None:
    """One commit can hold every kind of operation."""
    alice, weights = client(hub), "adapter_model.safetensors"
    operations: list[CommitOperationAdd | CommitOperationDelete | CommitOperationCopy] = [
        CommitOperationAdd("sub/b.txt", b"b"),
        CommitOperationDelete("sub/a.txt"),
        CommitOperationCopy(weights, "copy.safetensors"),
        CommitOperationCopy("adapter_config.json", "copy.json"),
    ]
    alice.create_commit(ID, operations, commit_message="v2")
    files = alice.list_repo_files(ID)
    assert {"sub/b.txt", "copy.safetensors", "copy.json"} <= set(files)
    assert "sub/a.txt" not in files
    assert [commit.title for commit in alice.list_repo_commits(ID)] == ["v2", "v1", "initial commit"]


def test_files_and_folders_are_deleted(hub: LocalHub, first: str) -> None:
    """Deleting a folder deletes what is in it."""
    alice = client(hub)
    alice.delete_file("README.md", ID)
    alice.delete_folder("sub", ID)
    assert not {"README.md", "sub/a.txt"} & set(alice.list_repo_files(ID))


def test_stale_parent_is_refused(hub: LocalHub, first: str) -> None:
    """A commit on top of an outdated parent changes nothing (412)."""
    alice = client(hub)
    put(alice, "new.txt")
    with pytest.raises(errors.HfHubHTTPError, match="412"):
        put(alice, "stale.txt", parent_commit=first)
    assert not alice.file_exists(ID, "stale.txt")


def test_path_cannot_lead_out_of_repository(hub: LocalHub, first: str) -> None:
    """The server checks paths itself: not every client does."""
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "../x", "content": ""}},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    address = f"{hub.endpoint}/api/models/{ID}/commit/main"
    request = urllib.request.Request(address, data=body, headers={"Authorization": "Bearer hf_alice"})
    with pytest.raises(urllib.error.HTTPError, match="400") as failure:
        urllib.request.urlopen(request)
    failure.value.close()


def test_ids_are_gits(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """Blob and tree ids are those that git computes."""
    folder = tmp_path / "git"
    # git sorts the folder `deep` after the file `deep.txt`
    for name in ("sub/a.txt", "sub/deep/b.txt", "sub/deep.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a")
    client(hub).upload_folder(repo_id=ID, folder_path=folder)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    tree = git("write-tree")
    folder_entry, file_entry = client(hub).get_paths_info(ID, ["sub", "sub/a.txt"])
    assert isinstance(folder_entry, RepoFolder)
    assert isinstance(file_entry, RepoFile)
    assert folder_entry.tree_id == git("rev-parse", f"{tree}:sub")
    assert file_entry.blob_id == git("hash-object", "sub/a.txt")


def test_file_objects_upload(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """Open files are uploaded like paths."""
    with (tmp_path / "upload" / "adapter_model.safetensors").open("rb") as file:
        client(hub).upload_file(path_or_fileobj=file, path_in_repo="again.bin", repo_id=ID)
    path = client(hub, "anonymous").hf_hub_download(ID, "again.bin", cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == WEIGHTS


def test_commit_is_downloaded_once(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """A file of a commit in the cache needs no request."""
    options: dict[str, Any] = {"revision": first, "cache_dir": tmp_path / "cache"}
    path = client(hub).hf_hub_download(ID, "adapter_model.safetensors", **options)
    requests = len(hub.log)
    assert client(hub).hf_hub_download(ID, "adapter_model.safetensors", **options) == path
    assert len(hub.log) == requests


@pytest.mark.parametrize(
    ("wanted", "start", "stop"), [("10-19", 10, 20), ("2999990-", 2_999_990, None), ("-5", -5, None)]
)
def test_parts_of_files_are_served(hub: LocalHub, first: str, wanted: str, start: int, stop: int | None) -> None:
    """Plain HTTP gets a file, or the part that it asks for."""
    address = f"{hub.endpoint}/{ID}/resolve/main/adapter_model.safetensors"
    request = urllib.request.Request(address, headers={"Range": f"bytes={wanted}"})
    with urllib.request.urlopen(request) as answer:
        assert (answer.status, answer.read()) == (206, WEIGHTS[start:stop])


@pytest.mark.usefixtures("by_lfs")
def test_multipart_upload_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files may come in parts."""
    with online(tmp_path / "server", monkeypatch, lfs_part_size=700_000) as hub:
        publish(hub, tmp_path)
        path = client(hub).hf_hub_download(ID, "adapter_model.safetensors", cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == WEIGHTS
        assert sum("/part/" in request.path for request in hub.log) == 5


def test_branches_and_tags_are_revisions(hub: LocalHub, first: str) -> None:
    """Branches and tags start where told, move apart, and can be removed."""
    alice = client(hub)
    alice.create_branch(ID, branch="dev", revision=first)
    alice.create_tag(ID, tag="v1.0", revision=first)
    put(alice, "dev.txt", revision="dev")
    refs = alice.list_repo_refs(ID)
    assert {branch.name for branch in refs.branches} == {"main", "dev"}
    assert [tag.target_commit for tag in refs.tags] == [first] == [alice.model_info(ID, revision="v1.0").sha]
    assert [alice.file_exists(ID, "dev.txt", revision=name) for name in ("dev", "main")] == [True, False]
    alice.delete_branch(ID, branch="dev")
    alice.delete_tag(ID, tag="v1.0")
    assert not alice.revision_exists(ID, "dev")
    assert not alice.revision_exists(ID, "v1.0")


def test_refs_exist_once(hub: LocalHub, first: str) -> None:
    """A second branch or tag of the same name is a conflict unless allowed; a missing revision is named."""
    alice = client(hub)
    for _ in range(2):
        alice.create_branch(ID, branch="dev", exist_ok=True)
        alice.create_tag(ID, tag="v1.0", exist_ok=True)
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        alice.create_branch(ID, branch="dev")
    with pytest.raises(errors.RevisionNotFoundError, match="404"):
        alice.model_info(ID, revision="nope")


def test_pull_request_is_merged_by_owner(hub: LocalHub, first: str) -> None:
    """Strangers propose, owners add and merge."""
    alice, bob = client(hub), client(hub, "bob")
    assert put(bob, "bob.txt", create_pr=True).pr_revision == "refs/pr/1"
    put(alice, "more.txt", revision="refs/pr/1")
    assert not alice.file_exists(ID, "bob.txt")
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        bob.merge_pull_request(ID, 1)
    alice.merge_pull_request(ID, 1)
    assert {"bob.txt", "more.txt"} <= set(alice.list_repo_files(ID))
    assert alice.get_discussion_details(ID, 1).status == "merged"
    assert [pull.num for pull in alice.get_repo_discussions(ID)] == [1]


def test_info_comes_from_files(hub: LocalHub, first: str) -> None:
    """Tags, library and sizes are derived from card and files."""
    info = client(hub).model_info(ID, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    assert sizes["adapter_model.safetensors"] == len(WEIGHTS)
    assert (info.library_name, info.pipeline_tag, info.sha) == ("peft", "text-generation", first)
    assert {"value-adapter", "safetensors", "license:mit", "base_model:adapter:org/base"} <= set(info.tags or [])
    chosen = client(hub).model_info(ID, expand=["downloads", "tags"])
    assert (chosen.downloads, chosen.card_data) == (0, None)


def test_models_are_found(hub: LocalHub, first: str) -> None:
    """Listings filter, hide what is private, and go on after the first page (of three)."""
    alice, anyone = client(hub), client(hub, "anonymous")
    for index in range(5):
        alice.create_repo(f"acme/m{index}", private=index == 4)
    tags = ["value-adapter", "base_model:adapter:org/base"]
    queries = ({"filter": tags}, {"search": "ADAPT"}, {"pipeline_tag": "text-generation"}, {"author": "alice"})
    assert [[model.id for model in anyone.list_models(**query)] for query in queries] == [[ID]] * 4
    assert list(anyone.list_models(filter="nothing")) == []
    assert [len(list(api.list_models(author="acme"))) for api in (anyone, alice)] == [4, 5]
    assert len(list(anyone.list_models(author="acme", limit=2))) == 2


def test_private_repository_is_hidden(hub: LocalHub, tmp_path: Path) -> None:
    """Others cannot tell a private repository from a missing one, until it is public."""
    alice, bob, anyone = (client(hub, name) for name in ("alice", "bob", "anonymous"))
    alice.create_repo(ID, private=True)
    put(alice, "s.txt", b"s")
    for api, status in ((bob, "404"), (anyone, "401")):
        with pytest.raises(errors.RepositoryNotFoundError, match=status):
            api.model_info(ID)
    path = client(hub, "alice_read").hf_hub_download(ID, "s.txt", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"s"
    alice.update_repo_settings(ID, private=False)
    assert anyone.model_info(ID).private is False


@ASKS_ITS_ENDPOINT
def test_gated_repository_opens_by_grant(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """Everyone sees a gated repository's info, those let in its files."""
    alice, bob = client(hub), client(hub, "bob")
    alice.update_repo_settings(ID, gated="manual")
    assert bob.model_info(ID).gated == "manual"
    with pytest.raises(errors.GatedRepoError, match="403"):
        bob.auth_check(ID)
    with pytest.raises(errors.GatedRepoError, match="403"):
        bob.hf_hub_download(ID, "README.md", cache_dir=tmp_path)
    alice.grant_access(ID, "bob")
    assert bob.hf_hub_download(ID, "README.md", cache_dir=tmp_path)


def test_missing_file_is_named(hub: LocalHub, first: str, tmp_path: Path) -> None:
    """A file that is not there is told from a repository that is not."""
    with pytest.raises(errors.RemoteEntryNotFoundError, match="404"):
        client(hub).hf_hub_download(ID, "missing.txt", cache_dir=tmp_path)


def test_wrong_card_is_refused(hub: LocalHub, first: str) -> None:
    """The card's metadata is checked before a commit."""
    with pytest.raises(ValueError, match='"library_name" must be a string'):
        put(client(hub), "README.md", b"---\nlibrary_name: [1]\n---\n")


def test_safetensors_header_is_read_remotely(hub: LocalHub, first: str) -> None:
    """Ranges suffice to read a weight file's header."""
    tensors = {"__metadata__": {"a": "1"}, "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    header = json.dumps(tensors).encode()
    put(client(hub), "model.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 16)
    metadata = client(hub).get_safetensors_metadata(ID)
    assert metadata.parameter_count == {"F32": 4}
    assert metadata.files_metadata["model.safetensors"].metadata == {"a": "1"}


def test_moved_repository_is_found_by_old_id(hub: LocalHub) -> None:
    """A rename leaves a redirection."""
    alice = client(hub)
    alice.create_repo("alice/old")
    alice.move_repo("alice/old", "alice/new")
    assert alice.model_info("alice/old").id == "alice/new"


def test_a_name_without_account_is_no_repository(hub: LocalHub) -> None:
    """As on the Hub, where a few old models have one."""
    for name, status in (("alice", "404"), ("anonymous", "401")):
        with pytest.raises(errors.RepositoryNotFoundError, match=status):
            client(hub, name).model_info("gpt2")
    assert not client(hub).repo_exists("gpt2", repo_type="dataset")


def test_owner_deletes(hub: LocalHub, first: str) -> None:
    """Owners delete, once; others do not."""
    alice = client(hub)
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        client(hub, "bob").delete_repo(ID)
    alice.delete_repo(ID)
    with pytest.raises(errors.RepositoryNotFoundError, match="404"):
        alice.delete_repo(ID)
    alice.delete_repo(ID, missing_ok=True)
    assert not alice.repo_exists(ID)


def test_datasets_are_apart_from_models(hub: LocalHub, tmp_path: Path) -> None:
    """A dataset is no model, and has the same operations."""
    alice = client(hub)
    kind: dict[str, Any] = {"repo_type": "dataset"}
    alice.create_repo(ID, **kind)
    put(alice, "d.jsonl", b"{}\n", **kind)
    put(alice, "d.parquet", WEIGHTS[:5000], **kind)
    folder = Path(alice.snapshot_download(ID, cache_dir=tmp_path, **kind))
    assert sorted(path.name for path in folder.iterdir()) == [".gitattributes", "d.jsonl", "d.parquet"]
    assert not alice.repo_exists(ID)


def test_file_system_reads(hub: LocalHub, first: str) -> None:
    """The client's file system lists and reads."""
    files = HfFileSystem(endpoint=hub.endpoint, token="hf_alice", skip_instance_cache=True)
    assert files.cat(f"{ID}/sub/a.txt") == b"a"
    assert f"{ID}/adapter_model.safetensors" in files.ls(ID, detail=False)
