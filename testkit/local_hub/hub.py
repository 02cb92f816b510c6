"""The hub as a whole: two origins over one store, with users and faults; knows no route."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from testkit.local_hub import routes_commits, routes_files, routes_repositories, routes_revisions
from testkit.local_hub.accounts import DEFAULT_USERS, User
from testkit.local_hub.faults import Fault, FaultBoard
from testkit.local_hub.messages import HubError, Request, RequestRecord, Response
from testkit.local_hub.routing import Call, Site
from testkit.local_hub.server import HubServer
from testkit.local_hub.store import Store

_ROUTES = (
    routes_repositories.ROUTES,
    routes_revisions.ROUTES,
    routes_commits.ROUTES,
    routes_files.ROUTES,
)


class LocalHub:
    """A Hugging Face Hub on loopback, for as long as a `with` block lasts.

    Any number of clients may use it at once. What they push stays in `root`: a later hub on the same directory has it.

    Args:
        root: the directory in which everything is kept; made if missing.
        users: by token; alice (of acme), bob, and a token of alice's that can only read, if None.
        xet: large files may go through Xet, as on the Hub; False: only through LFS, for clients without Xet
            (`HF_HUB_DISABLE_XET=1`), to which a Hub with Xet gives everything, too.
        port: where the API listens; 0 for any free port.
        page_size: most entries of a listing in one answer.
        lfs_part_size: bytes above which LFS uploads come in parts; None for never.
    """

    def __init__(
        self,
        root: Path,
        *,
        users: Mapping[str, User] | None = None,
        xet: bool = True,
        port: int = 0,
        page_size: int = 1000,
        lfs_part_size: int | None = None,
    ) -> None:
        self.root = Path(root).resolve()
        self.users = dict(DEFAULT_USERS if users is None else users)
        self.log: list[RequestRecord] = []
        """All requests, in the order in which they were answered."""
        self._xet, self._port = xet, port
        self._page_size, self._lfs_part_size = page_size, lfs_part_size
        self._faults = FaultBoard()
        self._servers: list[HubServer] = []
        self._site: Site | None = None

    def __enter__(self) -> Self:
        """Start to serve."""
        if self._servers:
            raise RuntimeError(f"this hub is already serving at {self.endpoint}; stop it before starting it again")
        store = Store(self.root, offers_xet=self._xet)
        for port in (self._port, 0):
            self._servers.append(HubServer(port, answer=self._answer, faults=self._faults, log=self.log))
        api, cdn = (server.port for server in self._servers)
        self._site = Site(
            store=store,
            users=self.users,
            endpoint=f"http://127.0.0.1:{api}",
            # another host name, not only another port: older clients compare only host names to decide whether to
            # send their token along with a redirection
            cdn=f"http://localhost:{cdn}",
            page_size=self._page_size,
            lfs_part_size=self._lfs_part_size,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop to serve; open connections are cut."""
        while self._servers:
            self._servers.pop().stop()
        self._site = None

    @property
    def endpoint(self) -> str:
        """The hub's address, for `HF_ENDPOINT` or `endpoint=`."""
        return self._serving().endpoint

    def env(self, token: str | None = None, home: Path | None = None) -> dict[str, str]:
        """The environment variables with which a process uses this hub and nothing of the user's own.

        Args:
            token: whose token the process has; None for nobody's.
            home: the process's cache directory; by default one inside `root`.
        """
        xet = {} if self._xet else {"HF_HUB_DISABLE_XET": "1"}
        place = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home or self.root / "home")}
        return {**place, "HF_TOKEN": token or "", **xet}

    def fault(
        self,
        pattern: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
        cut_upload: int | None = None,
        times: int = 1,
        method: str | None = None,
    ) -> None:
        """Let the next requests that match go wrong; give one of `status`, `cut`, `cut_upload`.

        Args:
            pattern: regular expression, searched in path and query.
            status: answer this and do nothing.
            headers: further headers of that answer, such as `Retry-After`.
            cut: carry the request out, but close the connection after so many bytes of the answer's body. Answers that
                are not longer than that, and answers to HEAD, are left alone.
            cut_upload: close the connection after so many bytes of the request's body, and do nothing. Requests
                without a body are left alone.
            times: how many requests.
            method: the HTTP method that must match too.
        """
        self._faults.add(
            Fault(
                pattern=pattern,
                method=method,
                times=times,
                status=status,
                headers=dict(headers or {}),
                cut=cut,
                cut_upload=cut_upload,
            )
        )

    def _serving(self) -> Site:
        if self._site is None:
            raise RuntimeError("this hub is not serving; use it inside `with LocalHub(root) as hub:`")
        return self._site

    def _answer(self, request: Request) -> Response:
        """Carry a request out, one at a time."""
        site = self._serving()
        try:
            for routes in _ROUTES:
                if found := routes.find(request):
                    answer, values = found
                    with site.store.lock:
                        return answer(Call(site, request, values))
            raise HubError(404, f"no such endpoint: {request.method} {request.path}")
        except HubError as error:
            return error.response()
