"""Saves the checked-in adapter to a directory, or is killed on the way: run by tests in a process of its own.

Arguments: the directory; how many moves of files succeed before the next one kills the process (-1: all).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from valueadapter.artifact import verification
from valueadapter.artifact.atomic_directory import staged

GOLDEN = Path(__file__).parent / "data" / "adapter-v1"


def save(target: Path) -> None:
    with staged(target) as new:
        shutil.copytree(GOLDEN, new, dirs_exist_ok=True)
        verification.verify(new)


if __name__ == "__main__":
    place, left = Path(sys.argv[1]), int(sys.argv[2])
    move = shutil.move

    def counted(source: Any, target: Any) -> Any:
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return move(source, target)

    shutil.move = counted  # type: ignore[assignment]
    save(place)
