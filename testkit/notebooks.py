"""Notebooks as JSON: their code run in order, what it printed put beside it, and all of it as a Markdown page.

Knows the format (nbformat 4, of which this needs little) and Python's own `exec`; knows nothing of Jupyter or models.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    """A notebook from its file."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def write(notebook: Notebook, path: Path) -> None:
    """A notebook to its file, as Jupyter writes one."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run(notebook: Notebook, names: Mapping[str, str] | None = None, *, title: str = "notebook") -> Notebook:
    """Runs all code cells in one namespace; the notebook with what each one printed.

    Args:
        notebook: stays as it is.
        names: texts of the code to replace, as those of repositories by others; in what was printed, back again.
        title: what tracebacks call it.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            code = _replaced("".join(cell["source"]), names or {})
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, f"{title}, cell {count}", "exec"), space)
            text = _replaced(printed.getvalue(), {new: old for old, new in (names or {}).items()})
            cell = {**cell, "execution_count": count, "outputs": [_stream(text)] if text else []}
        cells.append(cell)
    return {**notebook, "cells": cells}


def as_markdown(notebook: Notebook) -> str:
    """The notebook as a page: text as it stands, code in fences, and beneath each what it printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        if printed := "".join("".join(one["text"]) for one in cell["outputs"]):
            parts.append(f'<div class="output" markdown="1">\n\n```text\n{printed.rstrip()}\n```\n\n</div>')
    return "\n\n".join(parts) + "\n"


def _replaced(text: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def _stream(text: str) -> dict[str, Any]:
    return {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
