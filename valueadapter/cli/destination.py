"""Where a command puts an adapter about which it has measured something: a directory, its repository, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from valueadapter import hub
from valueadapter.artifact.config import ValueAdapterConfig
from valueadapter.artifact.publishing import what_becomes_public
from valueadapter.artifact.save_target import check_target
from valueadapter.cli import output
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from valueadapter.adapter.value_adapter import ValueAdapter


def check_destination(adapter: str, save_to: Path | None, *, push: bool, token: str | None) -> None:
    """Raises where the result could not be put in the end, before anything is measured.

    Args:
        adapter: Hub ID or directory of the adapter.
        save_to: directory to write to.
        push: whether to publish under the adapter's Hub ID.
        token: Hub token.

    Raises:
        ArtifactError: the directory holds something else.
        ConfigError: there is no Hub ID to publish under.
        huggingface_hub.errors: the Hub would refuse it.
    """
    if save_to is not None:
        check_target(save_to)
    if push and Path(adapter).is_dir():
        raise ConfigError(f"--push publishes under the adapter's Hub ID; '{adapter}' is a directory. Use --output")
    if push:
        hub.check_push(adapter, token=token)


def tell_what_becomes_public(config: ValueAdapterConfig, repo_id: str) -> None:
    """Says before a push, on standard error, what of somebody's data it shows to others."""
    if (line := what_becomes_public(config, repo_id)) is not None:
        output.note(line)


def put(
    measured: ValueAdapter,
    adapter: str,
    save_to: Path | None,
    *,
    push: bool,
    message: str,
    revision: str | None,
    token: str | None,
) -> dict[str, object]:
    """Saves and publishes as was asked, and returns what to say of it; `message` is the commit's."""
    done: dict[str, object] = {}
    if save_to is not None:
        with output.working(f"saving {save_to}"):
            measured.save_pretrained(save_to)
        done["written"] = str(save_to)
    if push:
        tell_what_becomes_public(measured.config, adapter)
        with output.working(f"publishing {adapter}"):
            commit = measured.push_to_hub(adapter, commit_message=message, revision=revision, token=token)
        done["published"] = commit.commit_url
    return done
