"""From a Hub ID or a directory to a verified local directory; knows nothing of pushing.

Reads one commit from beginning to end: first `config.json`, which says at once whether this is an adapter and which
files belong to it, then those files and no others.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from valueadapter.artifact import file_names, verification
from valueadapter.artifact.config import ValueAdapterConfig
from valueadapter.errors import ArtifactError, ConfigError, NotAValueAdapterError
from valueadapter.hub.failures import Asked, readable
from valueadapter.hub.names import ADAPTER, MODEL, is_directory
from valueadapter.hub.snapshots import remember, resolve, sizes_at, sizes_in, snapshot


@dataclass(frozen=True)
class Download:
    """How to get an adapter from the Hub.

    Raises:
        ConfigError: `force_download` and `local_files_only` together.
    """

    revision: str | None = None
    """Branch, tag or commit hash; the default branch by default."""
    subfolder: str = ""
    """Where in the repository or directory the adapter lies."""
    token: str | bool | None = None
    """A token; True for the stored one, False for none; by default the stored one, where there is one."""
    cache_dir: str | Path | None = None
    """The cache; by default the Hub client's (`HF_HUB_CACHE`)."""
    local_files_only: bool = False
    """Take it from the cache, without asking the Hub."""
    force_download: bool = False
    """Download again what the cache has."""

    def __post_init__(self) -> None:
        if self.force_download and self.local_files_only:
            raise ConfigError("force_download=True and local_files_only=True contradict each other; choose one")


@dataclass(frozen=True)
class RepositoryFacts:
    """What can be said of an adapter without its weights."""

    name: str
    """Hub ID or directory, as it was asked for."""
    commit: str | None
    """Commit hash; None for a directory."""
    files: Mapping[str, int]
    """Path inside the adapter -> size in bytes, sorted by path; hidden files left out."""
    config: ValueAdapterConfig


def fetch(name_or_path: str | Path, download: Download | None = None) -> Path:
    """A verified local directory of an adapter: what this returns is exactly what was verified.

    Args:
        name_or_path: an existing directory, which is used as it is, or a Hub ID.
        download: how to get it.

    Raises:
        MissingFileError: neither a directory nor the form of a Hub ID; or a file of the adapter is missing.
        NotAValueAdapterError: it is something else; the message says what.
        ArtifactError, ConfigError: what else `artifact.verify` finds.
        huggingface_hub.errors: RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError,
            LocalEntryNotFoundError (offline and not in the cache), HfHubHTTPError.
    """
    with open_adapter(name_or_path, download) as opened:
        if _local_directory(name_or_path, download or Download()) is not None:
            opened.check_weights()
        return opened.directory


@contextmanager
def open_adapter(name_or_path: str | Path, download: Download | None = None) -> Iterator[verification.OpenedArtifact]:
    """An adapter, opened once and verified: what is read of it is what was verified, whatever happens to its files.

    Of one in a directory here the checksums of weights are left to whoever reads these: see `artifact.open_artifact`.

    Args:
        name_or_path: an existing directory, or a Hub ID.
        download: how to get it.

    Raises:
        As `fetch`.
    """
    how = download or Download()
    directory = _local_directory(name_or_path, how)
    if directory is not None:
        with verification.open_artifact(directory) as opened:
            yield opened
        return
    asked = _asked(name_or_path, how)
    with readable(asked):
        commit, config = _first_look(asked, how.subfolder)
        directory = snapshot(asked, commit=commit, patterns=_files_of(config, how.subfolder)) / how.subfolder
    try:
        opened = verification.open_artifact(directory)
        with opened:
            opened.check_weights()
            remember(asked, commit)
            yield opened
    except ArtifactError as error:
        error.add_note(
            f"It is the download of '{asked.repo_id}' at commit {commit}; force_download=True downloads it again."
        )
        raise


