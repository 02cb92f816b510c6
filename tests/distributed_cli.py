"""The command line for test_distributed.py, started by `accelerate launch`; weights are sharded on CPUs, too."""

from __future__ import annotations

import sys

import sharding_on_cpu
from torch import distributed

from valueadapter.cli.app import main

if __name__ == "__main__":
    sharding_on_cpu.allow()
    try:
        main()
    except SystemExit as ended:
        if not ended.code and distributed.is_initialized():
            sys.exit("the command ends within its group of processes, where it may abort and end the others")
        raise
