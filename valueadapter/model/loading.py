"""Finds and loads a base and an adapter that go together, before either is put to use."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from valueadapter import hub
from valueadapter.adapter.causal_lm import logits_width
from valueadapter.adapter.tokenizer_loading import load_tokenizer, side_of
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.errors import ConfigError, IncompatibleBaseError
from valueadapter.vocabulary.compatibility import say_how_they_meet
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary


class Loaded(NamedTuple):
    """A base and an adapter."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """The base's."""
    side: ModelVocabulary
    """The base's vocabulary, of the width that its configuration says."""
    adapter: ValueAdapter


_OF_LOADING = ("base_revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
_OF_CODE = ("trust_remote_code", "code_revision", "gguf_file")
"""For the tokenizer of a base that is loaded, too."""


def load_both(
    base: str | Path | PreTrainedModel,
    adapter: str | Path | ValueAdapter | None,
    *,
    revision: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    **kwargs: Any,
) -> Loaded:
    """Loads what is named, the adapter first, so that a pair that does not go together costs no base.

    Arguments and errors as `ValueAdapterForCausalLM.from_pretrained`.
    """
    _check_options(base, adapter, kwargs)
    for given_by_auto_model in ("config", "adapter_kwargs", "_from_auto"):
        kwargs.pop(given_by_auto_model, None)
    base_revision = kwargs.pop("base_revision", None)
    shared: dict[str, Any] = {k: kwargs.pop(k) for k in ("token", "cache_dir", "local_files_only") if k in kwargs}
    own = {k: kwargs.pop(k) for k in ("subfolder", "force_download") if k in kwargs}
    # what the base's tokenizer and configuration want as its weights do; never the adapter's, which has no code
    of_base = shared | {k: kwargs[k] for k in _OF_CODE if k in kwargs}
    if adapter is None:
        if isinstance(base, PreTrainedModel):
            raise TypeError("from_pretrained(base, adapter): the adapter is missing; use ValueAdapterForCausalLM(base)")
        adapter = base
        base = ""
    download = hub.Download(revision=revision, **shared, **own)
    with contextlib.ExitStack() as held:
        opened = None
        if not isinstance(adapter, ValueAdapter):
            opened = held.enter_context(hub.open_adapter(adapter, download))
        config = opened.config if opened is not None else cast(ValueAdapter, adapter).config
        if not base:
            base = config.base_model_name_or_path
            base_revision = base_revision or config.base_model_revision
        if isinstance(base, PreTrainedModel):
            tokenizer = tokenizer or find_tokenizer(base.name_or_path, **of_base)
            width = logits_width(base)
        else:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(base, revision=base_revision, **of_base)
            width = AutoConfig.from_pretrained(base, revision=base_revision, **of_base).get_text_config().vocab_size
        theirs = side_of(tokenizer, width)
        if opened is not None:
            mine = load_tokenizer(opened)
            name = str(base if isinstance(base, (str, Path)) else base.name_or_path)
            say_how_they_meet(mine.side, theirs, name, opened.alignments, connection=config.connection)
            adapter = ValueAdapter.from_verified(opened, download, tokenizer=mine)
    if isinstance(base, (str, Path)):
        base = AutoModelForCausalLM.from_pretrained(base, revision=base_revision, **shared, **kwargs)
    return Loaded(base, tokenizer, theirs, cast(ValueAdapter, adapter))


def _check_options(base: object, adapter: object, options: Mapping[str, Any]) -> None:
    """Refuses what would have no effect.

    Raises:
        ConfigError: a configuration of PEFT's, or options for loading a base that is loaded.
    """
    if hasattr(options.get("config"), "peft_type"):
        raise ConfigError(
            f"config is a {type(options['config']).__name__} of PEFT's, and a value adapter brings its configuration "
            "itself; leave config out"
        )
    unused = [name for name in options if name not in (*_OF_LOADING, *_OF_CODE)]
    if isinstance(base, PreTrainedModel) and adapter is not None and unused:
        raise ConfigError(
            f"{', '.join(unused)} would have no effect: the base is loaded already, and networks take its device and "
            f"dtype. Leave {'it' if len(unused) == 1 else 'them'} out, or name the base by its Hub ID"
        )


def find_tokenizer(name: str, **download: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that a model's name leads to.

    Raises:
        IncompatibleBaseError: none does.
    """
    try:
        return AutoTokenizer.from_pretrained(name, **download)
    except (OSError, ValueError) as error:
        raise IncompatibleBaseError(
            f"the tokenizer of base model '{name}' was not found ({type(error).__name__}), so its vocabulary "
            "cannot be compared with the adapter's. Pass it: tokenizer=AutoTokenizer.from_pretrained(...)"
        ) from error
