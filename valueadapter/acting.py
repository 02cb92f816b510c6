"""Who acts on a wrapped model in this thread or task, where a block says so; knows names, and no adapters.

`with model.disable_adapter():` in one request must not switch off the adapters of another that runs beside it. So what
a block says holds in its own context (`contextvars`): in its thread, and in tasks that are started from within it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import NamedTuple

from valueadapter.prefix import BasePrefix

logger = logging.getLogger(__name__)


class Here(NamedTuple):
    """What a block says."""

    names: tuple[str, ...]
    """The adapters that act."""
    prefix: BasePrefix | None = None
    """What the base reads before the prompt in place of what the adapters bring."""


_HERE: ContextVar[Mapping[int, Here]] = ContextVar("valueadapter_here", default=MappingProxyType({}))
_open: dict[int, int] = {}  # models -> blocks that are open in any context
_warned: set[int] = set()


@contextlib.contextmanager
def acting(model: object, names: tuple[str, ...], prefix: BasePrefix | None = None) -> Iterator[None]:
    """Within the block, in this context, just these adapters of a model act; blocks may be nested."""
    key = id(model)
    token = _HERE.set({**_HERE.get(), key: Here(names, prefix)})
    _open[key] = _open.get(key, 0) + 1
    try:
        yield
    finally:
        _open[key] -= 1
        if not _open[key]:
            del _open[key]
            _warned.discard(key)
        _HERE.reset(token)


def here(model: object) -> Here | None:
    """What the innermost block of this context says of a model; None outside all blocks."""
    key = id(model)
    found = _HERE.get().get(key)
    if found is None and key in _open and key not in _warned:
        _warned.add(key)
        logger.warning(
            "this model runs in one thread while another is within a block such as disable_adapter(), which holds in "
            "its own thread only. If this thread was meant too, enter the block within it, pass adapter_names= to "
            "generate, or switch adapters off for all threads with disable_adapters()"
        )
    return found
