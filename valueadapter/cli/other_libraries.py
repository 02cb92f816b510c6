"""What other libraries would print between our lines: their bars become ours, and lines that say nothing here go.

Knows their loggers and their bars; nothing of what they do. Nothing is switched off outside the command line, nor with
`--debug`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from valueadapter.cli import output

LEFT_OUT = {
    # a warning at import, by PEFT, on CPUs with AVX-512 BF16; of the 4-bit layers alone, which then run as everywhere
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # a line for each request
    "httpx": "HTTP Request",
}
"""Logger -> how the lines begin that are left out."""
SOON = 1.0
"""Seconds after which a bar of theirs is shown; most of their files are small."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block the lines of LEFT_OUT are not logged."""
    filters = {name: _Without(begin) for name, begin in LEFT_OUT.items()}
    for name, one in filters.items():
        logging.getLogger(name).addFilter(one)
    try:
        yield
    finally:
        for name, one in filters.items():
            logging.getLogger(name).removeFilter(one)


class _Without(logging.Filter):
    def __init__(self, begin: str) -> None:
        super().__init__()
        self.begin = begin

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.begin)


@contextlib.contextmanager
def bars_as_ours() -> Iterator[None]:
    """Within the block the bars of the Hub's client, transformers and datasets are drawn, or said, by `output`.

    The last two are asked if they are imported: see `also_bars_of_models`.
    """
    global _held
    with contextlib.ExitStack() as held:
        before, _held = _held, held
        held.callback(_restore, before)
        held.enter_context(_environment("TQDM_POSITION", "-1"))  # so that the Hub's client tells pipes, too
        held.enter_context(_drawn_by_us(_of_hub()))
        also_bars_of_models()
        yield


def also_bars_of_models() -> None:
    """The same for libraries that were imported meanwhile, until the block ends."""
    if _held is None:
        return
    if sys.modules.get("datasets") is not None:
        from datasets.utils import tqdm as of_datasets

        _held.enter_context(_drawn_by_us(of_datasets))
    if sys.modules.get("transformers") is not None:
        from transformers.utils import logging as of_transformers

        before = of_transformers.set_tqdm_hook(lambda _, args, kwargs: _of_hub()(*args, **kwargs))
        _held.callback(of_transformers.set_tqdm_hook, before)


def _of_hub() -> Any:
    """The class of the Hub client's bars."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public, without __all__

    return tqdm


_held: contextlib.ExitStack | None = None


def _restore(before: contextlib.ExitStack | None) -> None:
    global _held
    _held = before


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _drawn_by_us(bar: Any) -> Iterator[None]:
    """A class of tqdm's bars whose methods that draw are ours, which is how tqdm wants other front ends made."""
    ours = {"display": _display, "close": _close, "clear": _clear}
    before = {name: vars(bar)[name] for name in ours if name in vars(bar)}
    for name, method in ours.items():
        setattr(bar, name, method)
    try:
        yield
    finally:
        for name in ours:
            delattr(bar, name)
        for name, method in before.items():
            setattr(bar, name, method)


def _display(bar: Any, *_: Any, **__: Any) -> bool:
    state = bar.format_dict
    if bar.disable or state["elapsed"] < SOON or os.environ.get("RANK", "0") != "0":
        return True
    what, in_bytes = (state["prefix"] or "").strip(" :") or "working", state["unit"] == "B"
    if output.err.is_terminal:
        output.bars.advance(what, int(state["n"]), None if state["total"] is None else int(state["total"]))
        return True
    now = time.monotonic()
    if now - getattr(bar, "told_at", float("-inf")) >= output.EVERY:
        bar.told_at = now
        numbers = [state["n"]] if state["total"] is None else [state["n"], state["total"]]
        shown = [f"{number / 1e6:,.1f}" if in_bytes else f"{number:,}" for number in numbers]
        output.say(f"{what}: {' of '.join(shown)}{' MB' if in_bytes else ''}")
    return True


def _close(bar: Any) -> None:
    if not getattr(bar, "disable", True):
        bar.disable = True
        output.bars.forget((bar.format_dict["prefix"] or "").strip(" :") or "working")


def _clear(*_: Any, **__: Any) -> None:
    """Nothing of a bar's own is on the screen."""
