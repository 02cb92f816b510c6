"""Builds a small store for test_state_store.py: directory, a file with a line per forward pass, a pause after each."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tiny import byte_tokenizer, tiny_model

from valueadapter.adapter.tokenizer_loading import vocabulary_of
from valueadapter.training import state_store

VOCABULARY = vocabulary_of(byte_tokenizer()).spec(97)


def record(i: int) -> dict[str, list[int]]:
    prompt, response = [10 + i % 7] * (2 + i % 3), [20 + i % 11, 30 + i % 13, 40 + i, 2][i % 2 :]
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


DATA = [record(i) for i in range(24)]


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
