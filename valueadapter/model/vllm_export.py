"""Writes a directory that vLLM serves: adapters at fixed weights on one base, all of one vocabulary; runs no model.

The base, and bodies that a Hub ID names, stay where they are: vLLM loads them itself. The prefix becomes what the
served tokenizer begins every text with, so that the engine reads it once and keeps it.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from valueadapter import hub
from valueadapter.adapter.lora import merged
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.config import Prefix, Weights
from valueadapter.errors import ArtifactError, ConfigError, IncompatibleBaseError, UnsupportedModeError
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.forward.stops import beginning_with, stop_tokens
from valueadapter.hub.small_files import SmallFiles, base_side
from valueadapter.model.served_tokenizer import ServedTokenizer
from valueadapter.serving.directory import DRAFT, KEY, SCALE_KEY, WEIGHTS, Checkpoint, Served, Voice
from valueadapter.serving.plugin import ARCHITECTURE

_IN_TRANSFORMERS = "generate with transformers: ValueAdapterForCausalLM.from_pretrained(base, adapter)"


class GivenAdapter(NamedTuple):
    """An adapter that is to be served."""

    name: str
    """Hub ID or directory."""
    scale: float | None = None
    """How strongly it acts; its own recommendation by default."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""


@dataclass(frozen=True)
class VllmExport:
    """What was written.

    Attributes:
        directory: for `vllm serve`.
        networks: how many are run beside the base.
        context: the most positions that all models read; None where none says.
        prefix_tokens: how many the served tokenizer begins every text with.
        chats: whether it has a chat template.
        draft: directory of the model that drafts, where one was asked for.
    """

    directory: Path
    networks: int
    context: int | None
    prefix_tokens: int
    chats: bool
    draft: Path | None


@dataclass
class _Parts:
    """What is put together."""

    voices: list[Voice] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    tuned: list[PreTrainedModel] = field(default_factory=list)
    """The network of each voice."""
    base_weight: float = 1.0
    end_weight: float = 0.0


def export_to_vllm(
    adapters: Sequence[GivenAdapter],
    base: str,
    output: Path,
    *,
    base_revision: str | None = None,
    use_prefix: bool = True,
    draft: bool = False,
    token: str | bool | None = None,
) -> VllmExport:
    """Writes a directory for `vllm serve`.

    Args:
        adapters: one, or several that act together.
        base: Hub ID or directory of the base, whose weights vLLM loads from there.
        output: new or empty, or an earlier export, which is replaced as a whole.
        base_revision: branch, tag or commit of the base; its commit is recorded.
        use_prefix: whether texts begin with the adapters' prefix.
        draft: also write the network that counts for most, LoRA in its weights, as a model that drafts
            (vLLM's `--speculative-config`).
        token: Hub token.

    Raises:
        IncompatibleBaseError: a base of another vocabulary.
        UnsupportedModeError: networks that read another text than the base, or its prediction.
        ConfigError: no adapter, a LoRA of a kind that vLLM's layers do not have, different prefixes.
        ArtifactError: `output` holds something else.
    """
    if not adapters:
        raise ConfigError("expected at least one adapter to serve; got none")
    _check_output(output)
    commit = hub.resolve_commit(base, base_revision, token=token)
    place = SmallFiles(base, commit, token=token)
    loaded = [ValueAdapter.from_pretrained(one.name, revision=one.revision, token=token) for one in adapters]
    parts = _Parts()
    for given, adapter in zip(adapters, loaded, strict=True):
        _check(adapter, given.name, base, place, use_prefix=use_prefix)
        weights, own_scale = _recommended(adapter, base)
        _add(parts, adapter, weights, own_scale if given.scale is None else given.scale)
    where: dict[str, Any] = {"revision": commit, "token": token}
    tokenizer = AutoTokenizer.from_pretrained(base, **where)
    prefix = _one_prefix(adapters, loaded) if use_prefix else None
    served_tokenizer = ServedTokenizer(tokenizer, prefix, () if prefix is None else prefix_ids(prefix, tokenizer))
    config = place.settings(file_names.CONFIG)
    generation = _generation_config(base, where)
    stops = tuple(dict.fromkeys(text for adapter in loaded for text in adapter.config.stop_strings))
    served = Served(
        base=Checkpoint(str(Path(base).resolve()) if Path(base).is_dir() else base, commit),
        architectures=_architectures(config, base),
        voices=tuple(parts.voices),
        base_weight=parts.base_weight,
        end_weight=parts.end_weight,
        ends=_ends(generation, tokenizer, base_side(place).width),
        context=_context([config, *(voice.config for voice in parts.voices)]),
        stop_strings=stops,
        adapters=tuple(one.name for one in adapters),
    )
    with tempfile.TemporaryDirectory(prefix=file_names.SAVING, dir=_parent(output)) as folder:
        new = Path(folder, "new")
        new.mkdir()
        own = {"architectures": [ARCHITECTURE], KEY: served.to_json(), SCALE_KEY: 1.0}
        (new / file_names.CONFIG).write_text(json.dumps({**config, **own}, indent=2, ensure_ascii=False) + "\n")
        (new / WEIGHTS).write_bytes(save(parts.tensors, metadata={"format": "pt"}))
        served_tokenizer.save(new, served.context)
        _set_ends(generation, tokenizer, stops, base_side(place).width).save_pretrained(new)
        if draft:
            _save_draft(parts, tokenizer, new / DRAFT, int(base_side(place).width))
        _put(new, output)
    return VllmExport(
        directory=output,
        networks=len(parts.voices),
        context=served.context,
        prefix_tokens=len(served_tokenizer.ids),
        chats=served_tokenizer.chats,
        draft=output / DRAFT if draft else None,
    )


