"""What an extra would bring is named when it is missing."""

from __future__ import annotations

import pytest

from valueadapter import MissingExtraError
from valueadapter.cli.extras import require


def test_a_missing_extra_is_named() -> None:
    """By what to install, before any work; what is there is no error."""
    require("train", "torch", "datasets")
    with pytest.raises(MissingExtraError, match=r"no_such_module not installed: pip install 'valueadapter\[train\]'"):
        require("train", "torch", "no_such_module")
