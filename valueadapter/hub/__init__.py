"""Moves adapters between a local directory and the Hub; knows nothing of what they compute.

Everything is a local directory before it is anything else: a download is verified before use, an upload before it
leaves.
"""

from __future__ import annotations

from valueadapter.hub.download import (
    Download,
    RepositoryFacts,
    fetch,
    fetch_config,
    open_adapter,
    repository_facts,
    resolve_commit,
)
from valueadapter.hub.same_weights import commit_of_same
from valueadapter.hub.search import Findings, FoundAdapter, find_adapters
from valueadapter.hub.upload import Push, check_push, push

__all__ = [
    "Download",
    "Findings",
    "FoundAdapter",
    "Push",
    "RepositoryFacts",
    "check_push",
    "commit_of_same",
    "fetch",
    "fetch_config",
    "find_adapters",
    "open_adapter",
    "push",
    "repository_facts",
    "resolve_commit",
]
