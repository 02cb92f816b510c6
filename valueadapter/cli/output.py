"""How the command line shows things: facts as a table or as JSON, errors on one line; knows nothing of adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def facts(values: Mapping[str, object], *, as_json: bool) -> None:
    """Prints names and values, one a line, or the whole as JSON for programs."""
    if as_json:
        out.print_json(json.dumps(values, ensure_ascii=False))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), escape(_shown(value)))
    out.print(table)


def error(message: str) -> None:
    """Prints an error as one line on standard error."""
    err.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(_shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
