"""Parses JSON that others wrote: whatever is in it, an object or an error of this library."""

from __future__ import annotations

import json
from typing import Any

from valueadapter.errors import ArtifactError


def parse_object(data: bytes | str, place: object) -> dict[str, Any]:
    """A JSON object.

    Args:
        data: the content of a file.
        place: its path, for messages.

    Raises:
        ArtifactError: no JSON, nested too deep, a number too long to be one, or no object.
    """
    try:
        found = json.loads(data.decode("utf-8") if isinstance(data, bytes) else data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{place}' is not JSON ({error}). Download or save the adapter again") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"'{place}' must hold a JSON object; got {type(found).__name__}")
    return found
