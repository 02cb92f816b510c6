"""Writes a directory that vLLM serves: adapters at fixed weights on one base, all of one vocabulary; runs no model.

The base, and bodies that a Hub ID names, stay where they are: vLLM loads them itself. The prefix becomes what the
served tokenizer begins every text with, so that the engine reads it once and keeps it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from valueadapter import hub
from valueadapter.adapter.causal_lm import longest_text
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.atomic_directory import replace_directory
from valueadapter.artifact.config import Prefix, Weights
from valueadapter.artifact.config.number import finite
from valueadapter.errors import ArtifactError, ConfigError, IncompatibleBaseError, UnsupportedModeError
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.forward.stops import beginning_with, stop_tokens
from valueadapter.hub.small_files import SmallFiles, base_side
from valueadapter.model.served_networks import IN_TRANSFORMERS, ServedNetworks
from valueadapter.model.served_tokenizer import ServedTokenizer
from valueadapter.serving.directory import DRAFT, KEY, SCALE_KEY, WEIGHTS, Checkpoint, Served
from valueadapter.serving.plugin import ARCHITECTURE
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary


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
        max_model_len: what the engine must be told of it, where the base alone would read more.
        prefix_tokens: how many the served tokenizer begins every text with.
        chats: whether it has a chat template.
        draft: directory of the model that drafts, where one was asked for.
    """

    directory: Path
    networks: int
    context: int | None
    max_model_len: int | None
    prefix_tokens: int
    chats: bool
    draft: Path | None


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
    _check_given(adapters)
    _check_output(output)
    commit = hub.resolve_commit(base, base_revision, token=token)
    place = SmallFiles(base, commit, token=token)
    theirs = base_side(place)
    loaded = [ValueAdapter.from_pretrained(one.name, revision=one.revision, token=token) for one in adapters]
    networks = ServedNetworks()
    for given, adapter in zip(adapters, loaded, strict=True):
        _check(adapter, given.name, base, theirs, use_prefix=use_prefix)
        weights, own_scale = _recommended(adapter, base)
        networks.add(adapter, weights, own_scale if given.scale is None else float(given.scale))
    where: dict[str, Any] = {"revision": commit, "token": token}
    tokenizer = AutoTokenizer.from_pretrained(base, **where)
    prefix = _one_prefix(adapters, loaded) if use_prefix else None
    begun = ServedTokenizer(tokenizer, prefix, () if prefix is None else prefix_ids(prefix, tokenizer))
    ends = _Ends(_generation_config(base, where), tokenizer, theirs.width)
    settings = place.settings(file_names.CONFIG)
    own_context = _context([_config(base, where)])
    served = Served(
        base=Checkpoint(str(Path(base).resolve()) if Path(base).is_dir() else base, commit),
        architectures=_architectures(settings, base),
        voices=tuple(networks.voices),
        base_weight=networks.base_weight,
        end_weight=networks.end_weight,
        ends=tuple(ends.of_the_base()),
        context=_context([_config(base, where), *(model.config for model in networks.models)]),
        stop_strings=tuple(dict.fromkeys(text for adapter in loaded for text in adapter.config.stop_strings)),
        adapters=tuple(one.name for one in adapters),
    )
    _check_ends(served)
    with tempfile.TemporaryDirectory(prefix=file_names.SAVING, dir=_parent(output)) as folder:
        new = Path(folder, "new")
        _write(new, settings, served, networks.tensors)
        begun.save(new, served.context)
        ends.save(new, served.stop_strings)
        if draft:
            networks.save_draft(new / DRAFT, theirs.width)
            tokenizer.save_pretrained(new / DRAFT)
        _put(new, output)
    place_of_draft = output / DRAFT if draft else None
    shorter = served.context if own_context != served.context else None
    return VllmExport(
        output, len(networks.voices), served.context, shorter, len(begun.ids), begun.chats, place_of_draft
    )


# -- what can be served ------------------------------------------------------------------------------------------------
def _check_given(adapters: Sequence[GivenAdapter]) -> None:
    if not adapters:
        raise ConfigError("expected at least one adapter to serve; got none")
    for one in adapters:
        if one.scale is not None:
            finite(f"the scale of '{one.name}'", one.scale)


