"""The command that finds adapters on the Hub for a base; knows how to show them, not how they are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from valueadapter import hub
from valueadapter.cli import output
from valueadapter.cli.artifacts import AsJson, BaseRevision, Token

_OF_THIS_VOCABULARY = ("trained on it", "same vocabulary")


def search(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model that adapters are wanted for.")],
    limit: Annotated[int, typer.Option(help="Show this many at most.", min=1)] = 20,
    others: Annotated[
        bool, typer.Option("--all", help="Also those of another vocabulary, which go with it through a map.")
    ] = False,
    base_revision: BaseRevision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> str | None:
    """Find adapters on the Hub that go with a base: trained on it, or of its vocabulary.

    They are found by the tags of their model cards. No weights are downloaded.
    """
    findings = hub.find_adapters(base, revision=base_revision, token=token, limit=limit, others=others)
    nexts = {one.name: _next(one, base) for one in findings.found}
    if as_json:
        found = [{**dataclasses.asdict(one), "next": nexts[one.name]} for one in findings.found]
        facts: dict[str, object] = {"base": base, "endpoint": findings.endpoint, "tags": findings.tags}
        output.print_json({**facts, "vocabulary_unknown": findings.vocabulary_unknown, "adapters": found})
        return None
    if findings.vocabulary_unknown is not None:
        output.note(f"looked for adapters trained on {base} only, for {findings.vocabulary_unknown}")
    near = [one for one in findings.found if one.relation in _OF_THIS_VOCABULARY]
    far = [one for one in findings.found if one.relation not in _OF_THIS_VOCABULARY]
    if near:
        output.show(_table(f"Adapters for {base} at {findings.endpoint}", near))
    else:
        output.out.print(output.cell(_nothing(base, findings)))
    if far:
        title = "Of another vocabulary (they go with it through a map), or of one that the card does not tell"
        output.show(_table(title, far))
    elif not others:
        output.note("adapters of other vocabularies go with it, too, through a map: --all lists them")
    if len(findings.found) == limit:
        output.note(f"these are the first {limit}; --limit shows more")
    return nexts[findings.found[0].name] if findings.found else None


def _next(found: hub.FoundAdapter, base: str) -> str:
    """What to type to go on with an adapter: to use it, or to see first how the two go together."""
    if found.relation in _OF_THIS_VOCABULARY:
        return f'valueadapter generate --base {base} --adapter {found.name} --prompt "…"'
    return f"valueadapter inspect {found.name} --base {base}"


def _nothing(base: str, findings: hub.Findings) -> str:
    sets = " or ".join(" and ".join(tags) for tags in findings.tags if len(tags) > 1)
    return (
        f"no adapter for {base} was found at {findings.endpoint}. Looked for models tagged {sets}. A private adapter "
        "shows to those who may read it (hf auth login, or --token)"
    )


def _table(title: str, found: Sequence[hub.FoundAdapter]) -> Table:
    table = Table(title=output.cell(title), title_justify="left")
    for column in ("adapter", "relation", "trained on", "data and tags"):
        table.add_column(column, overflow="fold")
    counted = any(one.downloads is not None for one in found)
    if counted:
        table.add_column("downloads", justify="right")
    for one in found:
        texts = (one.name, one.relation, one.trained_on or "-", ", ".join(one.about) or "-")
        number = "-" if one.downloads is None else f"{one.downloads:,}"
        table.add_row(*map(output.cell, texts), *([number] if counted else []))
    return table
