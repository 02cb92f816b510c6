"""What an optional extra brings, asked for by name before any work; knows nothing of what it is needed for."""

from __future__ import annotations

from importlib.util import find_spec

from valueadapter.errors import MissingExtraError


def require(extra: str, *modules: str) -> None:
    """Whether the modules of an extra are installed; imports none of them.

    Args:
        extra: its name in pyproject.toml.
        modules: what it must bring.

    Raises:
        MissingExtraError: some are not; the message says what to install.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise MissingExtraError(f"{' and '.join(missing)} not installed: pip install 'valueadapter[{extra}]'")
