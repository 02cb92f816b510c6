"""Draws a report as one picture for a model card; measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from valueadapter.errors import ConfigError
from valueadapter.evaluation.report import ARMS, Report
from valueadapter.evaluation.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".png", ".svg")
_COLOURS = {
    "base": "#8a8f98",
    "fewshot": "#b08bd0",
    "donor": "#e0a13c",
    "adapted": "#1f6fb4",
    "calibrated": "#1f6fb4",
    "finetuned": "#3c9d5d",
}


def save_plot(report: Report, path: str | Path) -> Path:
    """Draws bits per byte of every arm with its interval, one panel per base.

    Args:
        report: what was measured.
        path: ends in .png or .svg; its folder is created if need be.

    Raises:
        ConfigError: another ending, or matplotlib is not installed.
    """
    target = check_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    arms = report.to_dict()["arms"]
    figure = Figure(figsize=(7.6, 0.8 + 2.1 * len(arms)), layout="constrained")
    panels = figure.subplots(len(arms), 1, squeeze=False, sharex=True)[:, 0]
    for axes, arm in zip(panels, arms, strict=True):
        _panel(axes, arm)
    panels[-1].set_xlabel("bits per UTF-8 byte of the response (fewer are better)")
    title = f"{report.adapter} on {report.num_examples} held-out examples of {report.data}"
    figure.suptitle(visible(title), fontsize=11, parse_math=False)  # a name with dollar signs is no formula
    target.parent.mkdir(parents=True, exist_ok=True)
    # text stays text in an SVG, and the same report gives the same file
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "valueadapter"}):
        figure.savefig(target, dpi=160, metadata={"Date": None} if target.suffix == ".svg" else {"Software": None})
    return target


def check_plot(path: str | Path) -> Path:
    """Whether `save_plot` could write there, asked before anything is measured.

    Raises:
        ConfigError: an ending that is no picture's, or matplotlib is not installed.
    """
    if not str(path).endswith(ENDINGS):
        raise ConfigError(f"a plot's name ends in .png or .svg; got '{path}'")
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed; pip install 'valueadapter[evaluation]'"
        ) from None
    return Path(path)


def _panel(axes: Axes, arm: dict[str, Any]) -> None:
    """One base: a dot with its interval for each arm, from the base alone down."""
    names = list(ARMS)
    axes.axvline(arm["base_bits_per_byte"], color=_COLOURS["base"], linewidth=0.8, linestyle=":", zorder=1)
    labels = []
    for place, name in enumerate(names):
        value = arm[f"{name}_bits_per_byte"]
        labels.append(_label(name, arm))
        if value is None:
            axes.text(
                0.01,
                place,
                "not measured",
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=8,
                color="#8a8f98",
                style="italic",
            )
            continue
        low, high = arm["intervals"][f"{name}_bits_per_byte"]
        filled = name != "calibrated"
        axes.errorbar(
            value,
            place,
            xerr=[[max(value - low, 0)], [max(high - value, 0)]],
            fmt="o",
            color=_COLOURS[name],
            markerfacecolor=_COLOURS[name] if filled else "white",
            capsize=3,
            zorder=2,
        )
        axes.annotate(
            f"{value:.3f}", (value, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(names)), labels, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.set_title(visible(f"{arm['base']} ({arm['relation']})"), fontsize=10, loc="left", parse_math=False)
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)


def _label(name: str, arm: dict[str, Any]) -> str:
    if name == "fewshot":
        return f"base, {arm['num_fewshot']} demonstrations in its prompt"
    if name == "adapted":
        return f"{ARMS[name]}, scale {arm['scale']:g}"
    return ARMS[name]
