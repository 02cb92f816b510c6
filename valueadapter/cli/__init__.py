"""The command line: `valueadapter train | calibrate | evaluate | search | push | fetch | inspect | verify | align |
export | distill | generate | trace`.

Only parses, calls the library and shows; torch and transformers load when a command that needs them runs.
"""

from __future__ import annotations

from valueadapter.cli.app import main as main
