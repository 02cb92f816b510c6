"""The command that makes a copy of an adapter which runs without this library; knows no models and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from valueadapter import hub
from valueadapter.artifact import file_names
from valueadapter.artifact import standalone as exporting
from valueadapter.cli import output
from valueadapter.cli.artifacts import AsJson, Revision, Source, Subfolder, Token


def export(
    adapter: Source,
    to: Annotated[str, typer.Option("--to", help="custom_generate or logits_processor.")],
    output_dir: Annotated[Path, typer.Option("--output", help="Write adapter and code to this directory.")],
    repo_id: Annotated[
        str | None, typer.Option(help="Hub ID (user/name) it will have, if not `valueadapter push` publishes it.")
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Copy an adapter, with code that runs it without this library: for `generate`, or as a logits processor."""
    directory = hub.fetch(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    code = exporting.export(directory, output_dir, to=cast(exporting.Target, to), repo_id=repo_id)
    place, name = str(output_dir), repo_id or "user/name"
    use = [
        f"model.generate(**inputs, custom_generate='{place}', adapter='{place}', trust_remote_code=True)",
        f"published: model.generate(**inputs, custom_generate='{name}', trust_remote_code=True)",
    ]
    if to == file_names.LOGITS_PROCESSOR:
        use = [f"with '{place}' on Python's path: from logits_processor import ValueLogitsProcessor"]
    output.facts({"adapter": adapter, "directory": place, "code": code, "use": use}, as_json=as_json)
