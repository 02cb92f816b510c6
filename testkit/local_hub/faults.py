"""Faults on order: error statuses and cut connections for requests that match; knows nothing of sockets."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match; exactly one of status, cut, cut_upload is set."""

    pattern: str
    """Regular expression, searched in path and query."""
    method: str | None = None
    """HTTP method; None for any."""
    times: int = 1
    status: int | None = None
    """Answer this status instead of doing anything."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of that answer, such as Retry-After."""
    cut: int | None = None
    """Close the connection after so many bytes of an answer's body; shorter bodies and HEAD do not count."""
    cut_upload: int | None = None
    """Close the connection after so many bytes of a request's body, store nothing; requests without do not count."""

    def __post_init__(self) -> None:
        kinds = {"status": self.status, "cut": self.cut, "cut_upload": self.cut_upload}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"a fault needs exactly one of status, cut, cut_upload; got {' and '.join(given) or 'none'}"
            )
        if self.times < 1:
            raise ValueError(f"a fault's `times` must be at least 1; got {self.times}")

    def matches(self, method: str, target: str) -> bool:
        """Whether it is meant for this request and not used up."""
        return self.times > 0 and self.method in (None, method) and re.search(self.pattern, target) is not None


class FaultBoard:
    """The faults still to come; the one set first acts first."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Order a fault."""
        with self._lock:
            self._faults.append(fault)

    def take_for_request(self, method: str, target: str, *, has_body: bool) -> Fault | None:
        """The fault that keeps this request from being carried out; it counts as used."""
        with self._lock:
            for fault in self._faults:
                acts = fault.status is not None or (fault.cut_upload is not None and has_body)
                if acts and fault.matches(method, target):
                    fault.times -= 1
                    return fault
        return None

    def take_cut(self, method: str, target: str, *, length: int) -> int | None:
        """After how many of the answer's `length` bytes to close the connection; it counts as used."""
        with self._lock:
            for fault in self._faults:
                acts = fault.cut is not None and fault.cut < length and method != "HEAD"
                if acts and fault.matches(method, target):
                    fault.times -= 1
                    return fault.cut
        return None
