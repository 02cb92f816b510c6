"""The commands put together, and errors turned into one line and an exit code; knows nothing of what commands do."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from valueadapter.cli import align, artifacts, calibrate, evaluate, export, generate, output, trace, train
from valueadapter.errors import ValueAdapterError
from valueadapter.version import __version__

app = typer.Typer(
    help="Train, publish and use value adapters: small models whose logits are added to a base model's.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # `main` shows errors
    rich_markup_mode="markdown",
)
for command in (
    train.train,
    calibrate.calibrate,
    evaluate.evaluate,
    artifacts.push,
    artifacts.fetch,
    artifacts.inspect,
    artifacts.verify,
    align.align,
    export.export,
    generate.generate,
    trace.trace,
):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        output.out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    # this option is read by `main`, which also sees errors from before it was parsed
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        logging.getLogger("httpx").setLevel(logging.WARNING)


def main() -> None:
    """Runs the command line; the exit code is 0, 1 for an error, 2 for wrong usage."""
    try:
        app()
    except Exception as error:  # whatever it is, a person gets one line, and the rest on request
        if "--debug" in sys.argv:
            raise
        known = isinstance(error, (ValueAdapterError, OSError, ValueError))
        output.error(str(error) if known else f"{type(error).__name__}: {error}")
        if not known:
            output.note("run again as `valueadapter --debug …` for the traceback")
        sys.exit(1)
