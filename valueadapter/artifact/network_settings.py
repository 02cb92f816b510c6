"""What a network's configuration may say: no code, no kernels, and sizes that its tensors have. Builds nothing.

A module is made by the numbers of its configuration, so whoever writes them could ask for any amount of memory and
time; here they are held against the shapes and layer numbers in the weight files' headers. Needs no torch: what the
architecture makes of the numbers is compared when the network is loaded, before anything is allocated.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from valueadapter.errors import ArtifactError

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor -> shape."""

_CODE: tuple[str, ...] = (
    "auto_map",
    "quantization_config",
    "kernel_config",
    "fusion_config",
    "distributed_config",
    "custom_generate",
)
_CODE += ("transformers_weights", "use_kernels", "backbone", "backbone_config", "use_timm_backbone")
"""Keys by which transformers runs code, kernels or weights from elsewhere; null and false say nothing."""
_ATTENTION = ("eager", "sdpa", "flex_attention")
_EXPERTS = ("eager", "batched_mm", "grouped_mm")
_IMPLEMENTATIONS = {
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "_attn_implementation_internal": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "_experts_implementation_internal": _EXPERTS,
}
"""What is in torch and transformers; any other name makes transformers ask for a package or for a Hub repository."""

_WIDTHS = ("vocab_size", "hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")
_NEEDED = (*_WIDTHS, *_LAYERS, "num_attention_heads", "n_head")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_inner", "ffn_hidden_size", "decoder_ffn_dim")
"""Widths inside a layer; where some layers have experts instead, the configuration names some that no layer has."""
_LOOPED = ("dory", "hrm_text", "xlstm")
"""Architectures that go through layers more than once, or count them otherwise."""
_FACTORS = re.compile(r"heads?$|head_?dim$|_rank$|experts$|^(ssm_)?state_size$|conv_kernel$|conv_kernel_dim$")
_SIZES = re.compile(r"(size|dim|heads?|layers|experts|rank|width|inner|hidden|groups|positions|position_embeddings)$")
_PARTS = re.compile(r"^num_experts_per_tok(en)?$|^moe_top_?k$|^moe_k$|^n_group$|^topk_group$")
_SHARES = re.compile(r"(dropout|_pdrop)$")
_MAY_BE_NONE = re.compile(r"experts$|expert_.*size$|shared_.*|_rank$|sliding|window|nextn|encoder|chunk|^index_")
_LARGEST = 2**31
_POSITIONS = re.compile(r"position|window|chunk|length|ngram|max_|_token_|hash|bucket|patch|image|audio")


def check_settings(config: Mapping[str, Any], shapes: Shapes, *, place: Path | str, width: int | None = None) -> None:
    """Refuses a configuration that asks for code, or whose sizes are not those of the tensors.

    Args:
        config: a network's config.json.
        shapes: of all its tensors.
        place: the file, for messages.
        width: columns of the adapter's value logits, which no network may exceed; None where unknown.

    Raises:
        ArtifactError: naming the key, what it says and what the tensors say.
    """
    _check_safe(config, place)
    kind = config.get("model_type")
    known = model_types()
    if not isinstance(kind, str) or (known and kind not in known):
        raise ArtifactError(
            f"'{place}' has model_type {kind!r:.100}, which the installed transformers does not know; install one that "
            "does, or download the adapter again"
        )
    if not shapes:
        return  # the first missing tensor says more
    tensors = _Tensors(shapes)
    for node in (config, config.get("text_config")):
        if isinstance(node, Mapping):
            _check_sizes(node, tensors, place=place, looped=kind in _LOOPED)
    text = config.get("text_config")
    columns = (text if isinstance(text, Mapping) else config).get("vocab_size")
    if width is not None and isinstance(columns, int) and columns > width:
        raise _differs(place, "vocab_size", columns, f"the adapter's config.json has value logits of {width:,} columns")


def check_lora(config: Mapping[str, Any], shapes: Shapes, *, place: Path | str) -> None:
    """The same for the configuration of a PEFT network: its ranks are those of the tensors, and it names no module.

    Raises:
        ArtifactError: naming the key.
    """
    _check_safe(config, place)
    for key in ("megatron_config", "layer_replication"):
        if config.get(key):
            raise ArtifactError(f"'{place}' asks for '{key}'; a value network has none")
    tensors, patterns = _Tensors(shapes), config.get("rank_pattern") or {}
    ranks = [("r", config["r"])] if "r" in config else []
    ranks += list(patterns.items()) if isinstance(patterns, Mapping) else [("rank_pattern", str(patterns))]
    for key, rank in ranks:
        if type(rank) is not int or not 1 <= rank <= tensors.widest:
            raise _differs(place, key, rank, f"its tensors are {tensors.widest:,} wide at most")


@functools.cache
def model_types() -> frozenset[str]:
    """The architectures that the installed transformers knows, without importing it; empty where it does not say."""
    package = importlib.util.find_spec("transformers")
    for folder in (package.submodule_search_locations if package else None) or ():
        path = Path(folder, "models", "auto", "auto_mappings.py")  # a table, made by a program
        if not path.is_file():
            continue
        spec = importlib.util.spec_from_file_location("_transformers_auto_mappings", path)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return frozenset(getattr(module, "CONFIG_MAPPING_NAMES", ()))
    return frozenset()


