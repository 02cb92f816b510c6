"""`python -m testkit.local_hub`: serves a hub until stopped; knows only the command line."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from testkit.local_hub import LocalHub


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; print first how to use the hub."""
    options = _parser().parse_args(arguments)
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell's `&` has SIGINT ignored unless it is asked for
        signal.signal(stop, signal.default_int_handler)
    served = LocalHub(options.root, port=options.port, xet=not options.no_xet)
    with contextlib.suppress(KeyboardInterrupt), served as hub:
        sys.stdout.write(_greeting(hub))
        sys.stdout.flush()
        threading.Event().wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testkit.local_hub", description="A Hugging Face Hub on 127.0.0.1.")
    parser.add_argument("--root", type=Path, required=True, help="directory in which everything is kept")
    parser.add_argument("--port", type=int, default=0, help="port of the API (default: any that is free)")
    parser.add_argument("--no-xet", action="store_true", help="large files go through LFS only (default: Xet, too)")
    return parser


def _greeting(hub: LocalHub) -> str:
    """The address, the tokens, and what to type in a shell."""
    lines = [f"endpoint  {hub.endpoint}", f"kept in   {hub.root}"]
    for token, user in hub.users.items():
        belongs = f", of {', '.join(user.organizations)}" if user.organizations else ""
        lines.append(f"token     {token} ({user.name}{belongs}; {user.role})")
    variables = hub.env(token=next(iter(hub.users), None))
    lines += ["", *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]
    return "\n".join([*lines, "", "Ctrl-C stops it.", ""])


if __name__ == "__main__":
    main()
