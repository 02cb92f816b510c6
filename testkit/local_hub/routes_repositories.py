"""Routes for accounts and whole repositories: who am I, create, move, delete, settings, access, listings, info."""

from __future__ import annotations

import re
from typing import Any

from testkit.local_hub.messages import HubError, Response
from testkit.local_hub.metadata import check_card, choose, describe, summarize
from testkit.local_hub.objects import GITATTRIBUTES
from testkit.local_hub.repository import Repository
from testkit.local_hub.routing import API_REPO, KIND, REVISION, Call, Routes

ROUTES = Routes()


@ROUTES.add("GET", "/api/whoami-v2")
def whoami(call: Call) -> Response:
    """The account that the token belongs to."""
    user = call.signed_in()
    organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organizations]
    token = {"displayName": "test", "role": user.role}
    names = {"id": user.name, "name": user.name, "fullname": user.name}
    auth = {"type": "access_token", "accessToken": token}
    return Response.json({"type": "user", **names, "isPro": False, "orgs": organizations, "auth": auth})


@ROUTES.add("GET", "/api/agent-harnesses")
def agent_harnesses(_: Call) -> Response:
    """What the command line asks to learn whether an agent runs it; nothing is known here."""
    return Response.json({"standardEnvVars": [], "harnesses": {}})


@ROUTES.add("POST", "/api/validate-yaml")
def validate_card(call: Call) -> Response:
    """Whether a model card's metadata is right."""
    errors, warnings = check_card(call.request.json()["content"])
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Response.json(found, status=400 if errors else 200)


@ROUTES.add("POST", "/api/repos/create")
def create(call: Call) -> Response:
    """Make a repository with one commit."""
    wanted = call.request.json()
    kind = wanted.get("type") or "model"
    namespace = wanted.get("organization") or call.signed_in().name
    user = call.require_write(namespace, f"create a {kind}")
    private = bool(wanted.get("private") or wanted.get("visibility") == "private")
    repository = Repository(kind, _checked_id(f"{namespace}/{wanted['name']}"), private)
    url = call.site.url(repository)
    if repository.key in call.store.repositories:
        message = f"You already created this {kind} repo: {repository.id}"
        raise HubError(409, message, body={"error": message, "url": url, "id": repository.id})
    tree = {".gitattributes": call.store.put(GITATTRIBUTES)}
    repository.advance("main", repository.record(tree, "initial commit", author=user.name, parent=None))
    call.store.save(repository)
    return Response.json({"url": url, "name": repository.id, "id": repository.internal_id})


@ROUTES.add("DELETE", "/api/repos/delete")
def delete(call: Call) -> Response:
    """Remove a repository."""
    wanted = call.request.json()
    namespace = wanted.get("organization") or call.signed_in().name
    kinds = f"{wanted.get('type') or 'model'}s"
    call.store.remove(call.find(kinds, f"{namespace}/{wanted['name']}", write=True))
    return Response.json({})


@ROUTES.add("POST", "/api/repos/move")
def move(call: Call) -> Response:
    """Rename a repository; its old id stays as a redirection."""
    wanted = call.request.json()
    kind, new_id = wanted.get("type") or "model", _checked_id(wanted["toRepo"])
    repository = call.find(f"{kind}s", wanted["fromRepo"], write=True)
    call.require_write(new_id.split("/")[0], f"create a {kind}")
    if (kind, new_id) in call.store.repositories:
        raise HubError(409, f"{new_id} exists already")
    call.store.move(repository, new_id)
    return Response.json({})


def _checked_id(repo_id: str) -> str:
    """The id, if it cannot lead out of the directory of repositories."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id):
        raise HubError(400, f"{repo_id!r} is not a repository's id; expected `namespace/name`")
    return repo_id


@ROUTES.add("PUT", f"{API_REPO}/settings")
def settings(call: Call) -> Response:
    """Make a repository private, public or gated."""
    repository, wanted = call.repository(write=True), call.request.json()
    repository.gated = wanted.get("gated", repository.gated)
    if "visibility" in wanted:
        repository.private = wanted["visibility"] == "private"
    repository.private = wanted.get("private", repository.private)
    call.store.save(repository)
    return Response.json(wanted)


@ROUTES.add("GET", f"{API_REPO}/auth-check(?:/(?P<write>write))?")
def auth_check(call: Call) -> Response:
    """Whether the sender may read a repository's files, or change them."""
    call.repository(write="write" in call.values, content=True)
    return Response.json({})


@ROUTES.add("POST", f"{API_REPO}/user-access-request/(?:grant|handle)")
def grant_access(call: Call) -> Response:
    """Let a user into a gated repository, or turn the user away."""
    repository, wanted = call.repository(write=True), call.request.json()
    if wanted.get("status") == "rejected":
        repository.granted.discard(wanted["user"])
    else:
        repository.granted.add(wanted["user"])
    call.store.save(repository)
    return Response.json({})


@ROUTES.add("GET", f"{API_REPO}(?:/revision/{REVISION})?")
def info(call: Call) -> Response:
    """What the Hub knows about a repository."""
    repository, query = call.repository(), call.request.query
    commit = repository.resolve(call.values.get("revision"))
    description = describe(repository, commit, call.store, blobs="blobs" in query)
    return Response.json(choose(description, query["expand"]) if "expand" in query else description)


@ROUTES.add("GET", rf"/api/{KIND}/(?P<id>[\w.-]+)")
def without_account(call: Call) -> Response:
    """A name alone: on the Hub a few old models have one, here none."""
    raise HubError(404, f"{call.repository().id} is in no account")


@ROUTES.add("GET", f"/api/{KIND}")
def listing(call: Call) -> Response:
    """The repositories of a kind that match, newest first unless asked otherwise."""
    found = [description for description in _visible(call) if _matches(description, call)]
    sort = call.request.option("sort", "lastModified")
    key = "likes" if sort == "trendingScore" else sort
    found.sort(key=lambda description: description.get(key) or 0, reverse=True)
    limit = int(call.request.option("limit", str(call.site.page_size)))
    return call.page([_listed(item, call) for item in found], min(limit, call.site.page_size))


def _visible(call: Call) -> list[dict[str, Any]]:
    """Descriptions of the repositories that the sender may see."""
    kind = call.values["kind"].removesuffix("s")
    repositories = [item for item in call.store.repositories.values() if item.kind == kind]
    seen = [item for item in repositories if not item.private or call.owns(item.namespace)]
    return [describe(item, item.resolve("main"), call.store) for item in seen]


def _matches(description: dict[str, Any], call: Call) -> bool:
    """Whether a repository is what the query looks for."""
    query = call.request.query
    for key in ("author", "pipeline_tag"):
        if key in query and query[key][0] != description[key]:
            return False
    tagged = all(tag in description["tags"] for tag in query.get("filter", []))
    return tagged and call.request.option("search").lower() in description["id"].lower()


def _listed(description: dict[str, Any], call: Call) -> dict[str, Any]:
    """A repository as the query wants it listed."""
    query = call.request.query
    if "expand" in query:
        return choose(description, query["expand"])
    return description if query.keys() & {"full", "cardData", "config"} else summarize(description)
