"""A base with adapters, from the names on a command line; knows nothing of what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valueadapter.cli import output
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from valueadapter.model.modeling import ValueAdapterForCausalLM


TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the base brings; an adapter's is never run.")
]


def load(
    base: str,
    adapters: Sequence[str],
    base_prefix: Path | None,
    *,
    no_base_prefix: bool,
    dtype: str,
    trust_remote_code: bool = False,
) -> tuple[ValueAdapterForCausalLM, Any]:
    """The base with all adapters active, and its tokenizer; says on standard error which scale each has.

    Raises:
        ConfigError: an unknown dtype, both ways to give the prefix, or a scale that is no number.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from valueadapter.model.modeling import ValueAdapterForCausalLM

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"--dtype must be float32, bfloat16, float16 or auto; got '{dtype}'")
    if base_prefix is not None and no_base_prefix:
        raise ConfigError("--base-prefix and --no-base-prefix exclude each other; give one of them")
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=trust_remote_code)
    model = ValueAdapterForCausalLM(whole, tokenizer=tokenizer).eval()
    if no_base_prefix or base_prefix is not None:
        model.set_base_prefix(None if base_prefix is None else base_prefix.read_text(encoding="utf-8"))
    sources = [parse_adapter(one) for one in adapters]
    names = names_of([source for source, _ in sources])
    for name, (source, scale) in zip(names, sources, strict=True):
        model.load_adapter(source, name, scale=scale)
        output.note(f"{source} at scale {model.scales[name]:g}")
    model.set_adapter(names)
    return model, tokenizer


def names_of(sources: Sequence[str]) -> list[str]:
    """What each adapter is called on one model."""
    from torch import nn

    names: list[str] = []
    for source in sources:
        names.append(_name(source, names, reserved=[*dir(nn.ModuleDict()), *dir(type)]))
    return names


def _name(source: str, taken: Sequence[str], reserved: Sequence[str]) -> str:
    """What an adapter is called: the last part of its Hub ID or path, as far as a name can be that."""
    last = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in source.rstrip("/").split("/")[-1])
    name = f"adapter-{last}" if last in reserved or not last else last
    return name if name not in taken else f"{name}-{len(taken)}"


def parse_adapter(text: str) -> tuple[str, float | None]:
    """`user/name=0.7` -> name and scale; without a scale the adapter's own recommendation holds.

    Raises:
        ConfigError: what follows the `=` is no number.
    """
    source, separator, number = text.rpartition("=")
    if not separator or Path(text).is_dir():
        return text, None
    try:
        return source, float(number)
    except ValueError:
        raise ConfigError(f"expected --adapter NAME or NAME=SCALE with a number; got '{text}'") from None
