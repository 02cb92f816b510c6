"""Who acts on a wrapped model where a block says so, and how strongly; knows names and scales, and no adapters.

`with model.disable_adapter():` in one request must not switch off the adapters of another that runs beside it. So what
a block says holds in its own context (`contextvars`): in its thread, and in tasks that are started from within it.

A generator has no context of its own. It runs in that of whoever asks for its next value: this one now, perhaps another
one later, and in between the asker's code runs there. So a block in a generator holds wherever that generator is on the
stack, and nowhere else. (A generator that serves as a context manager lends its block to the `with` that enters it.)
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import weakref
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from types import FrameType
from typing import NamedTuple

from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.prefix_reading import BasePrefix

logger = logging.getLogger(__name__)

Names = Sequence[str | Sequence[str] | None]
"""For each row the adapter that acts, several, or None (or PEFT's "__base__") for the base alone."""


class Scope(NamedTuple):
    """What a block says."""

    names: tuple[str, ...]
    """The adapters that act."""
    prefix: BasePrefix | None
    """What the base reads before the prompt in place of what the adapters bring."""
    scales: ChainMap[str, float]
    """Scales that hold within the block, and those of the blocks around it."""
    rows: Names | None
    """Other adapters for each prompt of a batch, instead of `names`."""


_SCOPES: ContextVar[tuple[Block, ...]] = ContextVar("valueadapter_scopes", default=())
_open: dict[int, weakref.ref[Block]] = {}
"""Every block that is open anywhere. Single steps on a dict need no lock, and keys are not taken twice: a block that
goes takes its entry along."""

_ENTERING = frozenset({"__enter__", "__aenter__", "enter_context", "enter_async_context", "call_fixture_func"})
"""Functions that enter a context manager for their caller; the last is pytest's, for fixtures that yield."""


class Block(contextlib.ContextDecorator):
    """A `with` block in which just some adapters of a model act; made by `scoped`."""

    def __init__(
        self,
        model: object,
        names: tuple[str, ...],
        prefix: BasePrefix | None,
        scales: Mapping[str, float],
        rows: Names | None,
    ) -> None:
        self.model = weakref.ref(model)
        self.owner: FrameType | None = None  # the generator that the block is in, where it is in one
        self.told = False  # whether someone outside was told of it
        self.ended = False
        self._asked = (names, prefix, dict(scales), rows)
        self._around: Block | None = None
        self._token: Token[tuple[Block, ...]] | None = None

    @property
    def says(self) -> Scope:
        """What holds within the block."""
        return self._says

    def __enter__(self) -> None:
        if id(self) in _open:
            raise UnsupportedModeError("this block is open already; make a block of its own for each `with`")
        owner = _generator_around(sys._getframe(1))
        model = self.model()
        names, prefix, scales, rows = self._asked
        self._around = _innermost(model)
        around = self._around.says.scales if self._around is not None else ChainMap[str, float]()
        self._says = Scope(names, prefix, around.new_child(dict(scales)), rows)
        self.owner, self.ended, self.told = owner, False, False
        key = id(self)
        _open[key] = weakref.ref(self, lambda _: _open.pop(key, None))
        if owner is None:
            self._token = _SCOPES.set((*_SCOPES.get(), self))

    def __exit__(self, *exception: object) -> None:
        _open.pop(id(self), None)
        self.owner = None
        token, self._token = self._token, None
        if token is None:
            return
        rest = tuple(block for block in _SCOPES.get() if block is not self)
        try:
            _SCOPES.reset(token)  # which tells whether this is the context that was entered
        except ValueError:
            self.ended = True  # it is another, and the one that was entered cannot be reached from here
        else:
            _SCOPES.set(rest)  # blocks need not end in the order in which they began

    def _recreate_cm(self) -> Block:
        """As a decorator: a block for each call."""
        return Block(self.model(), *self._asked)

    def is_within(self, other: Block) -> bool:
        """Whether this block was entered where the other one held."""
        around = self._around
        while around is not None and around is not other:
            around = around._around
        return around is other


def scoped(
    model: object,
    names: tuple[str, ...],
    prefix: BasePrefix | None = None,
    *,
    scales: Mapping[str, float] | None = None,
    rows: Names | None = None,
) -> Block:
    """A block within which just these adapters of a model act; blocks may be nested.

    Args:
        model: the wrapped model.
        names: the adapters.
        prefix: what the base reads before the prompt, in place of what they bring.
        scales: name -> scale, which holds within the block only.
        rows: other adapters for each prompt of a batch, instead of `names`.
    """
    return Block(model, names, prefix, scales or {}, rows)


def current_scope(model: object) -> Scope | None:
    """What the innermost block says of a model to the code that asks; None outside all blocks."""
    block = _innermost(model)
    if block is not None:
        return block.says
    if elsewhere := [other for other in _blocks_anywhere(model) if not other.told]:
        for other in elsewhere:
            other.told = True
        logger.warning(
            "this model runs outside of a block such as disable_adapter() that is open elsewhere: one holds in its own "
            "thread only, and one in a generator only while that generator runs. If this call was meant too, enter "
            "the block around it, pass adapter_names= to generate, or switch adapters off for all threads with "
            "disable_adapters()"
        )
    return None


def _innermost(model: object) -> Block | None:
    of_context = [block for block in _SCOPES.get() if not block.ended and block.model() is model]
    inner = of_context[-1] if of_context else None
    if not _open:
        return inner
    in_generators = [block for block in _blocks_anywhere(model) if block.owner is not None]
    frame = sys._getframe() if in_generators else None
    while frame is not None:
        of_frame = [block for block in in_generators if block.owner is frame]
        if of_frame:
            return inner if inner is not None and inner.is_within(of_frame[-1]) else of_frame[-1]
        frame = frame.f_back
    return inner


def _blocks_anywhere(model: object) -> list[Block]:
    """The open blocks of a model, in the order in which they were entered."""
    found = [block() for block in list(_open.values())] if _open else []
    return [block for block in found if block is not None and block.model() is model]


def _generator_around(frame: FrameType | None) -> FrameType | None:
    """The generator that a `with` statement is in; None where it is in a function, or a coroutine.

    Raises:
        UnsupportedModeError: it is in an asynchronous generator, of which nobody can tell whether it is waiting for
            something of its own or standing still between two values.
    """
    while frame is not None:
        if frame.f_code.co_name in _ENTERING:
            frame = frame.f_back
            continue
        kind = frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR)
        if not kind or frame.f_code.co_flags & inspect.CO_ITERABLE_COROUTINE:
            return None
        driver = frame.f_back
        if driver is not None and driver.f_code.co_name in _ENTERING:
            frame = driver
            continue
        if kind == inspect.CO_ASYNC_GENERATOR:
            raise UnsupportedModeError(
                f"a block such as disable_adapter() cannot be held by the asynchronous generator "
                f"'{frame.f_code.co_name}' from one value to the next: the code that reads them would be in it too. "
                "Enter the block around each call of the model, in a function of its own, or pass "
                "adapter_names=[None] to generate"
            )
        return frame
    return None
