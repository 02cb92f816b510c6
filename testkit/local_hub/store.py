"""All repositories and the bytes of their files, kept in a directory; knows nothing of users or HTTP.

The directory holds `repositories/<kind>s/<namespace>/<name>.json`, `moved.json`, and the contents of files by id:
`git/<blob id>`, `lfs/<sha256>`, and `cas` for what came through Xet. Every file is written whole or not at all, so a
hub can be killed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from testkit.local_hub.messages import HubError
from testkit.local_hub.objects import Commit, File, git_id, lfs_pointer
from testkit.local_hub.repository import Key, PullRequest, Repository
from testkit.local_hub.xet import XetStorage


class Store:
    """What a hub holds.

    Args:
        root: the directory; made if missing, read if not.
        offers_xet: whether clients are told to go through Xet; what came so earlier is read in any case.
    """

    def __init__(self, root: Path, *, offers_xet: bool = False) -> None:
        self.root, self.offers_xet, self.xet = root, offers_xet, XetStorage(root / "cas")
        self.lock = threading.RLock()
        """Held while a request is carried out."""
        self.parts: dict[tuple[str, int], bytes] = {}
        """Parts of multipart uploads that are not complete, by SHA-256 of the whole and number."""
        self.repositories: dict[Key, Repository] = {}
        self.moved: dict[Key, str] = {}
        """The new id of renamed repositories, by their old kind and id."""
        for folder in ("git", "lfs", "repositories", "cas"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self._read()

    def put(self, data: bytes) -> File:
        """Keep a small file's content."""
        oid = git_id("blob", data)
        _write(self.root / "git" / oid, data)
        return File(oid, len(data))

    def put_large(self, sha256: str, data: bytes) -> None:
        """Keep a large file's content.

        Raises:
            HubError: its SHA-256 is not the one that the client named (400).
        """
        if (got := hashlib.sha256(data).hexdigest()) != sha256:
            raise HubError(400, f"sha256 mismatch: the content has {got}, the address says {sha256}")
        _write(self._large_path(sha256), data)

    def large_path(self, sha256: str) -> Path:
        """Where a large file's content is, if it is; what came through Xet is put together when it is first asked for.

        Raises:
            HubError: that is not what its SHA-256 says (400).
        """
        path = self._large_path(sha256)
        if not path.exists() and (uploaded := self.xet.find(sha256)) is not None:
            self.put_large(sha256, self.xet.read(uploaded))
        return path

    def large_size(self, sha256: str) -> int | None:
        """Bytes of a large file that was uploaded, by LFS or by Xet; None where it was not."""
        path = self._large_path(sha256)
        if path.exists():
            return path.stat().st_size
        uploaded = self.xet.find(sha256)
        return None if uploaded is None else uploaded.size

    def large_file(self, sha256: str, size: int | None) -> File:
        """The entry of a tree for a large file that was uploaded, by LFS or by Xet.

        Raises:
            HubError: it was not, or has another size (400).
        """
        found, uploaded = self.large_size(sha256), self.xet.find(sha256)
        if found is None or size not in (None, found):
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        pointer = self.put(lfs_pointer(sha256, found))
        return replace(pointer, size=found, lfs=sha256, xet=uploaded.hash if uploaded else None)

    def path(self, file: File) -> Path:
        """Where a file's content is."""
        return self.large_path(file.lfs) if file.lfs else self.root / "git" / file.oid

    def read(self, file: File) -> bytes:
        """A file's content."""
        return self.path(file).read_bytes()

    def save(self, repository: Repository) -> None:
        """Add a repository, or keep what changed in it."""
        self.repositories[repository.key] = repository
        state = {**asdict(repository), "granted": sorted(repository.granted)}
        _write(self._state_path(repository.key), json.dumps(state).encode())
        if self.moved.pop(repository.key, None) is not None:
            self._save_moved()

    def remove(self, repository: Repository) -> None:
        """Forget a repository; the contents of its files stay."""
        del self.repositories[repository.key]
        self._state_path(repository.key).unlink()

    def move(self, repository: Repository, new_id: str) -> None:
        """Give a repository another id; the old one leads to it."""
        old = repository.key
        self.remove(repository)
        repository.id = new_id
        self.save(repository)
        self.moved[old] = new_id
        self._save_moved()

    def _large_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def _state_path(self, key: Key) -> Path:
        kind, repo_id = key
        return self.root / "repositories" / f"{kind}s" / f"{repo_id}.json"

    def _save_moved(self) -> None:
        lines = [[kind, old, new] for (kind, old), new in self.moved.items()]
        _write(self.root / "moved.json", json.dumps(lines).encode())

    def _read(self) -> None:
        for path in sorted((self.root / "repositories").glob("*/*/*.json")):
            repository = _repository(json.loads(path.read_bytes()))
            self.repositories[repository.key] = repository
        if (path := self.root / "moved.json").exists():
            self.moved = {(kind, old): new for kind, old, new in json.loads(path.read_bytes())}


def _repository(state: dict[str, Any]) -> Repository:
    """The repository that `Store.save` wrote."""
    commits = {oid: _commit(commit) for oid, commit in state["commits"].items()}
    pulls = {int(number): PullRequest(**pull) for number, pull in state["pull_requests"].items()}
    return Repository(**{**state, "granted": set(state["granted"]), "commits": commits, "pull_requests": pulls})


def _commit(state: dict[str, Any]) -> Commit:
    tree = {path: File(**file) for path, file in state["tree"].items()}
    return Commit(**{**state, "tree": tree})


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
