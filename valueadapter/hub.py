"""Moves adapters between a local directory and the Hub; knows nothing of what they compute.

Everything is a local directory before it is anything else: a download is verified before use, an upload before it
leaves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from valueadapter import __version__, artifact, card, layout
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi


@dataclass(frozen=True)
class Download:
    """How to get an adapter from the Hub."""

    revision: str | None = None
    subfolder: str = ""
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False


@dataclass(frozen=True)
class Push:
    """How to publish an adapter."""

    commit_message: str | None = None
    commit_description: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    tags: tuple[str, ...] = ()
    overwrite_card: bool = False


def fetch(name_or_path: str | Path, download: Download | None = None) -> Path:
    """A verified local directory of an adapter.

    Args:
        name_or_path: an existing directory, which is used as it is, or a Hub ID.
        download: how to get it.

    Raises:
        ArtifactError, ConfigError: what `artifact.verify` finds.
        huggingface_hub.errors: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    how = download or Download()
    if Path(name_or_path).is_dir():
        directory = Path(name_or_path) / how.subfolder
    else:
        inside = f"{how.subfolder}/" if how.subfolder else ""
        wanted = [f"{inside}**{ending}" for ending in (".json", layout.SAFETENSORS, ".jinja", ".md")]
        root = snapshot_download(
            str(name_or_path),
            revision=how.revision,
            token=how.token,
            cache_dir=how.cache_dir,
            local_files_only=how.local_files_only,
            force_download=how.force_download,
            allow_patterns=wanted,
            library_name="valueadapter",
            library_version=__version__,
        )
        directory = Path(root) / how.subfolder
    artifact.verify(directory)
    return directory


def resolve_commit(repo_id: str, revision: str | None = None, *, token: str | bool | None = None) -> str | None:
    """The commit that a revision of a model repository stands for; None for a local path."""
    if Path(repo_id).exists():
        return None
    return _api(token).model_info(repo_id, revision=revision).sha


def push(directory: Path, repo_id: str, how: Push | None = None) -> CommitInfo:
    """Publishes the adapter in `directory` in one commit, after verifying it.

    Files of the earlier adapter that this one no longer has are deleted in the same commit. A model card on the Hub
    that a person wrote or edited stays, unless `overwrite_card`.

    Raises:
        ConfigError: the base model is named by a path of this machine.
        huggingface_hub.errors: no permission, someone else pushed meanwhile, …
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    how = how or Push()
    config = artifact.verify(directory)
    base = config.base_model_name_or_path
    if os.path.isabs(base) or Path(base).exists():
        raise ConfigError(f"base_model_name_or_path is '{base}', a path of this machine; name the base's Hub ID")
    api = _api(how.token)
    api.create_repo(repo_id, private=how.private, exist_ok=True)
    if how.revision is not None:
        api.create_branch(repo_id, branch=how.revision, exist_ok=True)
    head = api.model_info(repo_id, revision=how.revision)
    there = {sibling.rfilename for sibling in head.siblings or []}
    text = _card_to_push(api, repo_id, how, directory, there)
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    files.pop(layout.CARD, None)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())
    ]
    if text is not None:
        operations.append(CommitOperationAdd(layout.CARD, text.encode()))
    homes = {name.split("/")[0] for name in files if "/" in name} | {layout.ALIGNMENTS}
    stale = {name for name in there if name.split("/")[0] in homes or name.startswith(layout.NETWORK)} - set(files)
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=how.commit_message or "Upload value adapter",
        commit_description=how.commit_description,
        revision=how.revision,
        create_pr=how.create_pr,
        parent_commit=head.sha,
    )


def _card_to_push(api: HfApi, repo_id: str, how: Push, directory: Path, there: set[str]) -> str | None:
    """The card to publish, or None where the one on the Hub is a person's and stays."""
    if layout.CARD in there and not how.overwrite_card:
        present = Path(api.hf_hub_download(repo_id, layout.CARD, revision=how.revision)).read_text(encoding="utf-8")
        if not card.is_generated(present):
            return None
    own = directory / layout.CARD
    if own.exists() and not card.is_generated(text := own.read_text(encoding="utf-8")):
        return text
    return card.render_card(artifact.read_config(directory), repo_id=repo_id, tags=how.tags)


def _api(token: str | bool | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="valueadapter", library_version=__version__)
