"""Writes a copy of an adapter that brings the code to run it without this library; knows neither models nor the Hub.

The code lies in `hub_templates/` as plain Python and is copied, never run, here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Literal, get_args

from valueadapter.artifact import card, file_names, verification
from valueadapter.artifact.atomic_directory import copy_adapter, staged
from valueadapter.artifact.card_results import read_card_results
from valueadapter.artifact.config import ValueAdapterConfig
from valueadapter.artifact.cost import cost_in
from valueadapter.errors import ConfigError

Target = Literal["custom_generate", "logits_processor"]
"""What the code is for, and the name of the directory that it lies in."""
REQUIREMENTS = "requirements.txt"
_FILES = {
    file_names.CUSTOM_GENERATE: {"generate.py": "generate.py", "value_networks.py": "value_networks.py"},
    file_names.LOGITS_PROCESSOR: {"__init__.py": "logits_processor.py", "value_networks.py": "value_networks.py"},
}
_NEEDED = ("torch>=2.6", "transformers>=5.16", "huggingface-hub>=1.5", "safetensors>=0.8")
_NEEDED_BY_LORA = "peft>=0.19"
_NAME_LINE = re.compile(r"^ADAPTER = .*$", re.MULTILINE)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def export(directory: Path, output: Path, *, to: Target, repo_id: str | None = None) -> list[str]:
    """Copies an adapter and adds the code that runs it without this library.

    Args:
        directory: a verified adapter.
        output: new, empty, or an earlier adapter's, which is replaced as a whole.
        to: `custom_generate`, for `model.generate(…, custom_generate=…, trust_remote_code=True)`, or
            `logits_processor`, a `LogitsProcessor` for loops that take nothing else.
        repo_id: `user/name` under which the copy will be published; `valueadapter push` puts it in by itself.

    Returns:
        Path inside `output` of every file of the code.

    Raises:
        ConfigError: an unknown `to`, a `repo_id` that is none, or an adapter that the code cannot run.
        ArtifactError: `output` holds something else that would be lost.
    """
    if to not in get_args(Target):
        raise ConfigError(f"expected custom_generate or logits_processor to export to; got '{to}'")
    if repo_id is not None and not _HUB_ID.fullmatch(repo_id):
        raise ConfigError(f"expected a Hub ID of the form user/name; got '{repo_id}'")
    config = verification.read_config(directory)
    if config.connection != "residual":
        raise ConfigError(
            f"the connection of this adapter is '{config.connection}', and the exported code runs networks that read "
            "tokens only ('residual'); its users need this library"
        )
    with staged(output.resolve()) as staging:
        _copy(directory, staging, config, runs_alone=to == file_names.CUSTOM_GENERATE)
        folder = staging / to
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, template in _FILES[to].items():
            text = (card.templates() / template).read_text(encoding="utf-8")
            (folder / name).write_text(named(text, repo_id), encoding="utf-8")
        needed = [*_NEEDED, *([_NEEDED_BY_LORA] if _has_lora(directory, config) else [])]
        (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
        verification.verify(staging)
        return [f"{to}/{path.name}" for path in sorted(folder.iterdir())]


def code_in(directory: Path, repo_id: str) -> dict[str, bytes]:
    """Path -> content of the exported code in an adapter's directory, as it is published under a Hub ID."""
    found = {}
    for folder in file_names.CODE_FOLDERS:
        for name in (*_FILES[folder], REQUIREMENTS):
            path = directory / folder / name
            if path.is_file():
                found[f"{folder}/{name}"] = named(path.read_text(encoding="utf-8"), repo_id).encode()
    return found


def named(code: str, repo_id: str | None) -> str:
    """The code, with the Hub ID under which its adapter is published; None for an adapter that has none."""
    line = f"ADAPTER = {json.dumps(repo_id)}" if repo_id is not None else "ADAPTER = None"
    return _NAME_LINE.sub(line, code)


def _copy(source: Path, target: Path, config: ValueAdapterConfig, *, runs_alone: bool) -> None:
    """Everything of an adapter; a card that a person wrote stays, in `target` before `source`."""
    copy_adapter(source, target)
    place = target / file_names.CARD
    if not place.exists() or card.is_generated(place.read_text(encoding="utf-8")):
        runs_alone = runs_alone or (source / file_names.CUSTOM_GENERATE).is_dir()
        shown = read_card_results(target).true_to(config.evaluation)
        cost = cost_in(target, config)
        text = card.render_card(config, repo_id=None, runs_alone=runs_alone, cost=cost, shown=shown)
        place.write_text(text, encoding="utf-8")


def _has_lora(directory: Path, config: ValueAdapterConfig) -> bool:
    paths = [network.path for network in config.networks if network.path is not None]
    return any((directory / path / file_names.PEFT_CONFIG).exists() for path in paths)
