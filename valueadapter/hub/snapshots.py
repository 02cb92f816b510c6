"""One commit of a Hub repository in the client's cache: which one, and its files; knows nothing of their content."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from valueadapter.artifact.config.parts import COMMIT
from valueadapter.compat import cached_tree, http
from valueadapter.errors import NotAValueAdapterError
from valueadapter.hub.failures import Asked
from valueadapter.version import __version__

_LOG = logging.getLogger(__name__)


def resolve(asked: Asked) -> str:
    """The commit to read; the one that the cache knows where the Hub cannot say."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if asked.local_files_only or COMMIT.fullmatch(asked.revision or ""):
        return _remembered(asked)
    api = asked.api
    try:
        return str(api.model_info(asked.repo_id, revision=asked.revision).sha)
    except RepositoryNotFoundError:
        for kind in ("dataset", "space"):
            if api.repo_exists(asked.repo_id, repo_type=kind):
                raise NotAValueAdapterError(f"'{asked.repo_id}' is a {kind} repository, not a value adapter") from None
        raise
    except (http().TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if asked.force_download or (400 <= status < 500 and status != 429):
            raise
        return _remembered(asked, error)


def _remembered(asked: Asked, reason: Exception | None = None) -> str:
    """The commit that the cache has for a revision, which may be one itself."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if COMMIT.fullmatch(asked.revision or ""):
        return str(asked.revision)
    if not (ref := _ref(asked)).is_file():
        raise LocalEntryNotFoundError(f"there is no '{ref}'") from reason
    if reason is not None:
        _LOG.warning("The Hub gave no answer (%s); using '%s' from the cache.", type(reason).__name__, asked.repo_id)
    return ref.read_text(encoding="utf-8").strip()


def _ref(asked: Asked) -> Path:
    """The file in which the Hub client notes a revision's commit."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=asked.repo_id, repo_type="model")
    return Path(asked.cache).expanduser() / folder / "refs" / (asked.revision or constants.DEFAULT_REVISION)


def remember(asked: Asked, commit: str) -> None:
    """Makes `commit` what the cache gives for this revision.

    The Hub client does so before it downloads; after a download that broke off, the cache would then give neither the
    earlier adapter nor the new one.
    """
    ref = _ref(asked)
    if asked.revision == commit or (ref.is_file() and ref.read_text(encoding="utf-8") == commit):
        return
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f".{ref.name}.{os.getpid()}")
        new.write_text(commit, encoding="utf-8")
        new.replace(ref)
    except OSError as error:  # a cache that is read-only or full still serves this time
        _LOG.warning("'%s' was not noted in the cache (%s).", asked.repo_id, error)


def snapshot(asked: Asked, *, commit: str, patterns: Sequence[str]) -> Path:
    """Downloads what matches into the cache. Says nothing and asks nobody if it is all there.

    A Hub client before 1.31 cannot tell, and asks.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def get(local_files_only: bool, force_download: bool) -> Path:
        root = snapshot_download(
            asked.repo_id,
            revision=commit,
            token=asked.token,
            cache_dir=asked.cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(patterns),
            library_name="valueadapter",
            library_version=__version__,
        )
        return Path(root)

    # without a listing the client takes any folder in the cache for a complete one
    asks = not (asked.force_download or asked.local_files_only)
    if asks and cached_tree(asked.repo_id, commit, asked.cache_dir) is not None:
        try:
            return get(local_files_only=True, force_download=False)
        except LocalEntryNotFoundError:
            pass
    return get(asked.local_files_only, asked.force_download)


def sizes_at(asked: Asked, commit: str) -> dict[str, int]:
    """Path -> size in bytes of every file of a commit that `snapshot` was called for."""
    listing = cached_tree(asked.repo_id, commit, asked.cache_dir)
    if listing is None and not asked.local_files_only:  # a cache that another tool filled, or a client keeps none
        listing = _listed(asked, commit)
    return sizes_in(snapshot(asked, commit=commit, patterns=[])) if listing is None else listing


def _listed(asked: Asked, commit: str) -> dict[str, int] | None:
    """The same, as the Hub says it; None where it cannot be asked."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = asked.api.model_info(asked.repo_id, revision=commit, files_metadata=True)
    except (http().TransportError, OfflineModeIsEnabled, HfHubHTTPError):
        return None
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def sizes_in(directory: Path) -> dict[str, int]:
    """Path -> size in bytes of every file in a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
