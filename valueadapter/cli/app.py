"""The commands put together, and errors turned into one line and an exit code; knows nothing of what commands do."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from valueadapter.cli import (
    align,
    artifacts,
    calibrate,
    distill,
    evaluate,
    export,
    generate,
    next_steps,
    other_libraries,
    output,
    search,
    trace,
    train,
)
from valueadapter.cli.next_steps import Next
from valueadapter.errors import ValueAdapterError
from valueadapter.version import __version__

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Train, publish and use value adapters: small models whose logits are added to a base model's.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # `main` shows errors
    rich_markup_mode="markdown",
    context_settings=HELP,
)


def _command(run: Callable[..., Any], next_step: Next, doing: str) -> Callable[..., None]:
    """A command that shows what other libraries do as its own progress, and ends with what comes next.

    Args:
        run: what it does. It may return what comes next, if it knows better; empty for nothing.
        next_step: from its arguments to that.
        doing: what it does all the time; empty for one that tells of its steps.
    """
    signature = inspect.signature(run)

    @functools.wraps(run)
    def command(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        with other_libraries.bars_as_ours(), output.working(doing) if doing else contextlib.nullcontext():
            told = run(*args, **kwargs)
        line = next_step(given.arguments) if told is None else told
        if line and not given.arguments.get("as_json"):
            output.next_step(line)

    return command


for run, next_step, doing in (
    (train.train, next_steps.after_train, ""),
    (calibrate.calibrate, next_steps.after_calibrate, ""),
    (evaluate.evaluate, next_steps.after_evaluate, ""),
    (search.search, next_steps.said_by_itself, "searching"),
    (artifacts.push, next_steps.after_push, "publishing"),
    (artifacts.fetch, next_steps.after_fetch, "downloading"),
    (artifacts.inspect, next_steps.after_inspect, "looking"),
    (artifacts.verify, next_steps.after_verify, "verifying"),
    (align.align, next_steps.after_align, "building the map"),
    (export.export, next_steps.after_export, "exporting"),
    (distill.distill, next_steps.said_by_itself, ""),
    (generate.generate, next_steps.after_generate, ""),
    (trace.trace, next_steps.after_trace, ""),
):
    app.command(context_settings=HELP)(_command(run, next_step, doing))


def _show_version(wanted: bool) -> None:
    if wanted:
        output.out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error, and all that other libraries say.")
    ] = False,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    # this option is read by `main`, which also sees errors from before it was parsed
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        context.with_resource(other_libraries.quiet())


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
