"""The command that shows what adapters do to each token; knows nothing of how that is computed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from valueadapter.cli import output
from valueadapter.cli.models import TrustRemoteCode, load
from valueadapter.errors import ConfigError


def trace(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model.")],
    adapter: Annotated[list[str], typer.Option(help="Hub ID or directory, with =SCALE if you like; repeatable.")],
    prompt: Annotated[str, typer.Option(help="The text; '-' reads standard input.")],
    max_new_tokens: Annotated[
        int, typer.Option(help="Trace so many generated tokens; 0 traces the prompt itself.", min=0)
    ] = 24,
    base_prefix: Annotated[
        Path | None, typer.Option(help="File with text that only the base reads first, in place of the adapters' own.")
    ] = None,
    no_base_prefix: Annotated[
        bool, typer.Option("--no-base-prefix", help="Leave out what the adapters have the base read first.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page to look at.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show token by token what the base says, how each adapter pushes, and what comes out."""
    from valueadapter.evaluation import trace as tracing

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ConfigError("the prompt is empty; give --prompt some text")
    model, _ = load(
        base,
        adapter,
        base_prefix,
        no_base_prefix=no_base_prefix,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    found = tracing.trace(model, text, max_new_tokens=max_new_tokens)
    if html is not None:
        found.save_html(html)
        output.note(f"wrote {html}")
    if as_json:
        output.print_json(found.to_dict())
    else:
        output.out.print(found.table(), soft_wrap=False)
