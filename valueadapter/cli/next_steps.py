"""What a person would do after each command, from what the command was given; runs nothing.

What only they can say stands in capitals (`BASE`, `EXAMPLES`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Given = Mapping[str, Any]
"""A command's arguments by name."""
Next = Callable[[Given], str]
REPOSITORY = "USER/NAME"


def _line(*words: object) -> str:
    return " ".join(["valueadapter", *(shlex.quote(str(word)) for word in words)])


def _generate(base: object, adapters: Sequence[object]) -> str:
    chosen = [word for one in adapters for word in ("--adapter", one)]
    return _line("generate", "--base", base, *chosen, "--prompt", "PROMPT")


def after_train(given: Given) -> str:
    """Published: onto other bases, which is what it is for; else a first look."""
    if given["push_to"]:
        return _line("calibrate", given["push_to"], "--base", "OTHER-BASE", "--data", "EXAMPLES", "--push")
    return _generate(given["base"], [Path(given["output_dir"], "adapter")])


def after_calibrate(given: Given) -> str:
    """Weights that are recorded are used; those of several adapters together are no record."""
    adapters = [*([given["adapter"]] if given["adapter"] else []), *(given["together"] or ())]
    if given["save_to"]:
        return _line("push", given["save_to"], REPOSITORY)
    if given["push"] or len(adapters) > 1:
        return _generate(given["base"], adapters)
    where = ["--output", "DIRECTORY"] if Path(adapters[0]).is_dir() else ["--push"]
    return _line("calibrate", adapters[0], "--base", given["base"], "--data", given["data"], *where)


def after_evaluate(given: Given) -> str:
    """Results that are written are published; else, the weights."""
    if given["save_to"]:
        return _line("push", given["save_to"], REPOSITORY)
    if given["calibrate"]:
        return _generate(given["base"][0], [given["adapter"]])
    return _line("calibrate", given["adapter"], "--base", given["base"][0], "--data", "EXAMPLES")


def said_by_itself(_given: Given) -> str:
    """Nothing: the command knows better, from what it found."""
    return ""


def after_push(given: Given) -> str:
    """Where else it would go."""
    return _line("inspect", given["repo_id"], "--base", "BASE")


def after_fetch(given: Given) -> str:
    """What was downloaded is used by its name."""
    return _generate("BASE", [given["adapter"]])


def after_inspect(given: Given) -> str:
    """With a base, how they sound together."""
    if given["base"] is None:
        return _line("inspect", given["adapter"], "--base", "BASE")
    return _generate(given["base"], [given["adapter"]])


def after_verify(given: Given) -> str:
    """What lies here is published, what lies there is looked at."""
    if Path(given["adapter"]).is_dir():
        return _line("push", given["adapter"], REPOSITORY)
    return _line("inspect", given["adapter"], "--base", "BASE")


def after_align(given: Given) -> str:
    """A map in a directory is published with its adapter."""
    if given["output_dir"]:
        return _line("push", given["output_dir"], REPOSITORY)
    return _generate(given["base"], [given["adapter"]])


def after_export(given: Given) -> str:
    """What vLLM serves is served, what people are to load is published."""
    if given["to"] == "vllm":
        return f"vllm serve {shlex.quote(str(given['output_dir']))}"
    return _line("push", given["output_dir"], given["repo_id"] or REPOSITORY)


def after_generate(given: Given) -> str:
    """Why it said what it said; of a base alone, an adapter of its own."""
    if not given["adapter"]:
        return _line("train", "--base", given["base"], "--data", "DEMONSTRATIONS", "--output", "DIRECTORY")
    chosen = [word for one in given["adapter"] for word in ("--adapter", one)]
    return _line("trace", "--base", given["base"], *chosen, "--prompt", "PROMPT")


def after_trace(given: Given) -> str:
    """The page, or the whole answer."""
    if given["html"]:
        return _generate(given["base"], given["adapter"])
    chosen = [word for one in given["adapter"] for word in ("--adapter", one)]
    return _line("trace", "--base", given["base"], *chosen, "--prompt", "PROMPT", "--html", "trace.html")
