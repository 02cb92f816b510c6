"""Routes by which a commit is made: what to upload how, and the commit itself; takes no large file's bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from testkit.local_hub.messages import HubError, Response, parse_json
from testkit.local_hub.objects import Commit, File
from testkit.local_hub.repository import Repository
from testkit.local_hub.routing import API_REPO, REVISION, Call, Routes
from testkit.local_hub.store import Store

ROUTES = Routes()
_LARGE = 10 << 20
"""Bytes above which every file goes to LFS."""


def _proposes(call: Call) -> bool:
    """Whether the sender wants a pull request, which needs no right to write."""
    return "create_pr" in call.request.query


def _target(call: Call) -> tuple[Repository, Commit]:
    """The repository to commit to, and the commit to build on."""
    repository = call.repository(write=not _proposes(call))
    call.signed_in()
    return repository, repository.resolve(call.values["revision"])


@ROUTES.add("POST", f"{API_REPO}/preupload/{REVISION}")
def preupload(call: Call) -> Response:
    """Which of some files to put into the commit, and which to upload before."""
    _, commit = _target(call)
    wanted = call.request.json()
    large, ignored = _large_patterns(commit, call.store), _ignored_patterns(wanted.get("gitIgnore", ""))
    files = [_advice(file, commit, large=large, ignored=ignored) for file in wanted["files"]]
    return Response.json({"files": files, "commitOid": commit.oid})


def _large_patterns(commit: Commit, store: Store) -> list[str]:
    """What `.gitattributes` gives to LFS."""
    if ".gitattributes" not in commit.tree:
        return []
    lines = store.read(commit.tree[".gitattributes"]).decode().splitlines()
    return [line.split()[0] for line in lines if "filter=lfs" in line]


def _ignored_patterns(gitignore: str) -> list[str]:
    return [line for line in gitignore.splitlines() if line and not line.startswith("#")]


def _advice(file: Mapping[str, Any], commit: Commit, *, large: list[str], ignored: list[str]) -> dict[str, Any]:
    """How to upload one file; `oid` lets the client skip a file that has not changed."""
    path: str = file["path"]
    name, known = path.rpartition("/")[2], commit.tree.get(path)
    is_binary = b"\0" in base64.b64decode(file["sample"])
    is_large = file["size"] > _LARGE or is_binary or any(fnmatch(name, p) or fnmatch(path, p) for p in large)
    return {
        "path": path,
        "uploadMode": "lfs" if is_large else "regular",
        "oid": (known.lfs or known.oid) if known else None,
        "shouldIgnore": any(fnmatch(name, p) or fnmatch(path, f"{p.rstrip('/')}/*") for p in ignored),
    }


@ROUTES.add("POST", f"{API_REPO}/commit/{REVISION}")
def commit(call: Call) -> Response:
    """Make a commit, on a branch or as a pull request."""
    repository, parent = _target(call)
    lines = [parse_json(line) for line in call.request.body.splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), None)
    if header is None:
        raise HubError(400, "the commit has no header line")
    if not _proposes(call):
        _check_parent(call, repository, header.get("parentCommit") or parent.oid)
    tree = dict(parent.tree)
    for line in lines:
        _apply(line["key"], line["value"], tree, call.store)
    title, message, author = header["summary"], header.get("description", ""), call.signed_in().name
    new = repository.record(tree, title, message=message, author=author, parent=parent.oid)
    answer = {"success": True, "commitOid": new.oid, "hookOutput": ""}
    answer["commitUrl"] = f"{call.site.url(repository)}/commit/{new.oid}"
    if _proposes(call):
        number = repository.propose(new, base=parent)
        answer["pullRequestUrl"] = f"{call.site.url(repository)}/discussions/{number}"
    else:
        repository.advance(call.values["revision"], new)
    call.store.save(repository)
    return Response.json(answer)


def _check_parent(call: Call, repository: Repository, expected: str) -> None:
    """The revision is one to commit on, and what the client last saw of it."""
    revision = call.values["revision"]
    if not repository.can_grow(revision):
        raise HubError(400, f"cannot commit on {revision}: it is not a branch")
    if expected != repository.resolve(revision).oid:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")


def _apply(key: str, value: Mapping[str, Any], tree: dict[str, File], store: Store) -> None:
    """Change `tree` as one line of a commit says."""
    if key == "header":
        return
    path: str = value["path"]
    if path.startswith("/") or ".." in path.split("/"):
        raise HubError(400, f"invalid path {path!r}: it leads out of the repository")
    if key == "file":
        is_encoded = value.get("encoding") == "base64"
        tree[path] = store.put(base64.b64decode(value["content"]) if is_encoded else value["content"].encode())
    elif key == "lfsFile":
        tree[path] = store.large_file(value["oid"], value.get("size"))
    elif key in ("deletedFile", "deletedFolder"):
        _delete(path, tree, is_folder=key == "deletedFolder")
    else:
        raise HubError(400, f"unknown operation {key!r} in a commit")


def _delete(path: str, tree: dict[str, File], *, is_folder: bool) -> None:
    prefix = f"{path.rstrip('/')}/"
    gone = [known for known in tree if known == path or (is_folder and known.startswith(prefix))]
    if not gone:
        raise HubError(404, f"{path} does not exist", code="EntryNotFound")
    for known in gone:
        del tree[known]