# -- what can be served ------------------------------------------------------------------------------------------------
def _check(adapter: ValueAdapter, name: str, base: str, place: SmallFiles, *, use_prefix: bool) -> None:
    config = adapter.config
    if config.connection != "residual":
        raise UnsupportedModeError(
            f"the networks of '{name}' read the base's prediction ('{config.connection}'), which vLLM does not hand "
            f"from model to model; {_IN_TRANSFORMERS}"
        )
    if adapter.connect(base_side(place), base) is not None:
        raise IncompatibleBaseError(
            f"'{base}' has another vocabulary than the adapter '{name}' (trained on "
            f"'{config.base_model_name_or_path}'), and all models in a vLLM engine read the same tokens. Either "
            f"{_IN_TRANSFORMERS}; or train an adapter on a base of that vocabulary"
        )
    if use_prefix and config.base_prefix is not None and not all(one.reads_prefix for one in config.networks):
        raise UnsupportedModeError(
            f"the base reads a prefix with '{name}' that its tuned network does not read, and all models in a vLLM "
            f"engine read the same text. Either {_IN_TRANSFORMERS}; or train the adapter with a prefix that every "
            "network reads (valueadapter train --lora-reads-prefix); or serve it without prefix (--no-base-prefix)"
        )


def _one_prefix(given: Sequence[GivenAdapter], adapters: Sequence[ValueAdapter]) -> Prefix | None:
    found = {a.config.base_prefix: one.name for one, a in zip(given, adapters, strict=True) if a.config.base_prefix}
    if len(found) > 1:
        raise UnsupportedModeError(
            f"the adapters {' and '.join(map(repr, found.values()))} bring different prefixes, and every model reads "
            "one text; serve them apart, or without prefix (--no-base-prefix)"
        )
    return next(iter(found), None)


def _recommended(adapter: ValueAdapter, base: str) -> tuple[Weights, float]:
    """What the adapter records for this base or its vocabulary, or for any."""
    fitted = adapter.config.weights_for(adapter.config.vocabulary.byte_fingerprint, base)
    return (adapter.config.default_weights, adapter.config.scale) if fitted is None else (fitted.weights, fitted.scale)


def _architectures(config: dict[str, Any], base: str) -> tuple[str, ...]:
    found = config.get("architectures") or ()
    if not found or found == [ARCHITECTURE]:
        raise ConfigError(
            f'the config.json of \'{base}\' must name its architecture, as in "architectures": ["LlamaForCausalLM"]; '
            f"got {list(found)}. Name a causal language model that vLLM serves"
        )
    return tuple(found)


def _context(configs: Iterable[dict[str, Any]]) -> int | None:
    """The most positions that all models read."""
    found = [
        one.get("max_position_embeddings", (one.get("text_config") or {}).get("max_position_embeddings"))
        for one in configs
    ]
    return min((int(size) for size in found if size), default=None)


