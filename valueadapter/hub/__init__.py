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
from valueadapter.hub.upload import Push, check_push, push

__all__ = [
    "Download",
    "Push",
    "RepositoryFacts",
    "check_push",
    "fetch",
    "fetch_config",
    "open_adapter",
    "push",
    "repository_facts",
    "resolve_commit",
]
