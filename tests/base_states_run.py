"""Builds a small store for test_state_store.py: directory, a file with a line per forward pass, a pause after each."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from test_state_store import DATA, VOCABULARY
from tiny import tiny_model

from valueadapter.training import state_store


def main() -> None:
    place, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    state_store.SHARD_BYTES = 2 * 16 * 20
    base = tiny_model("llama", seed=1)

    def note(*args: object) -> None:
        with log.open("a") as file:
            file.write("pass\n")
        time.sleep(pause)

    base.model.register_forward_hook(note)
    state_store.BaseStates.build(base, DATA, place, vocabulary=VOCABULARY)


if __name__ == "__main__":
    main()
