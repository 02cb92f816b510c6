"""Git's objects as the Hub shows them: files, commits, and their ids; knows nothing of storage or HTTP.

Blob and tree ids are git's own. A commit's id has git's form, with the time in nanoseconds so that no two commits
share one.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

_LARGE_SUFFIXES = (
    "7z arrow bin bz2 ckpt gguf gz h5 joblib msgpack npy npz onnx parquet pb pickle pkl pt pth safetensors tar tgz "
    "wasm xz zip zst"
)
GITATTRIBUTES = "".join(f"*.{name} filter=lfs diff=lfs merge=lfs -text\n" for name in _LARGE_SUFFIXES.split()).encode()
"""The `.gitattributes` that every repository starts with: which files are stored by LFS."""


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    oid: str
    """Git blob id; of the pointer where the file is large."""
    size: int
    """Bytes of the content, not of the pointer."""
    lfs: str | None = None
    """SHA-256 of the content where the file is large."""
    xet: str | None = None
    """Xet's hash of the content where the file came through Xet."""


@dataclass(frozen=True)
class Commit:
    """One commit, with every file of its tree by path."""

    oid: str
    parent: str | None
    tree: Mapping[str, File]
    title: str
    message: str
    author: str
    date: str


def git_id(kind: str, data: bytes) -> str:
    """The id that git gives an object of `kind` (blob, tree, commit)."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def folder_ids(tree: Mapping[str, File]) -> dict[str, str]:
    """The git tree id of every folder that holds a file of `tree`; the root's path is ''."""
    entries: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    root = entries[""]
    for path, file in tree.items():
        folder, _, name = path.rpartition("/")
        entries[folder][name] = ("100644", file.oid)
        while folder := folder.rpartition("/")[0]:
            entries.setdefault(folder, {})
    ids: dict[str, str] = {}
    for folder in sorted(filter(None, entries), key=lambda path: path.count("/"), reverse=True):
        ids[folder] = git_id("tree", _tree_object(entries[folder]))
        parent, _, name = folder.rpartition("/")
        entries[parent][name] = ("40000", ids[folder])
    return {"": git_id("tree", _tree_object(root)), **ids}


def _tree_object(entries: Mapping[str, tuple[str, str]]) -> bytes:
    """The content of a git tree: git sorts a folder as if its name ended in a slash."""
    ordered = sorted(entries.items(), key=lambda item: item[0] + "/" * (item[1][0] == "40000"))
    return b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in ordered)


def build_commit(tree: Mapping[str, File], title: str, *, message: str, author: str, parent: str | None) -> Commit:
    """A commit of `tree`, made now."""
    lines = [f"tree {folder_ids(tree)['']}"]
    if parent is not None:
        lines.append(f"parent {parent}")
    lines += [f"author {author} {time.time_ns()}", "", title, "", message]
    return Commit(
        oid=git_id("commit", "\n".join(lines).encode()),
        parent=parent,
        tree=dict(tree),
        title=title,
        message=message,
        author=author,
        date=timestamp(),
    )


def timestamp() -> str:
    """Now, as the Hub writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