# -- networks ----------------------------------------------------------------------------------------------------------
def _add(parts: _Parts, adapter: ValueAdapter, weights: Weights, scale: float) -> None:
    """Adds an adapter's terms to the sum; a body without LoRA that is there already counts for more."""
    parts.base_weight += scale * (weights.base - 1)
    parts.end_weight += scale * weights.end
    for network, spec, weight in zip(adapter.networks, adapter.config.networks, weights.networks, strict=True):
        own, factors = _plain(network), _lora_of(network)
        body = None if spec.repo is None else Checkpoint(spec.repo, spec.revision)
        if factors:
            lora = network.peft_config[network.active_adapter]
            body = Checkpoint(lora.base_model_name_or_path, lora.revision)
        same = [i for i, one in enumerate(parts.voices) if body and not factors and one.body == body]
        same = [i for i in same if not parts.voices[i].lora_ranks]
        if same:
            old = parts.voices[same[0]]
            parts.voices[same[0]] = Voice(old.config, old.weight + scale * weight, old.body)
            continue
        index = len(parts.voices)
        config = {**own.config.to_dict(), "architectures": [type(own).__name__]}
        ranks = {name: a.shape[0] for name, (a, _) in factors.items()}
        parts.voices.append(Voice(json.loads(json.dumps(config)), scale * weight, body, ranks))
        parts.tuned.append(network)
        for name, (a, b) in factors.items():
            parts.tensors |= {f"lora_{index}/{name}.lora_A": a, f"lora_{index}/{name}.lora_B": b}
        if body is None:
            parts.tensors |= {f"voice_{index}/{name}": tensor for name, tensor in _own_tensors(own).items()}


def _plain(network: Any) -> Any:
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def _lora_of(network: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module of the body -> A (rank, in) and B (out, rank), scaled; empty for a network that is no LoRA.

    Raises:
        ConfigError: a LoRA of another kind than two factors on linear layers.
    """
    if not isinstance(getattr(network, "peft_config", None), dict):
        return {}
    from peft.tuners.lora import LoraLayer

    name = network.active_adapter
    lora = network.peft_config[name]
    others = [
        option
        for option in ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "bias")
        if getattr(lora, option, None) not in (None, False, "none")
    ]
    found = {}
    for path, layer in _plain(network).named_modules():
        if isinstance(layer, LoraLayer):
            if name not in layer.lora_A or others:
                others.append(f"a LoRA on '{path}' ({type(layer).__name__})")
                continue
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            found[path] = (a.detach().contiguous(), (b.detach() * layer.scaling[name]).contiguous())
    if others or not found:
        raise ConfigError(
            f"this LoRA has {', '.join(others) or 'no layer'}, which vLLM's layers cannot carry; put it into its body "
            f"(network.merge_and_unload()) and save the adapter so, or {_IN_TRANSFORMERS}"
        )
    return found


def _own_tensors(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A network's weights as its file has them: what is tied is there once."""
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder, max_shard_size="1000GB")
        return load_file(Path(folder, file_names.WEIGHTS))


def _save_draft(parts: _Parts, tokenizer: PreTrainedTokenizerBase, place: Path, width: int) -> None:
    """The network that counts for most as a model of its own."""
    best = max(range(len(parts.voices)), key=lambda index: parts.voices[index].weight)
    model = merged(copy.deepcopy(parts.tuned[best]))
    own = int(model.get_output_embeddings().weight.shape[0])
    if own != width:
        raise UnsupportedModeError(
            f"the network that would draft has logits of {own:,} columns and the base of {width:,}, and vLLM drafts "
            "with equal ones alone; export without --draft"
        )
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


# -- tokens that end ---------------------------------------------------------------------------------------------------
@dataclass
class _Ends:
    """What `stop_tokens` asks of a model."""

    generation_config: GenerationConfig


def _generation_config(base: str, where: dict[str, Any]) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(base, **where)
    except OSError:  # none, as with many base models
        return GenerationConfig()


def _ends(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, width: int) -> tuple[int, ...]:
    return tuple(sorted(token for token in stop_tokens(_Ends(generation), tokenizer) if token < width))


def _set_ends(
    generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], width: int
) -> GenerationConfig:
    """The base's settings, by which vLLM ends answers at tokens that begin with an end of the adapters, too."""
    found = stop_tokens(_Ends(generation), tokenizer).union(*(beginning_with(stop, tokenizer) for stop in stops))
    generation.eos_token_id = sorted(token for token in found if token < width) or None
    return generation


# -- the directory -----------------------------------------------------------------------------------------------------
def _check_output(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        config = output / file_names.CONFIG
        try:
            known = KEY in json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = False
        if not known:
            raise ArtifactError(
                f"'{output}' holds something else than an earlier export for vLLM; choose an empty or a new directory"
            )
    elif output.exists() and not output.is_dir():
        raise ArtifactError(f"'{output}' is a file; expected a directory to export to")


def _parent(output: Path) -> Path:
    output.resolve().parent.mkdir(parents=True, exist_ok=True)
    return output.resolve().parent


def _put(new: Path, output: Path) -> None:
    """Puts the new directory in the place of the old one."""
    target = output.resolve()
    if target.exists():
        target.rename(new.with_name("old"))
    new.rename(target)
    shutil.rmtree(new.with_name("old"), ignore_errors=True)
