"""The command that shows what adapters do to each token; knows nothing of how that is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valueadapter.cli import output
from valueadapter.cli.artifacts import BaseRevision
from valueadapter.cli.choices import Dtype
from valueadapter.cli.generate import System, as_chat, check_system, read_prompts
from valueadapter.cli.models import (
    AdapterRevision,
    Device,
    HowHeld,
    Places,
    TrustRemoteCode,
    load,
    names_of,
    parse_adapter,
)
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
    dtype: HowHeld = Dtype.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Render the prompt with the base's chat template.")] = False,
    system: System = None,
    device: Device = None,
    base_revision: BaseRevision = None,
    revision: AdapterRevision = None,
) -> None:
    """Show token by token what the base says, how each adapter pushes, and what comes out."""
    check_system(system, chat=chat)
    if chat and not max_new_tokens:
        raise ConfigError("of a chat the answer is traced; give --max-new-tokens 1 or more, or leave --chat out")
    (text,) = read_prompts([prompt])
    model, _ = load(
        base,
        adapter,
        base_prefix,
        no_base_prefix=no_base_prefix,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        places=Places(base_revision, revision, device),
    )
    from valueadapter.evaluation import trace as tracing

    asked = as_chat(text, system) if chat else text
    sources = [parse_adapter(one)[0] for one in adapter]
    called = dict(zip(names_of(sources), sources, strict=True))
    with output.working("tracing"):
        found = tracing.trace(model, asked, max_new_tokens=max_new_tokens, sources=called)
    if html is not None:
        found.save_html(html)
        output.note(f"wrote {html}")
    if as_json:
        output.print_json(found.to_dict())
    else:
        output.show(found.table())
