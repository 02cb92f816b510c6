"""Numbers as callers give them, checked by type and range; knows not what they are of.

An `int` or a `float` is a number, and so is a scalar of numpy or torch (no dimensions), which becomes one of Python's.
A bool, a text and None are none, though Python would count with some of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from valueadapter.errors import ConfigError


def finite(name: str, value: Any, *, least: float | None = None) -> float:
    """A finite number.

    Args:
        name: what it is, for the message.
        value: what was given.
        least: what it must be at least.

    Returns:
        An `int` as it is, anything else as a `float`.

    Raises:
        ConfigError: no number, NaN, infinite, or below `least`.
    """
    number = _of_python(value)
    if type(number) not in (int, float) or not _is_finite(number):
        raise ConfigError(f"{name} must be a finite number; got {shown(value)}")
    if least is not None and number < least:
        raise ConfigError(f"{name} must be at least {least:g}; got {number}")
    return number  # type: ignore[no-any-return]  # the type was asked for above


def whole(name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number.

    Args:
        name: what it is, for the message.
        value: what was given; 8.0 is none.
        least: what it must be at least.

    Raises:
        ConfigError: no whole number, or below `least`.
    """
    number = _of_python(value)
    if type(number) is not int:
        raise ConfigError(f"{name} must be a whole number; got {shown(value)}")
    if least is not None and number < least:
        raise ConfigError(f"{name} must be at least {least}; got {number}")
    return number


def hold(record: object, check: Callable[..., float], *names: str, least: float | None = None) -> None:
    """Puts fields of a frozen dataclass through a check, and keeps what it returns.

    Args:
        record: the dataclass.
        check: `finite` or `whole`.
        names: the fields; one that may be None is left where it is.
        least: what each must be at least.

    Raises:
        ConfigError: as `check`.
    """
    types = {one.name: str(one.type) for one in fields(record)}  # type: ignore[arg-type]  # every caller passes one
    for name in names:
        value = getattr(record, name)
        if value is not None or "None" not in types[name]:
            object.__setattr__(record, name, check(name, value, least=least))


def shown(value: object) -> str:
    """A value for a message, with its type where that is what is wrong with it."""
    text = repr(value)
    kind = "" if type(value) in (int, float) or value is None else f" ({type(value).__name__})"
    return (text if len(text) <= 80 else f"{text[:80]}…") + kind


def _of_python(value: Any) -> Any:
    """A scalar of numpy or torch as Python's; anything else as it came."""
    scalar = getattr(value, "shape", None) == () and callable(getattr(value, "item", None))
    return value.item() if scalar else value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int that no float can be
        return False
