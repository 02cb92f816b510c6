"""From a request to the function that answers it, with what every such function needs; answers nothing itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlencode

from testkit.local_hub.accounts import User
from testkit.local_hub.messages import HubError, Request, Response
from testkit.local_hub.repository import Repository
from testkit.local_hub.store import Store

_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
KIND = r"(?P<kind>models|datasets|spaces)"
API_REPO = rf"/api/{KIND}/{_ID}"
"""A repository in the API."""
PAGE_REPO = rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}"
"""A repository where its files are; a model where no kind is named."""
REVISION = r"(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Site:
    """What the routes work on."""

    store: Store
    users: Mapping[str, User]
    """By token."""
    endpoint: str
    """Origin of the API."""
    cdn: str
    """Origin of large files."""
    page_size: int
    """Most entries of a listing in one answer."""
    lfs_part_size: int | None
    """Bytes above which large files are uploaded in parts; None for never."""

    def url(self, repository: Repository) -> str:
        """The address of a repository's page."""
        return self.endpoint + repository.url_path


@dataclass(frozen=True)
class Call:
    """One request with the values in its path, and checks of who sent it."""

    site: Site
    request: Request
    values: Mapping[str, str]
    """By name of the group in the route's pattern; absent where an optional group is."""

    @property
    def store(self) -> Store:
        """What the hub holds."""
        return self.site.store

    @cached_property
    def user(self) -> User | None:
        """Who sent the request; None without a token.

        Raises:
            HubError: nobody has the token (401).
        """
        authorization = self.request.headers.get("Authorization")
        if not authorization:
            return None
        user = self.site.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def signed_in(self) -> User:
        """Who sent the request.

        Raises:
            HubError: there is no token (401).
        """
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def owns(self, namespace: str) -> bool:
        """Whether the sender belongs to `namespace`."""
        return self.user is not None and self.user.owns(namespace)

    def require_write(self, namespace: str, action: str) -> User:
        """Who sent the request, if allowed to change things under `namespace`.

        Raises:
            HubError: there is no token (401), or it does not allow that (403).
        """
        user = self.signed_in()
        if not user.owns(namespace) or user.role == "read":
            message = f'Forbidden: you don\'t have the rights to {action} under the namespace "{namespace}"'
            raise HubError(403, message)
        return user

    def repository(self, *, write: bool = False, content: bool = False) -> Repository:
        """The repository that the path names, if the sender may see it (or change it, or read its files)."""
        return self.find(self.values.get("kind", "models"), self.values["id"], write=write, content=content)

    def find(self, kinds: str, repo_id: str, *, write: bool = False, content: bool = False) -> Repository:
        """The repository of this kind (in plural, as paths have it) and id; see `repository`.

        Raises:
            HubError: it has another id (307), is not there or not for the sender (401, 404), is not the sender's to
                change (403), or is gated (401, 403).
        """
        kind = kinds.removesuffix("s")
        if (new_id := self.store.moved.get((kind, repo_id))) is not None:
            location = self.request.target.replace(repo_id, new_id)
            raise HubError(307, f"{repo_id} is now {new_id}", headers={"Location": location})
        repository = self.store.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not self.owns(repository.namespace)):
            status, message = (404, "Repository not found") if self.user else (401, "Invalid username or password.")
            raise HubError(status, message, code="RepoNotFound")
        if write:
            self.require_write(repository.namespace, f"write to {repo_id}")
        if content and not self._is_let_in(repository):
            status = 403 if self.user else 401
            raise HubError(status, f"Access to {kind} {repo_id} is restricted.", code="GatedRepo")
        return repository

    def _is_let_in(self, repository: Repository) -> bool:
        granted = self.user is not None and self.user.name in repository.granted
        return not repository.gated or granted or self.owns(repository.namespace)

    def page(self, items: Sequence[Any], size: int | None = None) -> Response:
        """The part of a listing that the sender's cursor asks for, with the address of the next."""
        size = size or self.site.page_size
        start = int(self.request.option("cursor", "0"))
        headers: dict[str, str] = {}
        if start + size < len(items):
            query = urlencode({**self.request.query, "cursor": start + size}, doseq=True)
            headers["Link"] = f'<{self.site.endpoint}{self.request.path}?{query}>; rel="next"'
        return Response.json(items[start : start + size], headers=headers)


Answer = Callable[[Call], Response]


class Routes:
    """Functions by method and path; a HEAD request goes where GET does."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, re.Pattern[str], Answer]] = []

    def add(self, method: str, pattern: str) -> Callable[[Answer], Answer]:
        """A decorator that registers a function for paths that match `pattern` whole."""

        def register(answer: Answer) -> Answer:
            self._entries.append((method, re.compile(pattern), answer))
            return answer

        return register

    def find(self, request: Request) -> tuple[Answer, dict[str, str]] | None:
        """The function for a request, and the values in its path."""
        method = "GET" if request.method == "HEAD" else request.method
        for expected, pattern, answer in self._entries:
            if expected == method and (match := pattern.fullmatch(request.path)):
                groups = match.groupdict().items()
                return answer, {name: unquote(value) for name, value in groups if value is not None}
        return None
