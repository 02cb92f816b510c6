"""What a name can be: a directory here or a Hub ID. Says of one that is neither what was looked for and where.

Asks nobody: what the Hub answers to a name that can be one is `failures`'.
"""

from __future__ import annotations

import os
from pathlib import Path

from valueadapter.errors import MissingFileError

ADAPTER, MODEL = "an adapter", "a base model"
"""What a name is meant for; a few old models have an ID without a slash, and no adapter has."""


def is_directory(name: str | Path, *, of: str) -> bool:
    """Whether a name is that of a directory here; else it has the form of a Hub ID.

    Args:
        name: as it was given.
        of: `ADAPTER` or `MODEL`.

    Raises:
        MissingFileError: it is neither.
    """
    if Path(name).is_dir():
        return True
    if (reason := why_impossible(name, of=of)) is not None:
        raise MissingFileError(reason)
    return False


def why_impossible(name: str | Path, *, of: str) -> str | None:
    """Why a name that is no directory here can be no Hub ID either; None where it can."""
    text = os.fspath(name)
    place = place_of(name)
    form = "'user/name'" if of == ADAPTER else "'user/name' (or the one name of a few old models)"
    neither = f"'{text}' is neither a directory here nor of the form of a Hub ID ({form})"
    if os.path.lexists(text):
        kind = "is a link that leads nowhere" if not os.path.exists(text) else "is a file"
        return f"'{place}' {kind}; expected the directory of {of}, or a Hub ID ({form})"
    if isinstance(name, Path):
        return f"there is no directory '{text}'; for a Hub ID pass a string"
    if _is_path(text):
        return f"{neither}: there is nothing at '{place}'{_nearest(place)}"
    if "/" not in text and of == ADAPTER:
        return f"{neither}: there is nothing at '{place}', and a Hub ID names the account, too"
    return None if _is_valid(text) else f"{neither}: a Hub ID is made of letters, digits, '-', '_' and '.'; check it"


def place_of(name: str | Path) -> str:
    """Where a name is looked for on this machine."""
    try:
        return os.path.abspath(name)
    except OSError:  # the current directory was removed
        return os.fspath(name)


def _is_path(text: str) -> bool:
    return (
        os.path.isabs(text) or text.startswith((".", "~")) or text.endswith("/") or text.count("/") > 1 or "\\" in text
    )


def _nearest(place: str) -> str:
    """The part of a path that is there, where more than its last step is missing."""
    parents = list(Path(place).parents)
    there = next((one for one in parents if one.is_dir()), parents[-1])
    return "" if there == parents[0] else f" ('{there}' is there, '{_step(Path(place), there)}' in it is not)"


def _step(place: Path, there: Path) -> str:
    return place.relative_to(there).parts[0]


def _is_valid(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, without __all__

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
