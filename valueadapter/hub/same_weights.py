"""Whether a directory holds the very model that lies on the Hub, so that its commit can stand for it.

Compares bytes by their checksums and the settings of `config.json`; downloads no weights, and loads none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from valueadapter.artifact import file_names
from valueadapter.compat import http
from valueadapter.hub.failures import Asked, readable

_OF_THE_FILE = ("_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "use_cache")
"""Keys of a configuration that say nothing of what is computed."""


class Found(NamedTuple):
    """What a comparison has found."""

    commit: str | None
    """The commit at which the repository holds the same model; None where it does not, or nobody knows."""
    reason: str
    """Why not, as part of a sentence; empty with a commit."""


def commit_of_same(
    directory: Path, repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> Found:
    """The commit of a repository whose model is that of a directory: the same weights, byte for byte, set the same.

    Args:
        directory: with config.json and safetensors.
        repo_id: Hub ID that the model may have come from.
        revision: branch, tag or commit to compare with; the default branch by default.
        token: Hub token.
    """
    from huggingface_hub.errors import HFValidationError

    asked = Asked(repo_id, revision, token)
    try:
        with readable(asked):
            info = asked.api.model_info(repo_id, revision=revision, files_metadata=True)
            theirs = {one.rfilename: one for one in info.siblings or [] if _is_weights(one.rfilename)}
            if difference := _difference(directory, theirs):
                return Found(None, difference)
            config = Path(asked.api.hf_hub_download(repo_id, file_names.CONFIG, revision=info.sha))
    except (http().HTTPError, OSError, HFValidationError) as error:
        return Found(None, " ".join(str(error).split()))
    if _settings(config.parent) != _settings(directory):
        return Found(None, f"{file_names.CONFIG} says other things there")
    return Found(str(info.sha), "")


def _is_weights(name: str) -> bool:
    return "/" not in name and name.startswith("model") and name.endswith(file_names.SAFETENSORS)


def _difference(directory: Path, theirs: dict[str, Any]) -> str:
    """What is first found to differ; empty where every file is the same."""
    mine = {path.name: path for path in directory.iterdir() if _is_weights(path.name)}
    if not mine:
        return f"the directory holds no model{file_names.SAFETENSORS}"
    if different := sorted(mine.keys() ^ theirs.keys()):
        return f"'{different[0]}' is only {'here' if different[0] in mine else 'there'}"
    for name, path in mine.items():  # all sizes first, which cost nothing
        if path.stat().st_size != theirs[name].size:
            return f"'{name}' has {path.stat().st_size:,} bytes here and {theirs[name].size or 0:,} there"
    for name, path in mine.items():
        if theirs[name].lfs is None:
            return f"the Hub has no checksum of '{name}'"
        if _sha256(path) != theirs[name].lfs.sha256:
            return f"'{name}' holds other weights there"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settings(directory: Path) -> dict[str, Any]:
    """What a model's configuration sets, with the defaults of its kind; `save_pretrained` writes it in other words."""
    from transformers import AutoConfig

    said = AutoConfig.from_pretrained(directory, trust_remote_code=False).to_dict()
    return {key: value for key, value in said.items() if key not in _OF_THE_FILE}
