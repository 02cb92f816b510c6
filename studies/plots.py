"""The plot of docs/transfer.md: what each arm costs, base by base; knows nothing of how it was measured."""

from __future__ import annotations

import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

from studies.plan import DEFAULT
from studies.results import TOTAL, newest
from studies.store import Store
from studies.targets import TARGETS

COLOURS = {
    "alone": "#9aa3ad",
    "examples in its prompt": "#5f6b78",
    "small tuned model alone": "#d7b36a",
    "+ adapter as loaded": "#7fb3d5",
    "+ adapter, fitted weights": "#1f6fa8",
    "fine-tuned": "#7fbf95",
    "fine-tuned behind the prefix": "#3f8f5b",
}


def bars(store: Store) -> dict[str, dict[str, float]]:
    """Base -> arm -> held-out bits per byte with the end of answers, of the default cell on Jeopardy.

    Without the model over bytes, whose bars would make the others small.
    """
    found = (row for _, rows in newest(store, [DEFAULT]) for row in rows)
    rows = [row for row in found if not row.refusal and row.target != "byte"]
    return {
        TARGETS[row.target].title: {arm: float(found[TOTAL]) for arm, found in row.arms.items() if arm in COLOURS}
        for row in rows
    }


def plot(store: Store, path: Path) -> bool:
    """Draws the bars as SVG, the same bytes for the same results; False where there is nothing to draw."""
    groups = bars(store)
    if not groups:
        return False
    import_module("matplotlib").use("svg")  # slow to import, and only this needs it
    pyplot = import_module("matplotlib.pyplot")
    with pyplot.rc_context({"svg.hashsalt": "valueadapter", "font.size": 9, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(9, 3.6))
        _draw(axes, groups)
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return True


def _draw(axes: Any, groups: dict[str, dict[str, float]]) -> None:
    width = 0.8 / len(COLOURS)
    for index, (arm, colour) in enumerate(COLOURS.items()):
        places = [(number, values[arm]) for number, values in enumerate(groups.values()) if arm in values]
        centres = [number + (index - (len(COLOURS) - 1) / 2) * width for number, _ in places]
        axes.bar(centres, [value for _, value in places], width, color=colour, label=arm)
    axes.set_xticks(range(len(groups)), [textwrap.fill(title, 20) for title in groups])
    axes.set_ylabel("bits per byte (fewer is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
