"""The command that adds a vocabulary map to an adapter, in a directory or on the Hub; knows no models and no torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from valueadapter import hub
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.atomic_directory import check_target, copy_adapter, staged
from valueadapter.artifact.config.parts import COMMIT
from valueadapter.cli import output
from valueadapter.cli.artifacts import (
    AsJson,
    BaseRevision,
    Revision,
    Source,
    Token,
    base_place,
    base_vocabulary,
)
from valueadapter.cli.described import compatibility_rows
from valueadapter.cli.destination import tell_what_becomes_public
from valueadapter.errors import ConfigError
from valueadapter.hub.small_files import SmallFiles, adapter_side
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.bridge import alignment_name
from valueadapter.vocabulary.compatibility import assess


def align(
    adapter: Source,
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model to build the map for.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output", help="Write adapter and map to this directory.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Add the map to the adapter on the Hub, in one commit.")] = False,
    base_revision: BaseRevision = None,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Build the map to a base's vocabulary and add it to an adapter, so that nobody else has to."""
    _check(adapter, revision, output_dir=output_dir, push=push)
    if output_dir is not None:
        check_target(output_dir)
    theirs = base_vocabulary(base_place(base, base_revision, token))
    directory = hub.fetch(adapter, hub.Download(revision=revision, token=token))
    mine = adapter_side(SmallFiles(str(directory)))
    alignment = VocabularyAlignment.build(mine, theirs)
    found = assess(mine, theirs, alignment=alignment)
    shown = {"adapter": adapter, "base": base, **(found.to_dict() if as_json else compatibility_rows(found))}
    if found.relation == "identity":
        nothing: dict[str, object] = {"file": None} if as_json else {"map": "none is needed; nothing was written"}
        output.facts({**shown, **nothing}, as_json=as_json)
        return
    name = f"{file_names.ALIGNMENTS}/{alignment_name(theirs)}{file_names.SAFETENSORS}"
    if output_dir is not None:
        with staged(output_dir.resolve()) as staging:
            _fill(staging, directory, name, alignment)
        where = {"directory": str(output_dir)}
    else:
        where = _push(adapter, revision, directory, name=name, alignment=alignment, token=token, base=base)
    output.facts({**shown, "file": name, **where}, as_json=as_json)


def _check(adapter: str, revision: str | None, *, output_dir: Path | None, push: bool) -> None:
    if push == (output_dir is not None):
        raise ConfigError(
            f"give either --output DIR or --push; got {'both' if push else 'neither'}. The first writes the adapter "
            "with the map to a directory, the second adds the map on the Hub"
        )
    if push and Path(adapter).is_dir():
        raise ConfigError(
            f"--push adds to an adapter on the Hub, but '{adapter}' is a directory; use --output, then "
            "valueadapter push"
        )
    if push and COMMIT.fullmatch(revision or ""):
        raise ConfigError(f"--push needs a branch to push to; --revision names the commit {revision}")


def _fill(target: Path, source: Path, name: str, alignment: VocabularyAlignment) -> None:
    """Copies an adapter, adds the map, and verifies the whole; a card that a person wrote in `target` stays."""
    copy_adapter(source, target)
    alignment.save(target / name)
    verification.verify(target)


def _push(
    repo_id: str,
    branch: str | None,
    source: Path,
    *,
    name: str,
    alignment: VocabularyAlignment,
    token: str | None,
    base: str,
) -> dict[str, str]:
    message = f"Add the vocabulary map for {Path(base).name if Path(base).is_dir() else base}"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "adapter")
        _fill(target, source, name, alignment)
        tell_what_becomes_public(verification.read_config(target), repo_id)
        commit = hub.push(target, repo_id, hub.Push(commit_message=message, revision=branch, token=token))
    return {"commit": str(commit.oid), "url": str(commit.commit_url)}
