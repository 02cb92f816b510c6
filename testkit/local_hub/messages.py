"""Requests, responses and errors as values; knows nothing of sockets or of what they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

_BLOCK = 1 << 20


class RequestRecord(NamedTuple):
    """One line of the server's log."""

    method: str
    path: str
    """Path and query as they came."""
    status: int
    """The answer's status; 0 where a fault cut the connection before one."""
    headers: Message
    """The request's headers; names are case-insensitive."""


@dataclass(frozen=True)
class Request:
    """One request, read whole."""

    method: str
    target: str
    """Path and query as they came."""
    headers: Message
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target without its query, still quoted."""
        return urlsplit(self.target).path

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query's values by key."""
        return parse_qs(urlsplit(self.target).query)

    def option(self, name: str, default: str = "") -> str:
        """The first value of a query key."""
        return self.query.get(name, [default])[0]

    def json(self) -> Any:
        """The body's JSON value; an empty object for an empty body."""
        return parse_json(self.body or b"{}")


def parse_json(text: bytes) -> Any:
    """A JSON value of a request.

    Raises:
        HubError: it is not JSON (400).
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise HubError(400, f"the request's body is not JSON: {error}") from None


@dataclass(frozen=True)
class Response:
    """One answer; the body is in memory or, for large files, on disk."""

    status: int = 200
    body: bytes | Path = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    span: range | None = None
    """Which bytes of the body are sent; None for all."""

    @classmethod
    def json(cls, value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """An answer in JSON; values that JSON lacks (dates of a model card) are sent as text."""
        body = json.dumps(value, default=str).encode()
        return cls(status, body, {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def file(cls, body: bytes | Path, headers: Mapping[str, str]) -> Response:
        """An answer of which a client may ask for a part."""
        defaults = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        return cls(200, body, {**defaults, **headers})

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size

    @property
    def length(self) -> int:
        """Bytes that are sent."""
        return self.size if self.span is None else len(self.span)

    def select(self, wanted: str | None) -> Response:
        """The part that a `Range` header wants; all where it wants none or parts are not offered."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
        if match is None or not any(match.groups()) or self.headers.get("Accept-Ranges") != "bytes":
            return self
        size, (first, last) = self.size, match.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            return replace(
                self, status=416, span=range(0), headers={**self.headers, "Content-Range": f"bytes */{size}"}
            )
        content_range = f"bytes {start}-{stop - 1}/{size}"
        return replace(
            self, status=206, span=range(start, stop), headers={**self.headers, "Content-Range": content_range}
        )

    def blocks(self) -> Iterator[bytes]:
        """The bytes that are sent, in blocks."""
        span = range(self.size) if self.span is None else self.span
        if isinstance(self.body, bytes):
            yield self.body[span.start : span.stop]
            return
        with self.body.open("rb") as file:
            file.seek(span.start)
            for position in range(span.start, span.stop, _BLOCK):
                yield file.read(min(_BLOCK, span.stop - position))


class HubError(Exception):
    """A request that the Hub refuses.

    Args:
        status: the HTTP status of the answer.
        message: what is wrong; the client shows it.
        code: the `X-Error-Code` by which the client chooses an exception (`RepoNotFound`, `GatedRepo`, …).
        headers: further headers of the answer.
        body: the answer's JSON, where the client reads more than the message.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers or {}), body

    def response(self) -> Response:
        """The answer that says so."""
        headers = {"X-Error-Message": self.message}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return Response.json(
            self.body or {"error": self.message}, status=self.status, headers={**headers, **self.headers}
        )
