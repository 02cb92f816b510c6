"""From a verified local directory to one commit on the Hub; knows nothing of downloading adapters.

Every commit replaces the adapter that was there as a whole and leaves files that belong to nobody's adapter alone.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from valueadapter.artifact import card, file_names, publishing, standalone, verification
from valueadapter.artifact.card_results import CardResults, read_card_results
from valueadapter.artifact.config import ValueAdapterConfig, prefix_text
from valueadapter.artifact.cost import cost_in
from valueadapter.errors import ArtifactError, ConfigError, NotAValueAdapterError
from valueadapter.hub.failures import Asked, readable
from valueadapter.hub.small_files import SmallFiles

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi
    from huggingface_hub.hf_api import ModelInfo

_LOG = logging.getLogger(__name__)
# a person's own files at the root of an adapter that travel with it
_DOCUMENTS = ("", ".md", ".txt", ".cff")


@dataclass(frozen=True)
class Push:
    """How to publish an adapter."""

    commit_message: str | None = None
    """First line of the commit message; `Upload value adapter` by default."""
    commit_description: str | None = None
    """The rest of it."""
    private: bool | None = None
    """Whether a new repository is private; by default as the account's settings say."""
    token: str | bool | None = None
    """A token with write access; by default the stored one."""
    revision: str | None = None
    """Branch to push to, created if it does not exist; `main` by default."""
    create_pr: bool = False
    """Open a pull request in place of committing to the branch; needs no write access."""
    tags: tuple[str, ...] = ()
    """Tags for the model card, besides `value-adapter`."""
    overwrite_card: bool = False
    """Replace a model card that a person wrote or edited."""
    base_prefix: bool = True
    """Whether the prefix is published with the adapter: demonstrations, or text of your own, verbatim in config.json
    and in the card. Without it what was measured behind it is left out, too. Earlier commits keep what they have."""
    description: str | None = None
    """What the adapter does, in one line: the first of the card. By default what the adapter brings."""


def push(directory: Path, repo_id: str, how: Push | None = None) -> CommitInfo:
    """Publishes the adapter in `directory` in one commit, after verifying it: all of it arrives, or nothing.

    Files of the earlier adapter that this one no longer has are deleted in the same commit. A model card on the Hub
    that a person wrote or edited stays, unless `overwrite_card`; one in `directory` is published if the Hub has none.
    Code that `valueadapter export` wrote travels too, and names the repository. Hidden files and folders that are not
    part of the adapter do not travel. Whoever may read the repository reads the adapter's prefix there: see `Push`.

    Args:
        directory: what `save_pretrained` wrote.
        repo_id: `user/name`, or `name` for the account of the token; created if it does not exist.
        how: message, branch, visibility, …

    Raises:
        ArtifactError, ConfigError: what `artifact.verify` finds; the base model is named by a path of this machine;
            the repository is public and `private=True` was asked for; a card that a person wrote holds the prefix that
            is to be left out.
        NotAValueAdapterError: the repository holds something else, which this would spoil.
        huggingface_hub.errors: HfHubHTTPError without permission (403), if someone else pushed meanwhile (412), …
    """
    how = how or Push()
    config = verification.verify(directory)
    if how.base_prefix or config.base_prefix is None:
        return _push(directory, repo_id, how, config)
    with tempfile.TemporaryDirectory() as folder:
        bare = publishing.copy_without_base_prefix(directory, Path(folder))
        return _push(Path(folder), repo_id, how, bare, left_out=prefix_text(config.base_prefix))


