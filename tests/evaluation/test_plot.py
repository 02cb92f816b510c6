"""The picture of a report: a real PNG and SVG, with every base and arm on it, and a clear word where it cannot be."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from valueadapter import ConfigError, MissingExtraError
from valueadapter.evaluation.plot import save_plot
from valueadapter.evaluation.report import ARMS, Arm, BaseResult, Report
from valueadapter.evaluation.score import Example, Score
from valueadapter.evaluation.visible import visible

drawn = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


def report() -> Report:
    """Two bases, all arms but the calibrated one."""

    def score(bits: float) -> Score:
        hits = [float(bits < size / 4) for size in (3, 5, 9)]
        pairs = [
            {"bits_per_byte": (bits * n, n), "exact_match": (hit, 1)} for n, hit in zip((3, 5, 9), hits, strict=True)
        ]
        return Score(tuple(Example(totals, ()) for totals in pairs))

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
def test_exact_match_stands_beside_the_bits_with_intervals_explained(tmp_path: Path) -> None:
    """Where answers were asked for; a caption says what dots, bars and lines are."""
    text = save_plot(report(), tmp_path / "plot.svg").read_text()
    for words in (
        "bits per UTF-8 byte",
        "exact answers in %",
        "66.7",
        "95 % interval",
        "2,000 draws",
        "3 examples of quiz",
    ):
        assert words in text
    told = report()
    silent = [Example({"bits_per_byte": (1.0, 1)}, ())] * 3
    arms = {name: Arm(Score(tuple(silent))) for name in ARMS}
    told = dataclasses.replace(told, results=(dataclasses.replace(told.results[0], arms=arms),))
    assert "exact answers" not in save_plot(told, tmp_path / "bits.svg").read_text()


@drawn
def test_nothing_is_drawn_that_nobody_asked_for(tmp_path: Path) -> None:
    """What was asked for and could not be measured is there without a value; the rest is not."""
    told = report()
    left_out = {
        name: dataclasses.replace(arm, asked=arm.score is not None) for name, arm in told.results[0].arms.items()
    }
    told = dataclasses.replace(told, results=tuple(dataclasses.replace(one, arms=left_out) for one in told.results))
    text = save_plot(told, tmp_path / "plot.svg").read_text()
    assert "base + adapter" in text
    assert "alibrated" not in text
    assert "not measured" not in text


@drawn
def test_nothing_is_cut_off(tmp_path: Path) -> None:
    """Long names are broken into lines: no text reaches beyond the edges."""
    from PIL import Image

    told, name = report(), "organisation/" + "-a-model-with-a-very-long-name" * 6
    results = tuple(dataclasses.replace(one, base=name) for one in told.results)
    path = save_plot(dataclasses.replace(told, adapter=name, data=name, results=results), tmp_path / "plot.png")
    image = Image.open(path).convert("L")
    width, height = image.size
    edges = [(0, 0, 2, height), (width - 2, 0, width, height), (0, 0, width, 2), (0, height - 2, width, height)]
    assert all(image.crop(edge).getextrema() == (255, 255) for edge in edges)


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
    with pytest.raises(MissingExtraError, match=r"pip install 'valueadapter\[evaluation\]'"):
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
    assert text.count(visible(name)) == 1 + 2 * len(results)
