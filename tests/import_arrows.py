"""What imports what in the library, read from the files without importing any."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "valueadapter"
ORDER = [
    "demonstrations",
    "vocabulary",
    "artifact",
    "hub",
    "serving",
    "adapter",
    "forward",
    "model",
    "training",
    "evaluation",
    "cli",
]
"""From the ground up; a package imports only from those before it and from the root."""


def imports(path: Path) -> set[str]:
    """The modules of the library that a module imports, dotted below `valueadapter`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("valueadapter"):
            rest = (node.module or "").split(".")[1:]
            found |= {".".join(rest)} if rest else {alias.name for alias in node.names}
    return found


def between_packages() -> dict[tuple[str, str], list[str]]:
    """(package, imported package) -> the files that do it."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported in {name.split(".")[0] for name in imports(path)} & {*ORDER} - {package}:
            found.setdefault((package, imported), []).append(path.relative_to(PACKAGE).as_posix())
    return {arrow: files for arrow, files in found.items() if arrow[0] in ORDER}
