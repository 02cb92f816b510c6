"""`python -m studies`: runs the study's cells, or one of them, and writes docs/transfer.md from the finished ones."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console

from studies.cell import VERBS, AnySpec, add_flags, command_of, from_flags
from studies.plan import QUESTIONS, plan
from studies.store import PUBLISHED, Store

console = Console(soft_wrap=True, highlight=False)


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command and does it."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("--root", type=Path, default=Store().root, help="where results and adapters are kept")
    verbs = parser.add_subparsers(dest="verb", required=True)
    about = (
        "train and score one adapter",
        "fine-tune one base directly",
        "let one adapter choose among answers",
        "try weights on one base: fixed, by a gate, by hindsight",
        "put adapters of several tasks on one base",
    )
    for (kind, name), text in zip(VERBS.items(), about, strict=True):
        add_flags(verbs.add_parser(name, help=text), kind)
    for name, text in (("run", "all cells that are not finished, then the report"), ("list", "the cells in order")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--quick", action="store_true", help="the cut of under twenty minutes")
        verb.add_argument("--question", choices=[one.name for one in QUESTIONS], help="only this one's cells")
        verb.add_argument("--jobs", type=int, default=1, help="processes at work side by side")
        verb.add_argument("--again", action="store_true", help="compute published results too")
        verb.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    verbs.add_parser("report", help="write docs/transfer.md from the finished cells")
    parsed = parser.parse_args(words)
    store = Store(parsed.root, PUBLISHED)
    single = {name: kind for kind, name in VERBS.items()}
    if parsed.verb in single:
        result = _run_one(from_flags(single[parsed.verb], parsed), store, wait=True)
        console.print_json(json.dumps(result))
    elif parsed.verb == "report":
        _report(store)
    elif parsed.verb == "list":
        for spec in plan(quick=parsed.quick, question=parsed.question):
            console.print(f"{'done' if store.known(spec) else '    '}  {command_of(spec)}", markup=False)
    else:
        specs = plan(quick=parsed.quick, question=parsed.question)
        run_all(specs, Store(parsed.root) if parsed.again else store, jobs=parsed.jobs, words=sys.argv[1:])
        if not parsed.worker:
            _report(store)


def run_all(specs: Sequence[AnySpec], store: Store, *, jobs: int = 1, words: Sequence[str] = ()) -> None:
    """Computes what is not there, one after the other, and says how long it will take.

    A cell that fails is named and left out; the next run tries it again.

    Args:
        specs: in the order to run.
        store: where results are kept.
        jobs: processes side by side; the others are started with the same command.
        words: that command's, without the program.
    """
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    command = [sys.executable, "-m", "studies", *words, "--jobs", "1", "--worker"]
    helpers = [subprocess.Popen(command) for _ in range(jobs - 1)]
    begun, worked = time.monotonic(), 0.0
    waiting = [spec for spec in specs if store.known(spec) is None]
    console.print(f"{len(specs) - len(waiting)} of {len(specs)} cells are finished")
    try:
        for number, spec in enumerate(waiting, 1):
            if store.get(spec) is not None:
                continue
            console.print(f"\\[{number}/{len(waiting)}] {command_of(spec)}")
            if result := _run_one(spec, store, wait=False):
                worked += spec.cost
                left = sum(one.cost for one in waiting[number:] if store.get(one) is None)
                minutes = (time.monotonic() - begun) / worked * left / jobs / 60
                console.print(f"  {result['seconds']:.0f} s; about {minutes:.0f} minutes left")
    finally:
        for helper in helpers:
            helper.wait()


def _run_one(spec: AnySpec, store: Store, *, wait: bool) -> dict[str, object] | None:
    import torch
    from transformers.utils import logging

    from studies.specs import run_spec
    from valueadapter.errors import ValueAdapterError

    logging.disable_progress_bar()
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def say(line: str) -> None:
        console.print(line, markup=False)

    try:
        return store.compute(spec, lambda: run_spec(spec, store, say), wait=wait)
    except ValueAdapterError as error:
        console.print(f"  left out: {error}", markup=False)
        if wait:
            sys.exit(1)
        return None


def _report(store: Store) -> None:
    from studies.report import write_report

    for path in write_report(store, Path("docs")):
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
