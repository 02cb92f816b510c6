"""The commands that move and look at adapters: push, fetch, inspect, verify. None of them needs torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from valueadapter import artifact, hub
from valueadapter.cli import output
from valueadapter.config import ValueAdapterConfig

Source = Annotated[str, typer.Argument(help="Hub ID (user/name) or directory of an adapter.", metavar="ADAPTER")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Subfolder = Annotated[str, typer.Option(help="Directory of the adapter inside the repository.")]
Token = Annotated[str | None, typer.Option(help="Hub token; by default the one you are logged in with.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def push(
    directory: Annotated[Path, typer.Argument(help="Directory of the adapter to publish.")],
    repo_id: Annotated[str, typer.Argument(help="Hub ID to publish it under (user/name).")],
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="For a repository that is new.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for the model card; may be given again.")] = None,
    overwrite_card: Annotated[bool, typer.Option("--overwrite-card", help="Replace a hand-written card.")] = False,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter in one commit: all of it arrives, or nothing."""
    options = hub.Push(
        commit_message=message,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        tags=tuple(tag or ()),
        overwrite_card=overwrite_card,
    )
    commit = hub.push(directory, repo_id, options)
    output.facts({"repository": repo_id, "commit": commit.oid, "url": commit.commit_url}, as_json=as_json)


def fetch(
    adapter: Source,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Ask no server.")] = False,
    force_download: Annotated[bool, typer.Option("--force-download", help="Download what is cached, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download an adapter into the cache, verify it, and say where it lies."""
    download = hub.Download(
        revision=revision,
        subfolder=subfolder,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    output.facts({"adapter": adapter, "directory": str(hub.fetch(adapter, download))}, as_json=as_json)


def inspect(
    adapter: Source,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show what an adapter is, without downloading its weights."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # two small files
    facts = hub.repository_facts(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    shown: dict[str, object] = {"adapter": adapter, "commit": facts.commit}
    if as_json:
        shown |= {"files": dict(facts.files), "bytes": sum(facts.files.values()), **json.loads(facts.config.to_json())}
    else:
        shown |= _described(facts.config)
        shown["size"] = f"{sum(facts.files.values()) / 1e6:,.1f} MB in {len(facts.files)} files"
    output.facts(shown, as_json=as_json)


def verify(
    adapter: Source,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of an adapter: complete, unchanged, safe, of a known format."""
    directory = hub.fetch(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    config = artifact.read_config(directory)
    described = json.loads(config.to_json()) if as_json else _described(config)
    output.facts({"verified": str(directory), **described}, as_json=as_json)


def _described(config: ValueAdapterConfig) -> dict[str, object]:
    networks = [f"{n.coefficient:+g} x {n.path or f'{n.repo}@{n.revision}'}" for n in config.networks]
    described: dict[str, object] = {
        "format_version": config.format_version,
        "base_model": config.base_model_name_or_path,
        "base_revision": config.base_model_revision,
        "networks": networks,
        "scale": config.scale,
        "logits_width": config.vocabulary.logits_width,
        "vocabulary": config.vocabulary.byte_fingerprint[:16],
    }
    if config.training is not None:
        record = config.training
        described["trained"] = (
            f"{record.steps} steps on {record.num_examples} demonstrations ({record.data}), "
            f"start {record.initialisation}, penalty {record.regularisation.kind}"
        )
    for result in config.evaluation:
        described[f"on {result.base}"] = (
            f"{result.base_bits_per_byte:.3f} -> {result.adapted_bits_per_byte:.3f} bits per byte "
            f"at scale {result.scale:g} ({result.num_examples} held-out examples of {result.data})"
        )
    return described
