"""Turns frozen dataclasses into JSON values and back, strictly; knows nothing of what they mean.

A key that is unknown, missing or of the wrong type is an error that names its place (`networks[0].coefficient`).
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from valueadapter.errors import ConfigError
from valueadapter.version import __version__

T = TypeVar("T")

OMIT = MappingProxyType({"omit_when_empty": True})
"""Field metadata: leave the key out of the JSON when its value is None or empty."""


_LARGEST = 2**63 - 1


def to_json(value: Any) -> Any:
    """A dataclass as JSON values, fields in the order of their definition."""
    if is_dataclass(value):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {
            f.name: to_json(v) for f, v in pairs if f.metadata != OMIT or (v is not False and v not in (None, (), {}))
        }
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def _is_empty(value: Any) -> bool:
    return value is False or value in (None, (), {})


def from_json(cls: type[T], data: Any, place: str = "") -> T:
    """JSON values as a dataclass.

    Args:
        cls: a dataclass whose fields are str, int, float, bool, None, Literal, dict[str, …], tuple[…, ...],
            dataclasses, and unions of these.
        data: what `json.loads` gave.
        place: where `data` stands, for messages.

    Raises:
        ConfigError: an unknown or missing key, or a value of another type.
    """
    where = place or "config.json"
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be an object; got {_describe(data)}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # every caller passes a dataclass
    if unknown := sorted(set(data) - set(known)):
        raise ConfigError(
            f"unknown key '{unknown[0]}' in {where}; valueadapter {__version__} knows {', '.join(known)}. "
            "Was the adapter written by a newer version?"
        )
    for name, field in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"key '{name}' is missing in {where}")
    values = {name: _convert(hints[name], data[name], f"{place}.{name}".lstrip(".")) for name in known if name in data}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from None


def checked_text(text: str, place: str) -> str:
    """The text itself, if it consists of whole characters, so that it can be written and tokenized.

    Raises:
        ConfigError: half of a surrogate pair.
    """
    for number, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise ConfigError(f"'{place}' must be text; got U+{ord(character):04X} as its character {number + 1:,}")
    return text


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, place)
    if origin is Literal:
        if value in get_args(hint) and not isinstance(value, bool):
            return value
        raise ConfigError(f"'{place}' must be one of {', '.join(map(repr, get_args(hint)))}; got {value!r}")
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(get_args(hint)[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        kind = get_args(hint)[1]
        return {checked_text(key, place): _convert(kind, item, f"{place}[{key!r}]") for key, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, place)
    if hint in (int, float) and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _LARGEST:
            raise ConfigError(f"'{place}' must be {_name(hint)} of at most 19 digits; got {len(str(abs(value))):,}")
        return hint(value)
    if isinstance(value, str) and hint is str:
        return checked_text(value, place)
    if hint is not None and isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"'{place}' must be {_name(hint)}; got {_describe(value)}")


def _convert_union(options: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        try:
            return _convert(rest[0], value, place)
        except ConfigError as error:
            raise ConfigError(str(error).replace("; got", " or null; got", 1)) from None
    for option in rest:
        if isinstance(value, _json_type(option)):
            return _convert(option, value, place)
    raise ConfigError(f"'{place}' must be {' or '.join(_names(options))}; got {_describe(value)}")


def _json_type(hint: Any) -> type:
    """What `json.loads` gives for a value of this type."""
    if is_dataclass(hint):
        return dict
    plain: type = get_origin(hint) or hint
    return list if plain is tuple else plain


def _names(options: tuple[Any, ...]) -> Iterator[str]:
    return (_name(option) for option in options)


def _name(hint: Any) -> str:
    plain = {
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    if hint in plain:
        return plain[hint]
    return {tuple: "a list", dict: "an object"}.get(get_origin(hint), "an object")


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:120]
