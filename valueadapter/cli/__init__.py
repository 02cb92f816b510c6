"""The command line: `valueadapter train | calibrate | align | push | fetch | inspect | verify |
generate`.

Only parses, calls the library and shows; torch and transformers load when a command that needs them runs.
"""

from __future__ import annotations

from valueadapter.cli.app import main as main
