"""The last few things that took long to make, by what they are made of, for as long as the process runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """What was made last; any thread may ask.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._kept, self._lock = most, dict[Hashable, T](), threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under a key, or is made now; what fails is not kept.

        Args:
            key: all that it is made of.
            make: makes it.
        """
        with self._lock:
            found = self._kept.pop(key, None)
        if found is None:
            found = make()
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return found