def check_implementations(config: Mapping[str, Any], place: Path | str) -> None:
    """Refuses a configuration by which transformers would get attention or experts from a package or a repository.

    Raises:
        ArtifactError: naming the key.
    """
    for key, value in _entries(config):
        allowed = _IMPLEMENTATIONS.get(key)
        names = value.values() if isinstance(value, Mapping) else (value,)
        if allowed and any(name is not None and name not in allowed for name in names):
            raise ArtifactError(
                f"'{key}' in '{place}' is {value!r:.100}, which is custom code; expected one of {', '.join(allowed)}"
            )


def _check_safe(config: Mapping[str, Any], place: Path | str) -> None:
    check_implementations(config, place)
    for key, value in _entries(config):
        if key in _CODE and value not in (None, False):
            raise ArtifactError(
                f"'{place}' asks for custom code, kernels or weights from elsewhere ('{key}'); a value adapter has none"
            )
        if isinstance(value, float) and not math.isfinite(value) and (key != "time_step_limit" or math.isnan(value)):
            raise ArtifactError(f"'{key}' in '{place}' is {value}; expected a finite number")
        if isinstance(value, int) and not -_LARGEST < value < 2**53:
            raise ArtifactError(f"'{key}' in '{place}' is {str(value)[:40]}…; no network has such a number")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value at any depth, with the key that it stands under."""
    rest: list[tuple[str, Any]] = [("", config)]
    while rest:
        key, value = rest.pop()
        yield key, value
        if isinstance(value, Mapping):
            rest += value.items()
        elif isinstance(value, list):
            rest += [(key, item) for item in value]


class _Tensors:
    """What the names and shapes of tensors say of a model's sizes.

    Attributes:
        sizes: every length of every axis.
        counts: how many numbered modules there are in each list of them: layers, experts, …
        widest: the largest of both.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.sizes = frozenset(size for shape in shapes.values() for size in shape)
        numbered: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for name in shapes:
            parts = name.split(".")
            general = ["*" if part.isdigit() else part for part in parts]
            for index, part in enumerate(parts):
                if part.isdecimal() and len(part) < 10:
                    numbered[tuple(general[:index])].add(int(part))
        self.counts = frozenset(len(numbers) for numbers in numbered.values())
        self.widest = max((*self.sizes, *self.counts), default=0)

    def has_half(self, size: int) -> bool:
        return self.has_factor(size) or (size % 2 == 0 and self.has_factor(size // 2))

    def has_factor(self, size: int) -> bool:
        return size in self.counts or any(other % size == 0 for other in self.sizes)


def _check_sizes(node: Mapping[str, Any], tensors: _Tensors, *, place: Path | str, looped: bool) -> None:
    mixed = any("expert" in key or "auto_adjust" in key for key in node)
    for key, value in node.items():
        if value in (None, [], {}) and key in _NEEDED:
            raise _differs(place, key, value, "expected a whole number")
        if _PARTS.search(key) and value is not None and (type(value) is not int or not 1 <= value <= tensors.widest):
            raise _differs(place, key, value, f"its tensors allow 1 to {tensors.widest:,}")
        if _SHARES.search(key) and isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise _differs(place, key, value, "expected 0 to 1")
        if not _SIZES.search(key) and key not in (*_WIDTHS, *_LAYERS) and not _FACTORS.search(key):
            continue
        if isinstance(value, list) and key.endswith("layers"):
            continue  # which layers, not how many
        for size in value if isinstance(value, list) else [value]:
            _check_size(key, size, tensors, place=place, looped=looped)
            if key in _INNER and not mixed and type(size) is int and size > 0 and not tensors.has_half(size):
                raise _differs(place, key, size, "no tensor's size is a multiple of it")
    layers, types = node.get("num_hidden_layers"), node.get("layer_types")
    if isinstance(layers, int) and isinstance(types, list) and len(types) != layers:
        raise _differs(place, "layer_types", f"a list of {len(types):,}", f"there are {layers:,} layers")


def _check_size(key: str, size: Any, tensors: _Tensors, *, place: Path | str, looped: bool) -> None:
    must = key in _WIDTHS or key in _LAYERS or _FACTORS.search(key) is not None
    if size is None or isinstance(size, (bool, Mapping)):
        if isinstance(size, bool) and must:
            raise _differs(place, key, size, "expected a whole number")
        return
    if type(size) is not int:
        if must or isinstance(size, float):
            raise _differs(place, key, size, "expected a whole number")
        return
    if size < 0 or (size == 0 and not _MAY_BE_NONE.search(key)):
        raise _differs(place, key, size, "expected 1 or more")
    if size == 0 or (_POSITIONS.search(key) and not must):
        return
    layers = ", ".join(f"{count:,}" for count in sorted(tensors.counts))
    if key in _WIDTHS and size not in tensors.sizes:
        raise _differs(place, key, size, "no tensor is of that size")
    if key in _LAYERS and size not in tensors.counts and not (looped and size <= 8 * tensors.widest):
        raise _differs(place, key, size, f"its tensors are of {layers or 'no'} layers")
    if _FACTORS.search(key) and not tensors.has_factor(size):
        raise _differs(place, key, size, "no tensor's size is a multiple of it")
    if size > max(tensors.widest, 2**16):
        raise _differs(place, key, size, f"its tensors are {tensors.widest:,} wide at most")


def _differs(place: Path | str, key: str, value: Any, truth: str) -> ArtifactError:
    return ArtifactError(f"'{key}' in '{place}' is {str(value)[:100]}, but {truth}. Download or save the adapter again")
