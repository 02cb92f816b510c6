"""Nothing is switched off in tests, examples and their helpers but what `switched_off.py` lists, with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import switched_off

ROOT = Path(__file__).parents[1]
# where things are, and what the run is allowed to take; these switch nothing off
PLACES = {"HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_XET_CACHE", "PIP_FIND_LINKS"}
LIBRARIES = "HF|TRANSFORMERS|TOKENIZERS|DATASETS|ACCELERATE|PIP|WANDB|DISABLE|DO_NOT"
VARIABLE = re.compile(rf"\b(?:{LIBRARIES})_[A-Z0-9_]*[A-Z0-9]\b")
CALL = re.compile(
    r"disable_progress_bars?\b|disable_tqdm|report_to|set_verbosity_(?:error|critical)\b|\.(setLevel)\("
    r"|time\.sleep(?=\", )|simplefilter|logging\.disable\b|disable_telemetry|abort_xet_session"
)
WARNING = re.compile(r"filterwarnings\(\s*[rf]?\"(?:ignore:)?([^\"]*)\"|\"ignore:([^\"]*)\"")
HERE = {"switched_off.py", "test_switched_off.py"}


def sources() -> list[Path]:
    folders = [ROOT / "tests", ROOT / "examples", ROOT / "testkit"]
    programs = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path.name not in HERE]
    return [ROOT / "pyproject.toml", *programs]


def switches(text: str) -> set[str]:
    """The names of what a program's text switches off, as far as a reader of the text can see."""
    found = {name for name in VARIABLE.findall(text) if name not in PLACES and not name.startswith("ACCELERATE_USE")}
    found |= {match[1] or match[0] for match in CALL.finditer(text)}
    for match in WARNING.finditer(text):
        found.add(re.sub(r":(?:\w+Warning)$", "", match[1] or match[2]))
    return found


def test_everything_that_is_switched_off_is_listed() -> None:
    """A new switch needs a line with its reason, and a line whose switch is gone goes too."""
    listed = {*switched_off.VARIABLES, *switched_off.ELSEWHERE, *switched_off.WARNINGS}
    found = {path.relative_to(ROOT).as_posix(): switches(path.read_text(encoding="utf-8")) for path in sources()}
    strange = {name: sorted(what - listed) for name, what in found.items() if what - listed}
    assert strange == {}, "list these in tests/switched_off.py with their reasons, or leave the library as it comes"
    assert listed - {*switched_off.VARIABLES} <= set().union(*found.values()) | {"disable_progress_bar"}


def test_reasons_are_given() -> None:
    """Every line says why."""
    lines = {**switched_off.VARIABLES, **switched_off.ELSEWHERE, **switched_off.WARNINGS}
    assert all(len(reason) > 20 for reason in lines.values())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('os.environ["HF_HUB_DISABLE_XET"] = "1"', "HF_HUB_DISABLE_XET"),
        ('monkeypatch.setattr(constants, "HF_HUB_DISABLE_SHARED_BLOBS", True)', "HF_HUB_DISABLE_SHARED_BLOBS"),
        ('{"HF_XET_XORB_COMPRESSION_POLICY": "none"}', "HF_XET_XORB_COMPRESSION_POLICY"),
        ('pytest.mark.filterwarnings("ignore:old name:DeprecationWarning")', "old name"),
        ("logging.disable(logging.CRITICAL)", "logging.disable"),
    ],
)
def test_a_switch_is_seen(text: str, name: str) -> None:
    """What earlier tests did, and what they might do."""
    assert name in switches(text)
