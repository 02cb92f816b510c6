"""What the Hub derives from a repository's files: card, tags, library, file list; serves nothing itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from testkit.local_hub.objects import Commit, File, lfs_pointer
from testkit.local_hub.repository import Repository
from testkit.local_hub.store import Store

_RELATIONS = ("adapter", "finetune", "merge", "quantized", "source")
_DETAILS = ("siblings", "cardData", "config", "sha", "usedStorage", "baseModels")
"""What a listing leaves out unless asked for."""


def front_matter(text: str) -> Any:
    """The YAML value that a model card starts with; None without one.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def check_card(text: str) -> tuple[list[str], list[str]]:
    """What is wrong with a model card's metadata: errors, and warnings."""
    try:
        metadata = front_matter(text)
    except yaml.YAMLError as error:
        return [str(error)], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(metadata, dict):
        return ["yaml metadata must be an object"], []
    strings = ("library_name", "pipeline_tag")
    errors = [f'"{key}" must be a string' for key in strings if not isinstance(metadata.get(key, ""), str)]
    if metadata.get("base_model_relation", "adapter") not in _RELATIONS:
        errors.append('"base_model_relation" must be one of [adapter, merge, quantized, finetune]')
    return errors, []


def describe(repository: Repository, commit: Commit, store: Store, *, blobs: bool = False) -> dict[str, Any]:
    """All that the Hub says about a repository at a commit; `blobs` adds sizes and ids of files."""
    tree = commit.tree
    card, config = _card(tree, store), _config(tree, store)
    library = card.get("library_name") or _library(tree, config)
    bases = _as_list(card.get("base_model"))
    relation = card.get("base_model_relation") or ("adapter" if "adapter_config.json" in tree else "finetune")
    return {
        "_id": repository.internal_id,
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": commit.oid,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": repository.downloads,
        "likes": 0,
        "createdAt": repository.created,
        "lastModified": commit.date,
        "tags": list(dict.fromkeys(_tags(card, tree, library, relation))),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": library,
        "cardData": card,
        "config": config,
        "model-index": card.get("model-index"),
        "usedStorage": sum(file.size for file in tree.values()),
        "baseModels": {"relation": relation, "models": [{"id": base} for base in bases]} if bases else None,
        "siblings": [_sibling(path, file, blobs) for path, file in sorted(tree.items())],
    }


def choose(description: Mapping[str, Any], expand: Sequence[str]) -> dict[str, Any]:
    """Of a description, what the client asked for."""
    return {key: description.get(key) for key in ("_id", "id", *expand)}


def summarize(description: Mapping[str, Any]) -> dict[str, Any]:
    """Of a description, what a listing shows."""
    return {key: value for key, value in description.items() if key not in _DETAILS}


def lfs_size(file: File) -> dict[str, int]:
    """A large file's size and its pointer's, as the Hub's answers have them."""
    return {"size": file.size, "pointerSize": len(lfs_pointer(file.lfs or "", file.size))}


def _card(tree: Mapping[str, File], store: Store) -> dict[str, Any]:
    """The card's metadata; empty where it is missing or wrong."""
    if "README.md" not in tree:
        return {}
    try:
        card = front_matter(store.read(tree["README.md"]).decode("utf-8", "replace"))
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def _config(tree: Mapping[str, File], store: Store) -> dict[str, Any]:
    """What the Hub takes from the configurations of transformers and peft."""
    config = _json_file("config.json", tree, store)
    chosen: dict[str, Any] = {key: config[key] for key in ("architectures", "model_type") if key in config}
    if "adapter_config.json" in tree:
        adapter = _json_file("adapter_config.json", tree, store)
        chosen["peft"] = {key: adapter.get(key) for key in ("base_model_name_or_path", "task_type")}
    return chosen


def _json_file(path: str, tree: Mapping[str, File], store: Store) -> dict[str, Any]:
    """The object in a JSON file; empty where it is missing or wrong."""
    if path not in tree:
        return {}
    try:
        value = json.loads(store.read(tree[path]))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _library(tree: Mapping[str, File], config: Mapping[str, Any]) -> str | None:
    """The library that the files tell, where the card does not."""
    if "adapter_config.json" in tree:
        return "peft"
    return "transformers" if "model_type" in config else None


def _tags(card: Mapping[str, Any], tree: Mapping[str, File], library: str | None, relation: str) -> Iterator[str]:
    if library:
        yield library
    if any(path.endswith(".safetensors") for path in tree):
        yield "safetensors"
    yield from _as_list(card.get("tags"))
    for key, prefix in (("datasets", "dataset"), ("base_model", "base_model"), ("license", "license")):
        yield from (f"{prefix}:{value}" for value in _as_list(card.get(key)))
    yield from (f"base_model:{relation}:{base}" for base in _as_list(card.get("base_model")))
    yield from _as_list(card.get("language"))
    yield "region:us"


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    lfs = {"lfs": {"sha256": file.lfs, **lfs_size(file)}} if file.lfs else {}
    return {"rfilename": path, "size": file.size, "blobId": file.oid, **lfs}


def _as_list(value: Any) -> list[Any]:
    """A card's value that may be one, many or none."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
