"""One repository: its commits, branches, tags, pull requests and who may see it; knows nothing of files or HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from testkit.local_hub.messages import HubError
from testkit.local_hub.objects import Commit, File, build_commit, timestamp

Key = tuple[str, str]
"""What tells repositories apart: kind (model, dataset, space) and `namespace/name`."""


@dataclass
class PullRequest:
    """One proposed change; `base` and `head` are commit ids."""

    title: str
    author: str
    base: str
    head: str
    date: str = field(default_factory=timestamp)
    status: str = "open"
    merge: str | None = None
    """The commit on main that merged it."""


@dataclass
class Repository:
    """A repository's whole state, except the bytes of its files."""

    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    """False, or how access is granted: `auto` or `manual`."""
    created: str = field(default_factory=timestamp)
    downloads: int = 0
    granted: set[str] = field(default_factory=set)
    """Names of the users let in although the repository is gated."""
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, PullRequest] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells this repository from others."""
        return self.kind, self.id

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.id.split("/")[0]

    @property
    def url_path(self) -> str:
        """Where its page would be, below the endpoint."""
        return f"/{self.id}" if self.kind == "model" else f"/{self.kind}s/{self.id}"

    @property
    def internal_id(self) -> str:
        """The id that the Hub's database would give it."""
        return hashlib.sha1(f"{self.kind}/{self.id}".encode()).hexdigest()[:24]

    def refs(self) -> dict[str, str]:
        """Commit ids by branch, tag and pull request (`refs/pr/1`)."""
        proposals = {f"refs/pr/{number}": pull.head for number, pull in self.pull_requests.items()}
        return {**self.branches, **self.tags, **proposals}

    def can_grow(self, revision: str) -> bool:
        """Whether a commit can go on top of `revision`: a branch or a pull request."""
        return revision in self.branches or (revision.startswith("refs/pr/") and revision in self.refs())

    def resolve(self, revision: str | None) -> Commit:
        """The commit that a branch, tag, pull request or commit id names; main for None.

        Raises:
            HubError: there is none (404, `RevisionNotFound`).
        """
        name = (revision or "main").removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.refs().get(name, name)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str | None) -> list[Commit]:
        """The commits that lead to `revision`, newest first."""
        commits = [self.resolve(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits

    def record(
        self, tree: Mapping[str, File], title: str, *, message: str = "", author: str, parent: str | None
    ) -> Commit:
        """Add a commit that no ref points to yet."""
        commit = build_commit(tree, title, message=message, author=author, parent=parent)
        self.commits[commit.oid] = commit
        return commit

    def advance(self, revision: str, commit: Commit) -> None:
        """Let the branch or pull request `revision` point to `commit`."""
        if revision.startswith("refs/pr/"):
            self.pull_requests[int(revision.rpartition("/")[2])].head = commit.oid
        else:
            self.branches[revision] = commit.oid

    def propose(self, commit: Commit, *, base: Commit) -> int:
        """Open a pull request from `base` to `commit`; its number."""
        number = len(self.pull_requests) + 1
        self.pull_requests[number] = PullRequest(commit.title, commit.author, base.oid, commit.oid)
        return number

    def merge(self, number: int, *, author: str) -> Commit:
        """Bring the changes of a pull request to main; its files win over main's."""
        pull, main = self.pull_requests[number], self.resolve("main")
        base, head = self.commits[pull.base].tree, self.commits[pull.head].tree
        kept = {path: file for path, file in main.tree.items() if path in head or path not in base}
        changed = {path: file for path, file in head.items() if base.get(path) != file}
        title = f"{pull.title} (#{number})"
        commit = self.record({**kept, **changed}, title, author=author, parent=main.oid)
        self.advance("main", commit)
        pull.status, pull.merge = "merged", commit.oid
        return commit
