"""The command line for test_distributed.py, started by `accelerate launch`; weights are sharded on CPUs, too."""

from __future__ import annotations

import sharding_on_cpu

from valueadapter.cli.app import main

if __name__ == "__main__":
    sharding_on_cpu.allow()
    main()
