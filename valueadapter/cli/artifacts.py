"""The commands that move and look at adapters: push, fetch, inspect, verify. None of them needs torch.

What is said of an adapter for a person is `described`'s.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from valueadapter import hub
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.atomic_directory import check_target, copy_adapter, staged
from valueadapter.artifact.cost import Cost, cost_of
from valueadapter.cli import output
from valueadapter.cli.described import compatibility_rows, cost_rows, described, pair_rows
from valueadapter.cli.destination import tell_what_becomes_public
from valueadapter.cli.models import check_base
from valueadapter.hub.failures import Asked, readable
from valueadapter.hub.small_files import SmallFiles, adapter_side, base_side
from valueadapter.vocabulary.bridge import alignment_name, connect, why_unreadable
from valueadapter.vocabulary.compatibility import Compatibility, assess
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

Source = Annotated[str, typer.Argument(help="Hub ID (user/name) or directory of an adapter.", metavar="ADAPTER")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Subfolder = Annotated[str, typer.Option(help="Directory of the adapter inside the repository.")]
Token = Annotated[str | None, typer.Option(help="Hub token; by default the one you are logged in with.")]
BaseRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base on the Hub.")]
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
    no_base_prefix: Annotated[
        bool, typer.Option("--no-base-prefix", help="Publish it without its prefix, and what was measured behind it.")
    ] = False,
    description: Annotated[
        str | None, typer.Option(help="What the adapter does, in one line: the first of the card.")
    ] = None,
) -> None:
    """Publish an adapter in one commit: all of it arrives, or nothing.

    Its prefix is published with it, verbatim: by default eight demonstrations of the data that it was trained with.
    """
    options = hub.Push(
        commit_message=message,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        tags=tuple(tag or ()),
        overwrite_card=overwrite_card,
        base_prefix=not no_base_prefix,
        description=description,
    )
    if options.base_prefix and (directory / file_names.CONFIG).is_file():  # what else it may be, the push says
        tell_what_becomes_public(verification.read_config(directory), repo_id)
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
    local_dir: Annotated[
        Path | None, typer.Option("--local-dir", help="Copy it to this directory, as a whole or not at all.")
    ] = None,
) -> None:
    """Download an adapter into the cache, verify it, and say where it lies; or copy it to a directory of yours."""
    if local_dir is not None:
        check_target(local_dir)
    download = hub.Download(
        revision=revision,
        subfolder=subfolder,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    directory = hub.fetch(adapter, download)
    if local_dir is not None:
        with staged(local_dir) as staging:
            copy_adapter(directory, staging)
            verification.verify(staging)
        directory = local_dir
    output.facts({"adapter": adapter, "directory": str(directory)}, as_json=as_json)


def inspect(
    adapter: Source,
    base: Annotated[str | None, typer.Option(help="Say how it goes with this model: Hub ID or directory.")] = None,
    base_revision: BaseRevision = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Everything, where there is much of it.")] = False,
) -> str | None:
    """Show what an adapter is, and with --base how it goes with a model; downloads no weights."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # two small files
    facts = hub.repository_facts(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    mine = SmallFiles(adapter, facts.commit, subfolder=subfolder, token=token)
    cost = _cost(facts, mine)
    there = None if base is None else base_place(base, base_revision, token)
    shown: dict[str, object] = {"adapter": adapter}
    next_line = None
    if as_json:
        shown |= {
            "commit": facts.commit,
            "files": dict(facts.files),
            "bytes": sum(facts.files.values()),
            **json.loads(facts.config.to_json()),
        }
        shown["cost"] = cost.to_dict(base or "", there.revision if there else None)
    else:
        shown |= {} if facts.commit is None else {"commit": facts.commit}
        shown |= described(facts.config, verbose=verbose)
        shown |= cost_rows(cost, facts.files, base or "", there.revision if there else None)
        if verbose:
            shown["files"] = {name: f"{size:,} bytes" for name, size in facts.files.items()}
    if base is not None and there is not None:
        theirs = base_vocabulary(there)
        found, more, refusal = _verdict(facts, mine, there, theirs, cost)
        if as_json:
            shown["compatibility"] = {"base": base, **found.to_dict(), **more, **refusal}
        else:
            fingerprint = theirs.spec.byte_fingerprint
            shown |= {"with": base, **compatibility_rows(found, verbose=verbose), **refusal}
            shown |= {} if refusal else pair_rows(facts.config, found, more, base, fingerprint)
            next_line = f"valueadapter search --base {shlex.quote(base)}" if refusal else None
    output.facts(shown, as_json=as_json)
    return next_line


def verify(
    adapter: Source,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of an adapter: complete, unchanged, safe, of a known format."""
    directory = hub.fetch(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    config = verification.read_config(directory)
    told = json.loads(config.to_json()) if as_json else described(config)
    version = {} if as_json else {"format_version": config.format_version}
    output.facts({"verified": str(directory), **version, **told}, as_json=as_json)


def base_place(name: str, revision: str | None, token: str | None) -> SmallFiles:
    """One commit of the base, so that its files belong together; the cached one where the Hub cannot be reached."""
    return SmallFiles(name, check_base(name, revision, token), token=token)


def base_vocabulary(base: SmallFiles) -> ModelVocabulary:
    """The vocabulary of a base, with the Hub's refusals in words of ours."""
    with readable(Asked(base.name, base.revision, base.token)):
        return base_side(base)


def _verdict(
    facts: hub.RepositoryFacts, adapter: SmallFiles, base: SmallFiles, theirs: ModelVocabulary, of_adapter: Cost
) -> tuple[Compatibility, dict[str, int | None], dict[str, str]]:
    """How the two go together, what it costs, and why it cannot be, where it cannot."""
    with readable(Asked(adapter.name, adapter.revision, adapter.token)):
        mine = adapter_side(adapter)
    link = connect(mine, theirs)  # the map is built once, and is there when the adapter is used
    found = assess(mine, theirs, alignment=link.alignment if link else None)
    refusal = why_unreadable(facts.config.connection, link)
    cost = {
        "map_in_artifact": f"{file_names.ALIGNMENTS}/{alignment_name(theirs)}{file_names.SAFETENSORS}" in facts.files,
        "network_bytes": of_adapter.memory_bytes(),
        "base_bytes": base.weight_bytes(),
    }
    return found, cost, {} if refusal is None else {"cannot_be_attached": refusal}


def _cost(facts: hub.RepositoryFacts, adapter: SmallFiles) -> Cost:
    def settings(network: str) -> dict[str, object]:
        with readable(Asked(adapter.name, adapter.revision, adapter.token)):
            return adapter.settings(f"{network}/{file_names.PEFT_CONFIG}")

    def body_bytes(name: str, commit: str) -> int | None:
        return SmallFiles(name, commit, token=adapter.token).weight_bytes()

    return cost_of(facts.config, facts.files, settings, body_bytes)