def _push(directory: Path, repo_id: str, how: Push, config: ValueAdapterConfig, left_out: str = "") -> CommitInfo:
    """Publishes a verified adapter; no card that stays on the Hub may hold the text that is left out."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _check_base(config.base_model_name_or_path)
    _check_networks(directory, config)
    shown = _shown(directory, config, how)
    asked = Asked(repo_id, how.revision, how.token)
    with readable(asked):
        api = asked.api
        repo_id = api.create_repo(repo_id, private=how.private, exist_ok=True).repo_id
        head = _head(api, repo_id, how)
        files, made = _files(directory, config), standalone.code_in(directory, head.id) | shown.files()
        _check_ignored(api, head, [*files, *made])
        adds = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        adds += [CommitOperationAdd(name, data) for name, data in made.items()]
        if left_out:
            _check_left_out(api, head, left_out, how)
        text = _card(api, head, directory, config=config, how=how, shown=shown)
        adds += [CommitOperationAdd(file_names.CARD, text.encode())] if text is not None else []
        return api.create_commit(
            repo_id,
            [
                *adds,
                *(CommitOperationDelete(name) for name in _stale(api, head, config, {*files, *made})),
            ],
            commit_message=how.commit_message or "Upload value adapter",
            commit_description=how.commit_description,
            revision=how.revision,
            create_pr=how.create_pr,
            parent_commit=head.sha,
        )


def check_push(repo_id: str, *, token: str | bool | None = None, private: bool | None = None) -> None:
    """Asks the Hub whether `push` could publish there, so that nobody learns of it after hours of work.

    Nothing is created. A repository that exists must take commits from this token and hold an adapter or nothing; one
    that does not must be in an account that the token may create it in.

    Args:
        repo_id: `user/name`, or `name` for the account of the token.
        token: as in `Push`.
        private: as in `Push`.

    Raises:
        ConfigError: the token only reads, or the account is somebody else's, or the repository is public and
            `private=True` was asked for.
        NotAValueAdapterError: the repository holds something else, which a push would spoil.
        huggingface_hub.errors: HFValidationError for a name that is none, HfHubHTTPError without permission, …
    """
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    validate_repo_id(repo_id)
    asked = Asked(repo_id, None, token)
    with readable(asked):
        api = asked.api
        me = api.whoami(token=token)
        if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise ConfigError(f"the token of '{me['name']}' only reads, so '{repo_id}' cannot be published with it")
        whole = repo_id if "/" in repo_id else f"{me['name']}/{repo_id}"
        try:
            api.auth_check(whole, write=True, token=token)
        except RepositoryNotFoundError:
            accounts = [me["name"], *(one["name"] for one in me.get("orgs") or ())]
            if whole.split("/")[0] not in accounts:
                raise ConfigError(
                    f"'{repo_id}' does not exist, and this token creates repositories for {', '.join(accounts)} only"
                ) from None
        else:
            head = api.model_info(whole, token=token)
            _check_private(head, private)
            _networks_of_earlier(api, head)


def _check_base(base: str) -> None:
    if os.path.isabs(base) or Path(base).exists():
        raise ConfigError(
            f"base_model_name_or_path is '{base}', a path of this machine, which nobody else has; name the base's "
            "Hub ID, for instance adapter.with_config(base_model_name_or_path='user/model')"
        )


def _check_networks(directory: Path, config: ValueAdapterConfig) -> None:
    """The base of a LoRA network must be named by its Hub ID, as the adapter's base must."""
    for network in config.networks:
        if network.path is not None and (path := directory / network.path / file_names.PEFT_CONFIG).exists():
            base = str(verification.load_json(path).get("base_model_name_or_path"))
            if os.path.isabs(base) or Path(base).exists():
                raise ConfigError(
                    f"the LoRA network '{network.path}' names its base by '{base}', a path of this machine; set "
                    "base_model_name_or_path of its PEFT configuration to the base's Hub ID"
                )


