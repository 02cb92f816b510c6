"""One process at a time does a piece of work that leaves a file behind; knows nothing of the work.

A claim ends with the process that holds it, however that ends, because the system's file locks do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no such locks here (Windows): work may be done twice, with the same result
    fcntl = None


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Within the block this process alone holds the claim, if True is given.

    The claim's file is removed when the block ends without an error, so the work must be done then. One that waited may
    hold a claim on the removed file while another makes it anew; so look within the block whether the work is done.

    Args:
        path: the claim's file.
        wait: wait for whoever holds it; else give False at once.
    """
    if fcntl is None:
        yield True
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)
