"""A directory with an adapter that another is saved over, and what is seen in it; without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saving_run import GOLDEN, save

from valueadapter.artifact import verification


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An adapter of scale 0.5, so that the golden one is another."""
    save(tmp_path / "adapter")
    change_scale(tmp_path / "adapter")
    return tmp_path / "adapter"


def change_scale(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "scale": 0.5}))


def scale(directory: Path) -> float:
    return verification.verify(directory).scale


def visible(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


NEW = verification.read_config(GOLDEN).scale
FILES = visible(GOLDEN)
