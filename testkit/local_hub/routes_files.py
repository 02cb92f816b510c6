"""Routes that move files' bytes: uploads by LFS, whole or in parts, tokens for Xet, and downloads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from testkit.local_hub.messages import HubError, Response
from testkit.local_hub.objects import File
from testkit.local_hub.repository import Repository
from testkit.local_hub.routing import API_REPO, PAGE_REPO, REVISION, Call, Routes, Site

ROUTES = Routes()
_SHA256 = r"(?P<sha256>[0-9a-f]{64})"
_QUERY_FILES = ("config.json", "adapter_config.json")
"""Files whose downloads count as downloads of the repository; the Hub's own rule has more."""


@ROUTES.add("POST", rf"{PAGE_REPO}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Response:
    """Where to upload each of some files; nowhere for those that are here already."""
    call.repository()
    call.signed_in()
    wanted = call.request.json()
    multipart = "multipart" in wanted.get("transfers", [])
    objects = [_lfs_object(item, call.site, multipart=multipart) for item in wanted["objects"]]
    in_parts = any("header" in item.get("actions", {}).get("upload", {}) for item in objects)
    return Response.json({"transfer": "multipart" if in_parts else "basic", "objects": objects})


def _lfs_object(item: Mapping[str, Any], site: Site, *, multipart: bool) -> dict[str, Any]:
    sha256, size = item["oid"], item["size"]
    answer: dict[str, Any] = {"oid": sha256, "size": size}
    if site.store.large_size(sha256) is not None:
        return answer
    upload: dict[str, Any] = {"href": f"{site.cdn}/_lfs/{sha256}"}
    if multipart and site.lfs_part_size and size > site.lfs_part_size:
        numbers = range(1, -(-size // site.lfs_part_size) + 1)
        parts = {str(number): f"{upload['href']}/part/{number}" for number in numbers}
        upload = {"href": f"{site.endpoint}/_lfs/{sha256}/complete"}
        upload["header"] = {"chunk_size": str(site.lfs_part_size), **parts}
    verify = {"href": f"{site.endpoint}/_lfs/{sha256}/verify"}
    return {**answer, "actions": {"upload": upload, "verify": verify}}


@ROUTES.add("PUT", f"/_lfs/{_SHA256}")
def lfs_upload(call: Call) -> Response:
    """Take a large file."""
    call.store.put_large(call.values["sha256"], call.request.body)
    return Response()


@ROUTES.add("PUT", rf"/_lfs/{_SHA256}/part/(?P<number>\d+)")
def lfs_upload_part(call: Call) -> Response:
    """Take a part of a large file."""
    call.store.parts[call.values["sha256"], int(call.values["number"])] = call.request.body
    return Response(headers={"ETag": f'"{hashlib.md5(call.request.body).hexdigest()}"'})


@ROUTES.add("POST", f"/_lfs/{_SHA256}/complete")
def lfs_complete(call: Call) -> Response:
    """Join the parts of a large file."""
    sha256, parts = call.values["sha256"], call.store.parts
    keys = [(sha256, part["partNumber"]) for part in call.request.json()["parts"]]
    if missing := [number for _, number in keys if (sha256, number) not in parts]:
        raise HubError(400, f"parts {missing} of {sha256} were not uploaded")
    call.store.put_large(sha256, b"".join(parts.pop(key) for key in keys))
    return Response.json({})


@ROUTES.add("POST", f"/_lfs/{_SHA256}/verify")
def lfs_verify(call: Call) -> Response:
    """Whether a large file has arrived."""
    sha256 = call.values["sha256"]
    if call.store.large_size(sha256) != call.request.json()["size"]:
        raise HubError(404, f"object {sha256} not found")
    return Response.json({})


@ROUTES.add("GET", f"{API_REPO}/xet-(?P<mode>read|write)-token/{REVISION}")
def xet_token(call: Call) -> Response:
    """Where a client reads and writes through Xet: a directory of this machine."""
    writes = call.values["mode"] == "write"
    call.repository(write=writes and "create_pr" not in call.request.query, content=not writes)
    if not call.store.offers_xet:
        raise HubError(404, "this hub has no Xet; run the client with HF_HUB_DISABLE_XET=1")
    address, expiration = f"local://{call.store.xet.folder}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expiration)}
    return Response.json({"casUrl": address, "exp": expiration, "accessToken": "xet"}, headers=headers)


@ROUTES.add("GET", f"{PAGE_REPO}/(?:resolve|raw)/{REVISION}/(?P<path>.+)")
def resolve(call: Call) -> Response:
    """A file; where it is large, the way to it."""
    repository, path = call.repository(content=True), call.values["path"]
    commit = repository.resolve(call.values["revision"])
    exposed = "X-Repo-Commit,X-Linked-Size,X-Linked-ETag,X-Xet-Hash"
    headers = {"X-Repo-Commit": commit.oid, "Access-Control-Expose-Headers": exposed}
    file = commit.tree.get(path)
    if file is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
    if path in _QUERY_FILES:
        repository.downloads += 1
        call.store.save(repository)
    if file.lfs is None:
        kind = {"ETag": f'"{file.oid}"', "Content-Type": "text/plain; charset=utf-8"}
        return Response.file(call.store.path(file), {**headers, **kind})
    location = f"{call.site.cdn}/_cdn/{file.lfs}?filename={quote(path)}"
    xet = _xet_headers(file, call.site, repository, commit.oid)
    return Response(302, headers={**headers, **_linked(file), **xet, "Location": location})


def _linked(file: File) -> dict[str, str]:
    """What the way to a large file tells about it."""
    etag = f'"{file.lfs}"'
    return {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(file.size)}


def _xet_headers(file: File, site: Site, repository: Repository, revision: str) -> dict[str, str]:
    """How a client gets a file through Xet, where it came so and the hub still has Xet."""
    if file.xet is None or not site.store.offers_xet:
        return {}
    token = f"{site.endpoint}/api/{repository.kind}s/{repository.id}/xet-read-token/{revision}"
    return {"X-Xet-Hash": file.xet, "X-Xet-Refresh-Route": token, "Link": f'<{token}>; rel="xet-auth"'}


@ROUTES.add("GET", f"/_cdn/{_SHA256}")
def download_large(call: Call) -> Response:
    """A large file's content; like on the Hub's CDN, whoever knows the address may have it."""
    path = call.store.large_path(call.values["sha256"])
    if not path.exists():
        raise HubError(404, f"object {path.name} not found")
    return Response.file(path, {"ETag": f'"{path.name}"'})
