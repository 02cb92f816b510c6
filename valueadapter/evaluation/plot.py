"""Draws what was measured on several bases as one picture; measures nothing."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueadapter.artifact.card_results import CardArm, CardResult, Measure
from valueadapter.compat import require
from valueadapter.errors import ConfigError
from valueadapter.evaluation.report import Report
from valueadapter.evaluation.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
_INK, _QUIET, _LINES = "#1f2328", "#57606a", "#e4e6ea"
_COLOURS = {
    "base": "#6e7781",
    "fewshot": "#9460bd",
    "donor": "#b8730a",
    "adapted": "#1f6fb4",
    "calibrated": "#1f6fb4",
    "finetuned": "#2c8a4b",
}
_PANELS = {
    "bits_per_byte": "bits per UTF-8 byte (fewer are better)",
    "exact_match": "exact answers in % (more are better)",
}
# text stays text in an SVG, the same report gives the same file, and it is dark on light wherever it is shown
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "valueadapter",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _QUIET,
    "xtick.color": _QUIET,
    "ytick.color": _INK,
}


def save_plot(report: Report, path: str | Path) -> Path:
    """Draws bits per byte and exact match of every arm that was asked for, with intervals, base by base.

    Args:
        report: what was measured.
        path: ends in .png or .svg; its folder is created if need be.

    Raises:
        ConfigError: another ending, or matplotlib is not installed.
    """
    target = check_plot(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(draw(report.on_card(prompts=False), name=report.adapter, kind=target.suffix[1:]))
    return target


def check_plot(path: str | Path) -> Path:
    """Whether `save_plot` could write there, asked before anything is measured.

    Raises:
        ConfigError: an ending that is no picture's.
        MissingExtraError: matplotlib is not installed.
    """
    if not str(path).endswith(ENDINGS):
        raise ConfigError(f"a plot's name ends in .png or .svg; got '{path}'")
    require("evaluation", "matplotlib")
    return Path(path)


def draw(results: Sequence[CardResult], *, name: str = "", kind: str = "png") -> bytes:
    """The picture, as the content of a file.

    Args:
        results: one for each base and held-out set.
        name: of the adapter.
        kind: `png` or `svg`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 1.5 + sum(map(_height, results))), layout="constrained")
        _draw_panels(figure, results)
        if name:  # a name with dollar signs is no formula
            figure.suptitle(_wrapped(visible(name), 90), fontsize=12, parse_math=False)
        figure.supxlabel(_caption(results), fontsize=8.5, color=_QUIET, x=0.01, ha="left", parse_math=False)
        file = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
    return file.getvalue()


def _draw_panels(figure: Figure, results: Sequence[CardResult]) -> None:
    """A row of panels for each result, a column for each measure that somebody has."""
    there = [key for key in _PANELS if any(getattr(arm, key) for one in results for arm in one.arms)]
    measures = there or ["bits_per_byte"]
    sizes = {"height_ratios": [_height(one) for one in results]}
    grid = figure.subplots(len(results), len(measures), squeeze=False, sharex="col", gridspec_kw=sizes)
    for row, result in zip(grid, results, strict=True):
        for axes, measure in zip(row, measures, strict=True):
            _panel(axes, result.arms, measure)
        labels = [_wrapped(visible(arm.label), 40) for arm in result.arms]
        row[0].set_yticks(range(len(labels)), labels, fontsize=9, parse_math=False)
        for axes in row[1:]:
            axes.set_yticks(range(len(labels)), [])
        title = f"{result.base} ({result.relation}), {result.num_examples:,} examples of {result.data}"
        row[0].set_title(_wrapped(visible(title), 100), fontsize=10, loc="left", parse_math=False)
    for axes, measure in zip(grid[-1], measures, strict=True):
        axes.set_xlabel(_PANELS[measure], fontsize=9)
        if measure == "exact_match":
            shares = [arm.exact_match.high for one in results for arm in one.arms if arm.exact_match is not None]
            axes.set_xlim(-4 * max(0.1, *shares, 0.0), 108 * max(0.1, *shares, 0.0))


def _panel(axes: Axes, arms: Sequence[CardArm], measure: str) -> None:
    """One measure on one base: a dot with its interval for each arm, from the base alone down."""
    factor = 100 if measure == "exact_match" else 1
    for place, arm in enumerate(arms):
        found: Measure | None = getattr(arm, measure)
        if found is None:
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(0.02, place, "not measured", fontsize=8, color=_QUIET, style="italic", **where)
            continue
        value, low, high = (factor * one for one in (found.value, found.low, found.high))
        colour = _COLOURS.get(arm.arm, _INK)
        if arm.arm == "base":
            axes.axvline(value, color=colour, linewidth=0.8, linestyle=":", zorder=1)
        axes.errorbar(
            value,
            place,
            xerr=[[max(value - low, 0)], [max(high - value, 0)]],
            fmt="o",
            color=colour,
            markerfacecolor="white" if arm.arm == "calibrated" else colour,
            capsize=3,
            zorder=2,
        )
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        above: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "bbox": box}
        axes.annotate(f"{value:.1f}" if factor == 100 else f"{value:.3f}", (value, place), fontsize=8, **above)
    axes.set_ylim(len(arms) - 0.4, -0.8)
    axes.grid(axis="x", color=_LINES, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)


def _caption(results: Sequence[CardResult]) -> str:
    arms = {arm.arm for one in results for arm in one.arms}
    said = [
        "Dot: the value over all held-out examples. Bar: its 95 % interval, from 2,000 draws of as many of these "
        "examples with replacement: how far the value depends on which examples there are. Dotted line: the base alone."
    ]
    if "donor" in arms:
        said.append("Small tuned model: the base that the adapter was trained on, with it.")
    if "calibrated" in arms:
        said.append("Calibrated: at weights fitted on other examples.")
    return _wrapped(" ".join(said), 150)


def _height(result: CardResult) -> float:
    """Inches of a row of panels."""
    return 0.75 + 0.36 * len(result.arms)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text
