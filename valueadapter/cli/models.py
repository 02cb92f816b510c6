"""A base with adapters, from the names on a command line; knows nothing of what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valueadapter import hub
from valueadapter.cli import other_libraries, output
from valueadapter.cli.choices import Dtype
from valueadapter.errors import ConfigError, IncompatibleBaseError, NotAValueAdapterError

if TYPE_CHECKING:
    from valueadapter.model.modeling import ValueAdapterForCausalLM


TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the base brings; an adapter's is never run.")
]
Device = Annotated[str | None, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps …  [cpu]")]
HowHeld = Annotated[Dtype, typer.Option("--dtype", help="Of the base and, beside it, the networks.")]
AdapterRevision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of the adapter; of several, the first."),
]


@dataclass(frozen=True)
class Places:
    """Whence models come, and where they go."""

    base_revision: str | None = None
    """Of the base on the Hub."""
    revision: str | None = None
    """Of the first adapter."""
    device: str | None = None
    """As torch calls it; by default where models are loaded."""


def load(
    base: str,
    adapters: Sequence[str],
    base_prefix: Path | None,
    *,
    no_base_prefix: bool,
    dtype: str,
    trust_remote_code: bool = False,
    places: Places = Places(),
) -> tuple[ValueAdapterForCausalLM, Any]:
    """The base with all adapters active, and its tokenizer; says on standard error which scale each has.

    Raises:
        ConfigError: an unknown dtype or device, both ways to give the prefix, or a scale that is no number.
    """
    if base_prefix is not None and no_base_prefix:
        raise ConfigError("--base-prefix and --no-base-prefix exclude each other; give one of them")
    if dtype not in [*Dtype]:
        raise ConfigError(f"--dtype must be one of {', '.join(Dtype)}; got '{dtype}'")
    sources = [parse_adapter(one) for one in adapters]
    revisions = [places.revision, *[None] * len(sources)]
    check_base(base, places.base_revision)
    for (source, _), revision in zip(sources, revisions, strict=False):  # before the base is loaded, which takes longer
        hub.fetch_config(source, hub.Download(revision=revision))
    with output.working("starting torch"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from valueadapter.model.modeling import ValueAdapterForCausalLM

    other_libraries.also_bars_of_models()
    check_device(places.device)
    of_base: dict[str, Any] = {"revision": places.base_revision, "trust_remote_code": trust_remote_code}
    with output.working(f"loading {base}"):
        tokenizer = AutoTokenizer.from_pretrained(base, **of_base)
        whole = AutoModelForCausalLM.from_pretrained(base, dtype=str(dtype), **of_base)
        if places.device is not None:
            whole = whole.to(places.device)
        model = ValueAdapterForCausalLM(whole, tokenizer=tokenizer).eval()
    if no_base_prefix or base_prefix is not None:
        model.set_base_prefix(None if base_prefix is None else base_prefix.read_text(encoding="utf-8"))
    names = names_of([source for source, _ in sources])
    for name, (source, scale), revision in zip(names, sources, revisions, strict=False):
        with output.working(f"loading {source}"):
            model.load_adapter(source, name, scale=scale, revision=revision)
        output.note(f"{source} at scale {model.scales[name]:g}")
    model.set_adapter(names)
    return model, tokenizer


def check_device(device: str | None) -> None:
    """Whether models can run there, before any is loaded.

    Raises:
        ConfigError: it is no device of this machine; lists those that are.
    """
    if device is None:
        return
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if found is not None else 0
    known = ["cpu", *([found.type] if found is not None else [])]
    known += [f"{found.type}:{index}" for index in range(count)] if found is not None else []
    if device not in known:
        raise ConfigError(f"--device must be one of {', '.join(known)} on this machine; got '{device}'")


def check_base(base: str, revision: str | None = None, token: str | None = None) -> str | None:
    """Whether a base is there: a directory, or a model on the Hub or in the cache; its commit.

    What transformers says of a name that leads nowhere does not tell where it was looked for.

    Raises:
        MissingFileError: neither a directory here nor the form of a Hub ID.
        IncompatibleBaseError: it is a dataset or a space.
        huggingface_hub.errors: no such repository or revision, private, gated, not in the cache, …
    """
    try:
        return hub.resolve_commit(base, revision, token=token)
    except NotAValueAdapterError:
        raise IncompatibleBaseError(
            f"base model '{base}' is a dataset or a space on the Hub; name a causal language model"
        ) from None


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
