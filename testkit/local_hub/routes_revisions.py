"""Routes for what is in a repository: folders, commits, branches, tags, pull requests; moves no file's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from testkit.local_hub.messages import HubError, Response
from testkit.local_hub.metadata import lfs_size
from testkit.local_hub.objects import File, folder_ids, timestamp
from testkit.local_hub.repository import Repository
from testkit.local_hub.routing import API_REPO, REVISION, Call, Routes

ROUTES = Routes()


@ROUTES.add("GET", f"{API_REPO}/tree/{REVISION}(?:/(?P<path>.+))?")
def tree(call: Call) -> Response:
    """A folder's folders and files."""
    commit = call.repository().resolve(call.values["revision"])
    prefix = f"{call.values['path'].rstrip('/')}/" if "path" in call.values else ""
    deep = call.request.option("recursive").lower() in ("true", "1")

    def is_listed(path: str) -> bool:
        return path.startswith(prefix) and path != "" and (deep or "/" not in path[len(prefix) :])

    if prefix and not any(path.startswith(prefix) for path in commit.tree):
        raise HubError(404, f'{prefix[:-1]} does not exist on "{call.values["revision"]}"', code="EntryNotFound")
    folders = [_folder(path, oid) for path, oid in sorted(folder_ids(commit.tree).items()) if is_listed(path)]
    files = [_file(path, file) for path, file in sorted(commit.tree.items()) if is_listed(path)]
    return call.page(folders + files)


@ROUTES.add("POST", f"{API_REPO}/paths-info/{REVISION}")
def paths_info(call: Call) -> Response:
    """What is at the given paths; nothing for those where nothing is."""
    commit = call.repository().resolve(call.values["revision"])
    request = call.request
    is_json = "json" in request.headers.get("Content-Type", "")
    paths = request.json()["paths"] if is_json else parse_qs(request.body.decode()).get("paths", [])
    folders = folder_ids(commit.tree)
    found = [
        _file(path, commit.tree[path]) if path in commit.tree else _folder(path, folders[path])
        for path in paths
        if path in commit.tree or path in folders
    ]
    return Response.json(found)


def _folder(path: str, oid: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def _file(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        entry["lfs"] = {"oid": file.lfs, **lfs_size(file)}
    if file.xet:
        entry["xetHash"] = file.xet
    return entry


@ROUTES.add("GET", f"{API_REPO}/refs")
def refs(call: Call) -> Response:
    """A repository's branches, tags and pull requests."""
    repository = call.repository()
    heads = {f"refs/pr/{number}": pull.head for number, pull in repository.pull_requests.items()}
    return Response.json(
        {
            "branches": _refs("refs/heads/", repository.branches),
            "tags": _refs("refs/tags/", repository.tags),
            "converts": [],
            "pullRequests": _refs("", heads),
        }
    )


def _refs(prefix: str, commits: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in commits.items()]


@ROUTES.add("GET", f"{API_REPO}/commits/{REVISION}")
def commits(call: Call) -> Response:
    """The commits that lead to a revision, newest first."""
    return call.page(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in call.repository().history(call.values["revision"])
        ]
    )


@ROUTES.add("POST", f"{API_REPO}/branch/{REVISION}")
def create_branch(call: Call) -> Response:
    """Make a branch."""
    repository, name = call.repository(write=True), call.values["revision"]
    if name in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    repository.branches[name] = repository.resolve(call.request.json().get("startingPoint")).oid
    call.store.save(repository)
    return Response.json({})


@ROUTES.add("POST", f"{API_REPO}/tag/{REVISION}")
def create_tag(call: Call) -> Response:
    """Give a revision a tag."""
    repository, name = call.repository(write=True), call.request.json()["tag"]
    if name in repository.tags:
        raise HubError(409, f"Tag reference exists already: {name}")
    repository.tags[name] = repository.resolve(call.values["revision"]).oid
    call.store.save(repository)
    return Response.json({})


@ROUTES.add("DELETE", f"{API_REPO}/(?P<what>branch|tag)/{REVISION}")
def delete_ref(call: Call) -> Response:
    """Remove a branch (but main) or a tag; its commits stay."""
    repository, name = call.repository(write=True), call.values["revision"]
    is_branch = call.values["what"] == "branch"
    references = repository.branches if is_branch else repository.tags
    if is_branch and name == "main":
        raise HubError(403, "cannot delete main, the default branch")
    if name not in references:
        raise HubError(404, f"there is no {call.values['what']} {name}", code="RevisionNotFound")
    del references[name]
    call.store.save(repository)
    return Response.json({})


@ROUTES.add("GET", f"{API_REPO}/discussions")
def discussions(call: Call) -> Response:
    """A repository's pull requests."""
    repository = call.repository()
    found = [_pull_request(repository, number) for number in repository.pull_requests]
    return Response.json({"discussions": found, "count": len(found), "start": 0})


@ROUTES.add("GET", rf"{API_REPO}/discussions/(?P<number>\d+)")
def discussion(call: Call) -> Response:
    """One pull request."""
    return Response.json(_pull_request(call.repository(), int(call.values["number"])))


@ROUTES.add("POST", rf"{API_REPO}/discussions/(?P<number>\d+)/merge")
def merge(call: Call) -> Response:
    """Merge a pull request into main."""
    repository, number = call.repository(write=True), int(call.values["number"])
    _pull_request(repository, number)
    name = call.signed_in().name
    repository.merge(number, author=name)
    call.store.save(repository)
    event = {"id": "0", "type": "status-change", "createdAt": timestamp(), "author": {"name": name}}
    event["data"] = {"status": "merged"}
    return Response.json({"newStatus": event, **event})


def _pull_request(repository: Repository, number: int) -> dict[str, Any]:
    """A pull request as the Hub's answers have it.

    Raises:
        HubError: there is none with this number (404).
    """
    if number not in repository.pull_requests:
        raise HubError(404, f"{repository.id} has no discussion {number}")
    pull = repository.pull_requests[number]
    return {
        "num": number,
        "title": pull.title,
        "status": pull.status,
        "isPullRequest": True,
        "author": {"name": pull.author},
        "createdAt": pull.date,
        "repo": {"name": repository.id, "type": repository.kind},
        "repoOwner": {},
        "changes": {"base": "refs/heads/main", "mergeCommitId": pull.merge},
        "filesWithConflicts": [],
        "events": [],
        "diff": "",
    }
