"""Where this library keeps what it can compute again; knows nothing of what that is."""

from __future__ import annotations

from pathlib import Path


def own_cache(kind: str) -> Path:
    """The folder for one kind of such things, beside the Hub's cache; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).parent / "valueadapter" / kind
