"""What an adapter costs beside the base, told from its small files: download, memory, passes; opens no weights.

Networks that name the same model at the same commit, with whatever LoRA, are one body: it is downloaded and held once,
and in generation it runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valueadapter.artifact import file_names
from valueadapter.artifact.config import ValueAdapterConfig
from valueadapter.artifact.contents import files
from valueadapter.artifact.json_file import parse_object

_APART = (
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
)
"""Settings of a LoRA that is more than two matrices beside linear layers: its network runs in a pass of its own."""


_EMBEDDINGS = {"embed_tokens", "wte", "wpe", "word_embeddings", "embed_in"}
"""Layers that are no linear ones, by their names in use."""


@dataclass(frozen=True)
class Body:
    """A model of which one or more networks are made."""

    name: str
    """Hub ID, or the directory of the network in the artifact."""
    revision: str | None
    """Its commit, empty where a LoRA does not say it; None in the artifact."""
    num_networks: int
    num_passes: int
    """Per token: 1, and one more for each network that cannot speak with the others."""
    num_bytes: int | None
    """Of its weights as they are stored; None where that is not known. Those of a LoRA on it are the adapter's own."""


@dataclass(frozen=True)
class Cost:
    """What comes to a base with an adapter."""

    adapter_bytes: int
    """Of all files of the adapter."""
    lora_bytes: int
    """Of the LoRAs' weights among them."""
    bodies: tuple[Body, ...]

    @property
    def num_passes(self) -> int:
        """Passes of small models per token, beside the base's own."""
        return sum(body.num_passes for body in self.bodies)

    @property
    def download_bytes(self) -> int | None:
        """What is downloaded, each body once; None where the size of one is not known."""
        return self._with_bodies(self.adapter_bytes, [body for body in self.bodies if body.revision is not None])

    def memory_bytes(self, base: str = "", commit: str | None = None) -> int | None:
        """What is held beside the base, in the dtype in which it is stored; None where a size is not known.

        Args:
            base: Hub ID of the base: a body that it is itself is not held a second time.
            commit: the base's, where it is known.
        """
        own = [body for body in self.bodies if body.name == base and commit in (None, body.revision)]
        return self._with_bodies(self.lora_bytes, [body for body in self.bodies if body not in own])

    def to_dict(self, base: str = "", commit: str | None = None) -> dict[str, Any]:
        """As `inspect --json` shows it."""
        return {
            "download_bytes": self.download_bytes,
            "memory_bytes": self.memory_bytes(base, commit),
            "passes_per_token": self.num_passes,
            "bodies": [vars(body) for body in self.bodies],
        }

    def _with_bodies(self, own: int, bodies: list[Body]) -> int | None:
        sizes = [body.num_bytes for body in bodies]
        return None if None in sizes else own + sum(size for size in sizes if size is not None)


def cost_in(
    directory: Path, config: ValueAdapterConfig, body_bytes: Callable[[str, str], int | None] = lambda *_: None
) -> Cost:
    """As `cost_of`, of an adapter in a directory; by default asks nobody for the sizes of models elsewhere.

    Raises:
        ArtifactError: the settings of a LoRA are no JSON.
    """

    def settings(network: str) -> dict[str, Any]:
        path = directory / network / file_names.PEFT_CONFIG
        return parse_object(path.read_bytes(), path)

    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files(directory)}
    return cost_of(config, sizes, settings, body_bytes)


def cost_of(
    config: ValueAdapterConfig,
    sizes: Mapping[str, int],
    lora_settings: Callable[[str], Mapping[str, Any]],
    body_bytes: Callable[[str, str], int | None],
) -> Cost:
    """What an adapter costs.

    Args:
        config: the adapter's.
        sizes: path inside the adapter -> size in bytes.
        lora_settings: the settings of the LoRA in one of its directories.
        body_bytes: the size of a model's weights, by Hub ID and commit.
    """
    found: dict[tuple[str, str | None], list[bool]] = {}
    own: dict[str, int] = {}
    lora_bytes = 0
    for network in config.networks:
        name, revision, together = str(network.path or network.repo), network.revision, True
        if network.path is not None:
            inside = f"{network.path}/"
            weights = sum(s for n, s in sizes.items() if n.startswith(inside) and n.endswith(file_names.SAFETENSORS))
            if f"{inside}{file_names.PEFT_CONFIG}" in sizes:
                settings = lora_settings(network.path)
                name, revision = str(settings.get("base_model_name_or_path") or ""), settings.get("revision") or ""
                together = not any(settings.get(key) for key in _APART) and settings.get("bias") in (None, "none")
                together = together and not _EMBEDDINGS & {*(settings.get("target_modules") or ())}
                lora_bytes += weights
            else:
                own[name] = weights
        found.setdefault((name, revision), []).append(together)
    bodies = tuple(
        Body(
            name,
            revision,
            len(voices),
            len(voices) - max(0, sum(voices) - 1),
            own[name] if revision is None else body_bytes(name, revision) if name and revision else None,
        )
        for (name, revision), voices in found.items()
    )
    return Cost(sum(sizes.values()), lora_bytes, bodies)
