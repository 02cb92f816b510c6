"""Says in one line why the Hub did not give or take an adapter; knows nothing of what is in one.

The Hub client's exceptions keep their classes and attributes; what the client said becomes a note under the message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from valueadapter.compat import http, unresolved
from valueadapter.errors import ValueAdapterError
from valueadapter.hub.names import place_of
from valueadapter.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

PUBLIC_HUB = "https://huggingface.co"
_AGAIN = "Nothing was left half done: run again"
# how Rust prints an error of the system
_SYSTEM_ERROR = re.compile(r"(?:os error|code:) (\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Asked:
    """What the Hub is asked for and how; `repo_id` and `revision` as the user gave them."""

    repo_id: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    @property
    def cache(self) -> str | Path:
        """The cache in use."""
        from huggingface_hub import constants

        return self.cache_dir or constants.HF_HUB_CACHE

    @property
    def api(self) -> HfApi:
        """A Hub client with this token."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="valueadapter", library_version=__version__)


@contextlib.contextmanager
def readable(asked: Asked) -> Iterator[None]:
    """Rewords what the Hub client raises in the block: what happened, what was sent, what to do."""
    try:
        yield
    except (http().HTTPError, unresolved(), OSError, RuntimeError) as error:
        clearer = _clearer(error, asked)
        if clearer is error:
            raise
        raise clearer from None


def _clearer(error: Exception, asked: Asked) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, ValueAdapterError):  # some are OSErrors, and say already what is wrong
        return error
    # how the client wraps what breaks an upload of weights by LFS
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, (http().HTTPError, OSError)):
        return _clearer(error.__cause__, asked)
    # one class for one outcome, whichever step of a download found that the cache has nothing
    if isinstance(error, unresolved()) and not isinstance(error, errors.LocalEntryNotFoundError):
        return errors.LocalEntryNotFoundError(_not_cached(error, asked))
    if isinstance(error, errors.LocalEntryNotFoundError):
        _reword(error, _not_cached(error, asked))
    elif isinstance(error, errors.OfflineModeIsEnabled):
        _reword(error, f"HF_HUB_OFFLINE forbids asking the Hub at {asked.api.endpoint}, and this needs it; unset it")
    elif isinstance(error, errors.HfHubHTTPError):
        _reword(error, _explain(error, asked))
    elif isinstance(error, http().TransportError):
        broken = f"{type(error).__name__}: {error}"
        _reword(error, f"the connection to the Hub at {asked.api.endpoint} broke ({broken}). {_AGAIN}")
    elif isinstance(error, OSError) and error.errno in _FULL:
        error.strerror = f"{error.strerror} in the cache '{asked.cache}'. Make room there or pass cache_dir="
    elif isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None):
        return _of_xet(error, asked)
    return error


def _of_xet(error: Exception, asked: Asked) -> Exception:
    """hf_xet, which moves large files, is no Python: of its errors only the text says what happened."""
    from huggingface_hub import constants

    said = str(error).strip()
    code = next((int(digits) for digits in _SYSTEM_ERROR.findall(said) if int(digits) in _FULL), None)
    if code is None:
        _reword(error, f"the transfer of large files with the Hub at {asked.api.endpoint} broke ({said}). {_AGAIN}")
        return error
    place = f"the cache '{asked.cache}' or in Xet's own, '{constants.HF_XET_CACHE}'"
    full = OSError(code, f"{os.strerror(code)} in {place}. Make room there or pass cache_dir=")
    full.add_note(f"The Hub client said: {said}")
    return full


def _reword(error: Exception, message: str | None) -> None:
    if message is None:
        return
    error.add_note(f"The Hub client said: {str(error).strip()}")
    error.args = (message,)


def _explain(error: HfHubHTTPError, asked: Asked) -> str | None:
    from huggingface_hub import errors

    status, place = error.response.status_code, asked.api.endpoint
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"'{asked.repo_id}' has no revision '{asked.revision or 'main'}'; it has {_revisions(asked)}. "
            "Pass one of these, or a commit hash of 40 digits"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"'{asked.repo_id}' is gated: its owner decides who may download it. {_identity(error)}. "
            f"Ask for access at {place}/{asked.repo_id}, then log in with 'hf auth login' or pass token="
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return _no_repository(error, asked)
    if status == 401:
        return (
            f"the Hub at {place} does not accept the token that was sent (mistyped, expired or revoked). "
            f"Make a new one at {place}/settings/tokens and log in with 'hf auth login', or pass token="
        )
    if status == 403:
        return (
            f"the token that was sent may not do this to '{asked.repo_id}' ({error.server_message or 'forbidden'}). "
            f"Use a token with write access to '{asked.repo_id.partition('/')[0]}', or push under your own name"
        )
    if status == 412:
        return (
            f"someone else pushed to '{asked.repo_id}' (revision '{asked.revision or 'main'}') in the meantime; "
            "nothing was changed. Look at what they pushed, then run again"
        )
    if status == 429:
        wait = error.response.headers.get("retry-after")
        return (
            f"the Hub at {place} refuses more requests for now (429). "
            f"Wait {f'{wait} seconds' if wait else 'a few minutes'}. {_AGAIN}"
        )
    if status >= 500:
        return f"the Hub at {place} is out of order (it answered {status}). {_AGAIN}"
    return None


def _no_repository(error: HfHubHTTPError, asked: Asked) -> str:
    name = asked.repo_id
    here = f", and no directory '{place_of(name)}' on this machine"
    if "authorization" not in error.response.request.headers:
        return (
            f"there is no public model repository '{name}' on {_where(asked)}{here}. Check the spelling. If it is "
            "private, log in with 'hf auth login' or pass token=: no token was sent"
        )
    return (
        f"there is no model repository '{name}' on {_where(asked)} that the token sent may see{here}. Check the "
        "spelling; if it is private, its owner has to give you access"
    )


def _where(asked: Asked) -> str:
    """The Hub that was asked; one that is not the usual one with the reason."""
    place = asked.api.endpoint
    return place if place == PUBLIC_HUB else f"{place} (so HF_ENDPOINT says; {PUBLIC_HUB} was not asked)"


def _identity(error: HfHubHTTPError) -> str:
    sent = "authorization" in error.response.request.headers
    return "The account of the token that was sent has no access" if sent else "No token was sent"


def _revisions(asked: Asked) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        refs = asked.api.list_repo_refs(asked.repo_id)
    except HfHubHTTPError:  # the first error is the one to report
        return "others"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return ", ".join(f"'{name}'" for name in names[:8]) + (", …" if len(names) > 8 else "")


def _not_cached(error: Exception, asked: Asked) -> str:
    from huggingface_hub import is_offline_mode

    if asked.local_files_only:
        reason = "local_files_only=True forbids asking the Hub"
    elif is_offline_mode():
        reason = "HF_HUB_OFFLINE forbids asking the Hub"
    else:
        reason = f"the Hub at {asked.api.endpoint} cannot be asked ({_cause(error)})"
    return (
        f"'{asked.repo_id}' (revision '{asked.revision or 'main'}') is not complete in the cache "
        f"'{asked.cache}', and {reason}. Download it once while the Hub can be reached (nor is there a directory "
        f"'{place_of(asked.repo_id)}' on this machine)"
    )


def _cause(error: Exception) -> str:
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return f"it answered {status}" if status else type(cause).__name__
