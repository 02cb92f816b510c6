"""What differs between the versions of the libraries beneath us; all other code speaks the names of the newest.

What can be asked is asked, and not told by a version: what a model calls its cache stands in its own signature, which
code from the Hub writes as it likes, whatever is installed. Importing this module imports none of those libraries.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from valueadapter.errors import MissingExtraError

OLDEST = {"transformers": (5, 16), "huggingface-hub": (1, 5)}
"""What is refused at import below: caches would pass models unused, and logits be wrong without an error."""
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What models call the state that they go on from: transformers from 5.24 on; before; Mamba and its kind, before."""
Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def installed(package: str) -> tuple[int, int]:
    """Major and minor version of a package; (0, 0) where it is not installed.

    Args:
        package: its name on the package index.
    """
    try:
        found = re.match(r"v?(\d+)(?:\.(\d+))?", version(package) or "")
    except PackageNotFoundError:
        return 0, 0
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def check_installed() -> None:
    """Refuses versions that are not supported.

    Raises:
        ImportError: one is older.
    """
    for package, oldest in OLDEST.items():
        if (0, 0) < installed(package) < oldest:
            needed = ".".join(map(str, oldest))
            raise ImportError(
                f"valueadapter needs {package} {needed} or newer, and {version(package)} is installed; "
                f"run: pip install --upgrade '{package}>={needed}'"
            )


def require(extra: str, *modules: str) -> None:
    """Whether the modules of an extra are installed, asked before any work; imports none of them.

    Args:
        extra: its name in pyproject.toml.
        modules: what it must bring.

    Raises:
        MissingExtraError: some are not; the message says what to install.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise MissingExtraError(f"{' and '.join(missing)} not installed: pip install 'valueadapter[{extra}]'")


# -- transformers: what a cache is called ------------------------------------------------------------------------------
@functools.cache
def carried() -> str:
    """By what name `generate` carries a cache from step to step, and an output of a model gives it."""
    from transformers import GenerationMixin

    taken = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return next(name for name in CACHE_NAMES if name in taken)


def cache_name(taken: frozenset[str]) -> str:
    """By what name a function takes a cache.

    Args:
        taken: the names of its parameters; one that hides it among others hands it on by the installed name.
    """
    return next((name for name in CACHE_NAMES if name in taken), carried())


def cache_in(made: Mapping[str, Any]) -> Any:
    """The cache in what a model or its preparation gives, by whatever name; None where there is none."""
    held = {*made.keys()}  # an output of transformers complains when it is asked for an older name
    return next((made[name] for name in CACHE_NAMES if name in held and made[name] is not None), None)


def renamed(arguments: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Arguments in which a cache, by whatever name it came, has the name `to`.

    Raises:
        TypeError: caches came by two names.
    """
    given = [name for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) > 1:
        raise TypeError(f"a cache came as {' and as '.join(f'`{name}`' for name in given)}; pass one of them")
    rest = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    return {**rest, to: arguments[given[0]]} if given else rest


def cache_by_any_name(function: Function) -> Function:
    """Has a method that takes `cache` take it by every name, and tell transformers' inspections the installed one."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **renamed(kwargs, "cache"))

    own = inspect.signature(function)
    named = [one.replace(name=carried()) if name == "cache" else one for name, one in own.parameters.items()]
    call.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]  # inspect reads it
    return cast(Function, call)


# -- huggingface-hub: what it is built on, and what its cache remembers ------------------------------------------------
def http() -> ModuleType:
    """The HTTP library whose errors the Hub client raises: httpx2 from its version 2 on, httpx before."""
    return importlib.import_module("httpx2" if installed("huggingface-hub") >= (2, 0) else "httpx")


def unresolved() -> type[Exception]:
    """What the Hub client raises for a revision of which it can learn no commit; before 1.31, as for any file."""
    from huggingface_hub import errors

    return getattr(errors, "RevisionResolutionError", errors.LocalEntryNotFoundError)


def cached_tree(repo_id: str, commit: str, cache_dir: str | Path | None) -> dict[str, int] | None:
    """Path -> size in bytes of every file of a commit, where the Hub client's cache remembers it (from 1.31 on).

    Args:
        repo_id: the repository.
        commit: its hash.
        cache_dir: the cache; None for the client's own.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if not hasattr(huggingface_hub, "get_cached_repo_tree"):
        return None
    try:
        tree = huggingface_hub.get_cached_repo_tree(repo_id, revision=commit, cache_dir=cache_dir)
    except errors.CachedRepoTreeNotFoundError:
        return None
    return {file.path: file.size for file in tree}
