"""How much time is left: what each step took when it was measured, times how fast this machine was so far."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console

_UNSURE = 60.0
"""Seconds at the measured pace that the pace of a machine begins with, so that a first short step says little."""
console = Console(soft_wrap=True)


class Clock:
    """Prints headlines with the time that is left.

    Args:
        steps: name -> seconds that it took on two idle cores, in their order.
        spent: seconds that another process spent before this one.
        planned: what these were when they were measured.
    """

    def __init__(self, steps: Mapping[str, float], *, spent: float = 0.0, planned: float = 0.0) -> None:
        self.steps = dict(steps)
        self._begun, self._planned = time.monotonic() - spent, planned

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def state(self) -> list[str]:
        """`spent` and `planned` for a clock that goes on elsewhere, as arguments of a command."""
        return [f"{self.spent:.1f}", f"{self._planned:.1f}"]

    def begin(self, name: str, headline: str) -> None:
        """Says what is next, and what is left with it."""
        left = list(self.steps.values())[list(self.steps).index(name) :]
        pace = (self.spent + _UNSURE) / (self._planned + _UNSURE)
        minutes = sum(left) * pace / 60
        about = f"about {minutes:.0f} minutes left" if minutes >= 1.5 else "about a minute left"
        gone = f"after {self.spent:.0f} s, " if self._planned else ""
        console.print(f"\n[bold]{headline}[/] ({gone}{about})")
        self._planned += self.steps[name]
