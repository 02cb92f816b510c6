"""Demonstrations wherever they come from: a file, the Hub, `datasets` objects, records at hand; each one is checked.

Knows nothing of tokens: what is handed on are records as they were given.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, overload

from valueadapter.compat import require
from valueadapter.demonstrations import record_files
from valueadapter.demonstrations.record_checks import checked
from valueadapter.demonstrations.record_files import Found
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset  # an extra, which what generates does without

logger = logging.getLogger(__name__)

Source: TypeAlias = "str | Path | Dataset | Iterable[Mapping[str, Any]]"
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_AT_HAND = "record {} (the first is 0)"


class Demonstrations(Sequence[dict[str, Any]]):
    """Records that can be trained on and scored, each as it was given (see `record_checks.checked`).

    Args:
        rows: what may be records.
        numbers: where each stands, for messages.
        form: how such a number is written.
        name: where they come from, for messages; empty for records at hand.
        broken: index of a row that could not be read -> why.

    Raises:
        ConfigError: there is no record, or one that is none; names the first, and says how many there are.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        *,
        numbers: Sequence[int] | None = None,
        form: str = _AT_HAND,
        name: str = "",
        broken: Mapping[int, str] | None = None,
    ) -> None:
        self._rows, self._form, self._name = rows, form, name
        self._numbers = range(len(rows)) if numbers is None else numbers
        if not len(rows):
            raise ConfigError(f"{name + ': ' if name else ''}there are no demonstrations; expected at least one record")
        first, wrong = "", 0
        for index, row in enumerate(rows):
            problem = _problem(row) if broken is None or index not in broken else broken[index]
            if problem and not wrong:
                first = f"{self.place(index)}: {problem}"
            wrong += bool(problem)
        if wrong:
            more = f" ({wrong:,} of {len(rows):,} records are wrong; this is the first)" if wrong > 1 else ""
            raise ConfigError(first + more)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [checked(self._rows[each]) for each in range(*index.indices(len(self)))]
        return checked(self._rows[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(checked, self._rows)

    def place(self, index: int) -> str:
        """Where a record stands, for a message: `data.jsonl, line 7`."""
        where = self._form.replace("{}", str(self._numbers[index]), 1)
        return f"{self._name}, {where}" if self._name else where

    def select(self, indices: Iterable[int]) -> Demonstrations:
        """Some of the records, in the order given.

        Raises:
            ConfigError: none.
        """
        chosen = list(indices)
        rows = _Chosen(self._rows, chosen)
        numbers = [self._numbers[index] for index in chosen]
        return Demonstrations(rows, numbers=numbers, form=self._form, name=self._name)


def _problem(row: Any) -> str:
    """What is wrong with what may be a record; empty where nothing is."""
    try:
        checked(row)
    except ConfigError as error:
        return str(error)
    return ""


class _Chosen(Sequence[Any]):
    """Some rows of others, read when they are asked for."""

    def __init__(self, rows: Sequence[Any], indices: Sequence[int]) -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.indices[index]]


def of_datasets(value: object, *kinds: str) -> TypeGuard[Any]:
    """Whether a value is of one of these classes of `datasets`; imports it not: what nobody imported, nobody holds."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(value, tuple(getattr(library, kind) for kind in kinds))


def load_demonstrations(source: Source, *, split: str = "train") -> Demonstrations:
    """Demonstrations from a file, a Hub dataset or objects at hand, each checked.

    Files are JSON Lines, JSON (an array, one record, or an array under `data`), CSV and Parquet, also packed by gzip,
    bzip2, xz, zstd or zip. Their names are names, never patterns.

    Args:
        source: path, Hub ID, `datasets.Dataset`, or records.
        split: which split of a Hub dataset.

    Raises:
        ConfigError: no record, or one that cannot be trained on; names file, line, key and what is wrong.
        FileNotFoundError: there is no such file.
        MissingExtraError: a Hub dataset or Parquet file, and `datasets` is not installed.
    """
    if isinstance(source, Demonstrations):
        return source
    if isinstance(source, (str, Path)):
        return _of_path(source) if _is_path(source) else _of_hub(str(source), split)
    if of_datasets(source, "IterableDataset", "IterableDatasetDict"):
        raise ConfigError(
            "a streamed dataset is read once, and demonstrations are read several times; give some of its records, "
            "list(stream.take(1000))"
        )
    if isinstance(source, Mapping):  # a DatasetDict, too
        raise ConfigError(
            f"expected records; got an object with {', '.join(map(repr, source))}. Give one of its values"
        )
    if of_datasets(source, "Dataset"):
        return Demonstrations(_Table(source), form="row {} (the first is 0)")
    return Demonstrations(list(source))


def all_checked(records: Iterable[Mapping[str, Any]], *, name: str = "") -> list[dict[str, Any]]:
    """Records at hand, each checked; none of none.

    Args:
        records: any number.
        name: what they are for, for messages.

    Raises:
        ConfigError: one that cannot be scored.
    """
    rows = list(records)
    return list(Demonstrations(rows, name=name)) if rows else []


# -- files ------------------------------------------------------------------------------------------------------------
def _is_path(source: str | Path) -> bool:
    name = str(source)
    known = record_files.ending_of(name)[1] or record_files.is_readable(name)
    return isinstance(source, Path) or os.path.exists(name) or bool(known) or _HUB_ID.fullmatch(name) is None


def _of_path(source: str | Path) -> Demonstrations:
    path = str(source)
    if os.path.isdir(path):
        names = record_files.listing(path) or "none"
        raise ConfigError(
            f"'{path}' is a directory; give one of its files (that can be read: {names}), or in Python what "
            "datasets.load_from_disk or load_dataset makes of it"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"there is no file '{path}'; expected demonstrations as {record_files.READABLE}, or the ID of a Hub dataset"
        )
    ending, data = record_files.unpacked(path)
    if ending == record_files.PARQUET:
        return Demonstrations(_parquet(path, data), form="row {} (the first is 0)", name=path)
    found: Found = record_files.read(path, data, ending)
    return Demonstrations(found.rows, numbers=found.numbers, form=found.form, name=path, broken=found.broken)


def _parquet(path: str, data: bytes) -> _Table:
    require("train", "datasets")
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    try:
        return _Table(Dataset(parquet.read_table(pyarrow.BufferReader(data))))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from error


def _of_hub(name: str, split: str) -> Demonstrations:
    require("train", "datasets")
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        data = load_dataset(name, split=split)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error.__context__ or error
        raise ConfigError(f"dataset '{name}' cannot be read: {cause}") from error
    except ValueError as error:  # no such split; and in older versions what the parser of a file says
        raise ConfigError(f"dataset '{name}' cannot be read: {error}") from error
    return Demonstrations(_Table(data), form=f"row {{}} of '{split}' (the first is 0)", name=name)


# -- tables of Arrow's ------------------------------------------------------------------------------------------------
class _Table(Sequence[Any]):
    """The rows of a `datasets.Dataset` as records.

    Where a column holds objects of declared fields, Arrow gives every object every field, with null for those it does
    not have: there a null is a missing key. Columns of the type `Json`, as `datasets` reads JSON, are as given.
    """

    def __init__(self, data: Dataset) -> None:
        # a transform of the user's makes the records; torch or numpy would make tensors of them
        self.data = data if data.format["type"] == "custom" else data.with_format(None)
        self.features = {name: feature for name, feature in data.features.items() if _fields(feature)}
        merged = [name for name, feature in self.features.items() if _fields(feature) & {"arguments", "parameters"}]
        if merged:
            logger.warning(
                "the tools in column %s are objects of declared fields, in which null and missing are the same; what "
                "is null there is left out. Records from a list or a JSON Lines file are read as given",
                ", ".join(merged),
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        return as_record(self.data[index], self.features)

    def __iter__(self) -> Iterator[Any]:
        return (as_record(row, self.features) for row in self.data)  # in batches, which is faster than row by row


def as_record(row: Mapping[str, Any], features: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row of a table of Arrow's without the keys that are null for want of a value.

    Args:
        row: column -> value.
        features: column -> its type in `datasets`, where it is known.
    """
    return {key: _present(value, (features or {}).get(key)) for key, value in row.items()}


def _inner(feature: Any) -> Any:
    """What the elements of a list are; None of anything else."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _fields(feature: Any) -> set[str]:
    """The names of all fields that a column declares, however deep; those of objects alone, and not of `Json`."""
    if isinstance(feature, dict):
        return set(feature).union(*(_fields(inner) for inner in feature.values()))
    return _fields(_inner(feature)) if _inner(feature) is not None else set()


def _present(value: Any, feature: Any) -> Any:
    """A value without the keys that are null in an object of declared fields; a turn keeps its `content`."""
    if isinstance(value, dict) and isinstance(feature, dict):
        turn = "role" in feature
        kept = {key: item for key, item in value.items() if item is not None or (turn and key == "content")}
        return {key: _present(item, feature.get(key)) for key, item in kept.items()}
    if isinstance(value, list):
        return [_present(item, _inner(feature)) for item in value]
    return value
