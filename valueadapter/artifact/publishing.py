"""What a published adapter shows of somebody's data, and the same adapter without it; knows nothing of the Hub.

An adapter's weights aside, that is its prefix: demonstrations, or a text of one's own, verbatim in two files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from valueadapter.artifact import card, file_names, verification
from valueadapter.artifact.atomic_directory import copy_adapter
from valueadapter.artifact.card_results import read_card_results
from valueadapter.artifact.config import ValueAdapterConfig, prefix_size, prefix_text
from valueadapter.errors import ArtifactError


def what_becomes_public(config: ValueAdapterConfig, repo_id: str) -> str | None:
    """What of somebody's data can be read in a repository with this adapter, and how to avoid it; None for nothing.

    Args:
        config: of the adapter that is about to be published.
        repo_id: where.
    """
    if config.base_prefix is None:
        return None
    return (
        f"whoever may read '{repo_id}' will read the adapter's prefix there, verbatim, in {file_names.CONFIG} and "
        f"{file_names.CARD}: {prefix_size(config.base_prefix, config.stop_strings)}. To keep your data to yourself: "
        "valueadapter push --no-base-prefix leaves the prefix out, valueadapter train --base-prefix-examples 0 trains "
        "without one"
    )


def without_base_prefix(config: ValueAdapterConfig) -> ValueAdapterConfig:
    """The adapter's configuration without its prefix, and without what was measured behind it."""
    return replace(config, base_prefix=None, stop_strings=(), weights=(), evaluation=())


def copy_without_base_prefix(source: Path, target: Path) -> ValueAdapterConfig:
    """Copies a verified adapter to an empty directory, without its prefix; the configuration there.

    Args:
        source: a verified adapter.
        target: an empty directory.

    Raises:
        ArtifactError: its model card was written or edited by a person and holds the prefix.
    """
    config = verification.read_config(source)
    copy_adapter(source, target)
    own = target / file_names.CARD
    if own.exists():
        text = own.read_text(encoding="utf-8")
        if card.is_generated(text):
            own.unlink()  # a push writes it anew
        elif config.base_prefix is not None and prefix_text(config.base_prefix).strip() in text:
            raise ArtifactError(
                f"'{source / file_names.CARD}' was edited by hand and holds the prefix, which would be published with "
                "it; take the prefix out of that file, or remove the file: a push then writes a card without"
            )
    config = without_base_prefix(config)
    shown = read_card_results(target).true_to(config.evaluation)
    for name in (file_names.CARD_RESULTS, file_names.CARD_PICTURE):
        (target / name).unlink(missing_ok=True)
    for name, content in shown.files().items():
        (target / name).write_bytes(content)
    (target / file_names.CONFIG).write_text(config.to_json(), encoding="utf-8")
    verification.verify(target)
    return config