def _head(api: HfApi, repo_id: str, how: Push) -> ModelInfo:
    """The commit to build on; creates the branch if there is none."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        head = api.model_info(repo_id, revision=how.revision)
    except RevisionNotFoundError:
        if how.revision is None or how.create_pr:
            raise
        api.create_branch(repo_id, branch=how.revision)
        head = api.model_info(repo_id, revision=how.revision)
    _check_private(head, how.private)
    return head


def _check_private(head: ModelInfo, private: bool | None) -> None:
    if private and not head.private:
        raise ConfigError(
            f"private=True, but '{head.id}' exists and is public; nothing was pushed. Make it private in its settings, "
            "or choose another name"
        )


def _names(head: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in head.siblings or []}


def _read(api: HfApi, head: ModelInfo, name: str) -> str:
    return Path(api.hf_hub_download(head.id, name, revision=head.sha)).read_text(encoding="utf-8")


def _files(directory: Path, config: ValueAdapterConfig) -> dict[str, Path]:
    """Path on the Hub -> local path of everything that travels, except the model card."""
    networks = _networks(config)
    found = list(directory.iterdir())
    for folder in (*networks, file_names.ALIGNMENTS, file_names.CHAT_TEMPLATES):
        found += (directory / folder).rglob("*")
    named = {path.relative_to(directory).as_posix(): path for path in found if path.is_file()}
    for name in (file_names.CARD, file_names.CARD_RESULTS, file_names.CARD_PICTURE):  # made anew
        named.pop(name, None)
    return {name: named[name] for name in sorted(named) if file_names.is_part(name, networks) or _is_document(name)}


def _is_document(name: str) -> bool:
    is_left = file_names.is_hidden(name) or file_names.is_training_state(name)
    return "/" not in name and not is_left and Path(name).suffix in _DOCUMENTS


def _networks(config: ValueAdapterConfig) -> list[str]:
    return [network.path for network in config.networks if network.path is not None]


def _check_ignored(api: HfApi, head: ModelInfo, names: list[str]) -> None:
    """The Hub leaves out, without an error, what a .gitignore in the repository names; half an adapter would arrive."""
    if ".gitignore" not in _names(head):
        return
    for line in _read(api, head, ".gitignore").splitlines():
        pattern = line.strip().strip("/")
        for name in names if pattern and not pattern.startswith(("#", "!")) else ():
            parts = name.split("/")
            if any(fnmatch(part, pattern) for part in (name, *parts)) or fnmatch(name, f"{pattern}/*"):
                raise ConfigError(
                    f"'{name}' would not arrive: .gitignore in '{head.id}' names it ({line.strip()!r}); nothing was "
                    "pushed. Remove that line on the Hub"
                )


def _stale(api: HfApi, head: ModelInfo, config: ValueAdapterConfig, files: set[str]) -> list[str]:
    """The files on the Hub that make up the earlier adapter and not this one."""
    there = _names(head)
    networks = {*_networks(config), *_networks_of_earlier(api, head)}
    return sorted({name for name in there if file_names.is_part(name, networks)} - files)


def _networks_of_earlier(api: HfApi, head: ModelInfo) -> list[str]:
    there = _names(head)
    if file_names.PEFT_CONFIG in there:
        raise _occupied(head)
    if file_names.CONFIG not in there:
        return []
    try:
        return _networks(ValueAdapterConfig.from_json(_read(api, head, file_names.CONFIG)))
    except NotAValueAdapterError:
        raise _occupied(head) from None
    except (ArtifactError, ConfigError):  # of another version or damaged: go by the usual names
        return [name.split("/")[0] for name in there if name.startswith(file_names.NETWORK)]


def _occupied(head: ModelInfo) -> ArtifactError:
    found = verification.not_an_adapter_error({name.split("/")[0] for name in _names(head)}, head.id)
    return NotAValueAdapterError(f"{found}. Pushing an adapter there would spoil it: choose another repository")


def _check_left_out(api: HfApi, head: ModelInfo, text: str, how: Push) -> None:
    """A prefix that is left out stands in no card that stays; that earlier commits have one is said."""
    there = _names(head)
    card_there = _read(api, head, file_names.CARD) if file_names.CARD in there else ""
    if text.strip() in card_there and not how.overwrite_card and not card.is_generated(card_there):
        raise ConfigError(
            f"the model card of '{head.id}' was written by hand, stays, and holds the prefix that is to be left out; "
            "nothing was pushed. Take it out of that card, or replace the card (overwrite_card=True, --overwrite-card)"
        )
    if file_names.CONFIG in there and '"base_prefix": null' not in _read(api, head, file_names.CONFIG):
        _LOG.warning(
            "Earlier commits of '%s' have a prefix, and whoever may read the repository may read those; to take it "
            "back, delete the repository and publish anew.",
            head.id,
        )


def _shown(directory: Path, config: ValueAdapterConfig, how: Push) -> CardResults:
    """What the card shows of an evaluation, and the description that was asked for."""
    found = read_card_results(directory).true_to(config.evaluation)
    return found if how.description is None else replace(found, description=how.description)


def _card(
    api: HfApi, head: ModelInfo, directory: Path, *, config: ValueAdapterConfig, how: Push, shown: CardResults
) -> str | None:
    """The card to publish, or None where the one on the Hub is a person's and stays."""
    if (
        file_names.CARD in _names(head)
        and not how.overwrite_card
        and not card.is_generated(_read(api, head, file_names.CARD))
    ):
        _LOG.warning("The model card of '%s' was written by hand and stays; overwrite_card=True replaces it.", head.id)
        _say_what_is_not_found(_read(api, head, file_names.CARD), config)
        return None
    own = directory / file_names.CARD
    if own.exists() and not card.is_generated(text := own.read_text(encoding="utf-8")):
        _say_what_is_not_found(text, config)
        return text
    runs_alone = any(name.startswith(file_names.CUSTOM_GENERATE) for name in standalone.code_in(directory, head.id))
    cost = cost_in(directory, config, lambda name, commit: SmallFiles(name, commit, token=how.token).weight_bytes())
    return card.render_card(config, repo_id=head.id, tags=how.tags, runs_alone=runs_alone, cost=cost, shown=shown)


def _say_what_is_not_found(text: str, config: ValueAdapterConfig) -> None:
    """Adapters are searched by tags; a card that a person wrote may lack them."""
    if missing := [tag for tag in card.search_tags(config) if tag not in text]:
        _LOG.warning("For others to find the adapter, add to the tags in that card: %s", ", ".join(missing))