def fetch_config(name_or_path: str | Path, download: Download | None = None) -> ValueAdapterConfig:
    """The configuration of an adapter, whose other files are neither downloaded nor verified.

    Raises:
        The same as `fetch`, except for what only the other files show.
    """
    how = download or Download()
    directory = _local_directory(name_or_path, how)
    if directory is not None:
        return verification.read_config(directory)
    asked = _asked(name_or_path, how)
    with readable(asked):
        return _first_look(asked, how.subfolder)[1]


def repository_facts(name_or_path: str | Path, download: Download | None = None) -> RepositoryFacts:
    """The configuration, commit and file sizes of an adapter; downloads no weights.

    Raises:
        The same as `fetch_config`.
    """
    how = download or Download()
    directory = _local_directory(name_or_path, how)
    if directory is not None:
        config = verification.read_config(directory)
        return RepositoryFacts(str(name_or_path), None, _visible(sizes_in(directory)), config)
    asked = _asked(name_or_path, how)
    with readable(asked):
        commit, config = _first_look(asked, how.subfolder)
        return RepositoryFacts(asked.repo_id, commit, _visible(sizes_at(asked, commit), how.subfolder), config)


def resolve_commit(
    repo_id: str,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> str | None:
    """The commit hash that a revision of a model repository stands for; None for a local path.

    Args:
        repo_id: Hub ID, or a directory, which has no commits.
        revision: branch, tag or commit hash; the default branch by default.
        token: Hub token.
        cache_dir: the cache that answers when the Hub cannot be reached.
        local_files_only: ask the cache only.

    Raises:
        MissingFileError: neither a directory nor the form of a Hub ID.
        NotAValueAdapterError: a dataset or a space.
        huggingface_hub.errors: the same as `fetch`.
    """
    if is_directory(repo_id, of=MODEL):
        return None
    asked = Asked(repo_id, revision, token, cache_dir, local_files_only)
    with readable(asked):
        return resolve(asked)


def _local_directory(name_or_path: str | Path, how: Download) -> Path | None:
    return Path(name_or_path, how.subfolder) if is_directory(name_or_path, of=ADAPTER) else None


def _asked(name: str | Path, how: Download) -> Asked:
    return Asked(str(name), how.revision, how.token, how.cache_dir, how.local_files_only, how.force_download)


def _first_look(asked: Asked, subfolder: str) -> tuple[str, ValueAdapterConfig]:
    """The commit and its config.json; raises if that is no value adapter."""
    commit = resolve(asked)
    # the card is in every repository, and the client complains if nothing matches
    heads = [
        glob.escape(_inside(subfolder) + name) for name in (file_names.CONFIG, file_names.PEFT_CONFIG, file_names.CARD)
    ]
    directory = snapshot(asked, commit=commit, patterns=heads) / subfolder
    try:
        if (directory / file_names.CONFIG).exists():
            return commit, verification.read_config(directory)
    except NotAValueAdapterError:
        pass  # the listing on the Hub, not the two files here, says what it is
    names = {name.split("/")[0] for name in _visible(sizes_at(asked, commit), subfolder)}
    raise verification.not_an_adapter_error(names, f"{asked.repo_id}/{subfolder}".rstrip("/"))


def _files_of(config: ValueAdapterConfig, subfolder: str) -> list[str]:
    """Patterns of the files that make up an adapter. In these a star also matches what lies deeper."""
    folders = [network.path for network in config.networks if network.path is not None]
    inside = glob.escape(_inside(subfolder))
    return [inside + pattern for pattern in (file_names.CARD, *file_names.patterns(folders))]


def _inside(subfolder: str) -> str:
    return f"{subfolder.strip('/')}/" if subfolder else ""


def _visible(sizes: Mapping[str, int], subfolder: str = "") -> dict[str, int]:
    inside = _inside(subfolder)
    below = {name.removeprefix(inside): size for name, size in sizes.items() if name.startswith(inside)}
    return {name: below[name] for name in sorted(below) if not any(p.startswith(".") for p in name.split("/"))}