def _check_ends(served: Served) -> None:
    if served.stop_strings and not served.ends:
        raise ConfigError(
            f"answers are to end at {served.stop_strings[0]!r}, and '{served.base.name}' names no token that ends a "
            "text, neither in its tokenizer nor in its generation_config.json; give it one (eos_token)"
        )


def _check(adapter: ValueAdapter, name: str, base: str, theirs: ModelVocabulary, *, use_prefix: bool) -> None:
    config = adapter.config
    if config.connection != "residual":
        raise UnsupportedModeError(
            f"the networks of '{name}' read the base's prediction ('{config.connection}'), which vLLM does not hand "
            f"from model to model; {IN_TRANSFORMERS}"
        )
    if adapter.connect(theirs, base) is not None:
        raise IncompatibleBaseError(
            f"'{base}' has another vocabulary than the adapter '{name}' (trained on "
            f"'{config.base_model_name_or_path}'), and all models in a vLLM engine read the same tokens. Either "
            f"{IN_TRANSFORMERS}; or train an adapter on a base of that vocabulary"
        )
    if use_prefix and config.base_prefix is not None and not all(one.reads_prefix for one in config.networks):
        raise UnsupportedModeError(
            f"the base reads a prefix with '{name}' that its tuned network does not read, and all models in a vLLM "
            f"engine read the same text. Either {IN_TRANSFORMERS}; or train the adapter with a prefix that every "
            "network reads (as `valueadapter train` does by default); or serve it without prefix (--no-base-prefix)"
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


def _config(base: str, where: dict[str, Any]) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(base, **where, trust_remote_code=False)


def _context(configs: Iterable[PreTrainedConfig]) -> int | None:
    """The most positions that all models read."""
    return min((limit for one in configs if (limit := longest_text(one)) is not None), default=None)


# -- tokens that end ---------------------------------------------------------------------------------------------------
@dataclass
class _Ends:
    """The tokens that end a text of a base."""

    generation_config: GenerationConfig
    """The base's; what `stop_tokens` asks of a model."""
    tokenizer: PreTrainedTokenizerBase
    width: int
    """Columns of the base's logits."""

    def of_the_base(self) -> list[int]:
        """Its own, as `ends` of the wrapper's registry."""
        return self._known(stop_tokens(self, self.tokenizer))

    def save(self, directory: Path, stops: Sequence[str]) -> None:
        """Writes the base's settings, by which vLLM ends answers at tokens that begin with an end of the adapters, too.

        They are as the base has them; transformers would save none that it finds inconsistent.
        """
        changed = copy.deepcopy(self.generation_config)
        found = stop_tokens(self, self.tokenizer).union(*(beginning_with(stop, self.tokenizer) for stop in stops))
        changed.eos_token_id = self._known(found) or None
        (directory / file_names.GENERATION_CONFIG).write_text(changed.to_json_string(), encoding="utf-8")

    def _known(self, tokens: Iterable[int]) -> list[int]:
        return sorted(token for token in tokens if token < self.width)


def _generation_config(base: str, where: dict[str, Any]) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(base, **where)
    except OSError:  # none, as with many base models
        return GenerationConfig()


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


def _write(new: Path, settings: dict[str, Any], served: Served, tensors: dict[str, torch.Tensor]) -> None:
    new.mkdir()
    own = {"architectures": [ARCHITECTURE], KEY: served.to_json(), SCALE_KEY: 1.0}
    text = json.dumps({**settings, **own}, indent=2, ensure_ascii=False)
    (new / file_names.CONFIG).write_text(f"{text}\n", encoding="utf-8")
    (new / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _put(new: Path, output: Path) -> None:
    """Puts the new directory in the place of an earlier one, which had nothing of a person's in it."""
    target = output.resolve()
    own = {path.name for path in new.iterdir()} | {DRAFT, *file_names.TOKENIZER_FILES, file_names.CHAT_TEMPLATES}
    strange = sorted(path.name for path in target.iterdir() if path.name not in own) if target.is_dir() else []
    if strange:
        raise ArtifactError(
            f"'{output}' holds an earlier export for vLLM and '{strange[0]}', which is none of it and would be lost; "
            "move it, or choose another directory"
        )
    replace_directory(new, target)
