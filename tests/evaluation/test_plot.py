"""The picture of a report: a real PNG and SVG, with every base and arm on it, and a clear word where it cannot be."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from valueadapter import ConfigError
from valueadapter.evaluation.plot import save_plot
from valueadapter.evaluation.report import ARMS, Arm, BaseResult, Report
from valueadapter.evaluation.score import Example, Score
from valueadapter.evaluation.visible import visible

drawn = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


def report() -> Report:
    """Two bases, all arms but the calibrated one."""

    def score(bits: float) -> Score:
        return Score(tuple(Example({"bits_per_byte": (bits * size, size)}, ()) for size in (3, 5, 9)))

    bits = {"base": 1.4, "fewshot": 0.826, "donor": 1.236, "adapted": 1.053, "finetuned": 0.631}
    arms = {name: Arm(score(bits[name])) if name in bits else Arm(reason="no --calibrate") for name in ARMS}
    results = [
        BaseResult(name, "another vocabulary", 0.75, None, 1.0, 4, arms) for name in ("acme/small", "acme/large")
    ]
    return Report("alice/adapter", "quiz", tuple(results), 3)


@drawn
def test_svg_holds_every_arm(tmp_path: Path) -> None:
    """As text that can be searched: bases, arms, values, and what was not measured."""
    text = save_plot(report(), tmp_path / "new folder" / "plot.svg").read_text()
    for words in ("acme/small", "acme/large", "small tuned model alone", "0.826", "not measured", "alice/adapter"):
        assert words in text
    assert "base + adapter, scale 0.75" in text
    assert not re.search("base \\+ adapter, calibrated \\(", text)


@drawn
def test_png_is_an_image_and_the_same_each_time(tmp_path: Path) -> None:
    """So that a repository does not change with every drawing."""
    one, two = (save_plot(report(), tmp_path / f"{name}.png").read_bytes() for name in "ab")
    assert one.startswith(b"\x89PNG")
    assert one == two
    svgs = [save_plot(report(), tmp_path / f"{name}.svg").read_bytes() for name in "ab"]
    assert svgs[0] == svgs[1]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    """Before anything is drawn."""
    with pytest.raises(ConfigError, match=r"ends in \.png or \.svg"):
        save_plot(report(), tmp_path / "plot.jpg")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is written."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'valueadapter\[evaluation\]'"):
        save_plot(report(), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


@drawn
@pytest.mark.parametrize("name", ["$x_1$", "a$b", "$\\frac{$", "[bold]", "a\x1b[31m\x00b", "\u202egnp"])
def test_names_are_no_formulas(tmp_path: Path, name: str) -> None:
    """Dollar signs set no mathematics and stop no picture; what no XML may hold is spelled out."""
    told = report()
    results = tuple(dataclasses.replace(one, base=name) for one in told.results)
    path = save_plot(dataclasses.replace(told, adapter=name, data=name, results=results), tmp_path / "plot.svg")
    text = " ".join(ElementTree.parse(path).getroot().itertext())
    assert text.count(visible(name)) == 2 + len(results)
