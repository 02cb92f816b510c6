"""Whatever is scored on a wide vocabulary, memory grows by little more than is allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED = 256
"""MiB of logits, `bounded_logits.BUDGET`."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_rows_and_tokens() -> None:
    """262,144 columns are a MiB for each position. The default batch of 16 answers of a hundred tokens would take 1.6
    GiB in a single copy, and several are needed; here all copies together stay within a constant."""
    here = Path(__file__).parent
    place = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(here / "peak_memory_run.py")],
        env={**os.environ, "PYTHONPATH": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    assert len(grown) == 9
    over = {what: mib for what, mib in grown.items() if mib > 2 * ALLOWED}
    assert not over, f"MiB: {grown}"
