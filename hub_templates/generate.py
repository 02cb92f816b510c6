"""`generate` of a base model with this value adapter added to its logits, without the `valueadapter` package.

    logits = base + scale * ((w_base - 1) * base + sum of w_i * network_i + w_end * [end of text])

    model.generate(**inputs, custom_generate="user/adapter", trust_remote_code=True, max_new_tokens=40)

The decoding is transformers': sampling, beams, streamers, processors and stopping criteria work as with the base alone.
Written by `valueadapter export --to custom_generate`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicCache

from .value_networks import CARRIED, RECORDED, Adapter, Network, cache_name, check_scale, load, prefix_ids, tokenizer_of

ADAPTER = None
"""Hub ID under which this file was published."""
_LOADED: weakref.WeakKeyDictionary[PreTrainedModel, dict[Any, tuple[Any, Any, Adapter]]] = weakref.WeakKeyDictionary()
"""A base -> adapter and revision -> what else it was loaded for, the text of the tokenizer, and the adapter."""


def generate(
    model: PreTrainedModel,
    adapter: str | None = None,
    scale: float | None = None,
    base_prefix: Any = RECORDED,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    stop_strings: Any = RECORDED,
    **arguments: Any,
) -> Any:
    """`model.generate` with the adapter's value logits added. The adapter is loaded once for a model, and kept.

    Args:
        model: the base; transformers passes it.
        adapter: Hub ID or directory of the adapter; by default the repository that this file came from.
        scale: how strongly it acts; as recommended for this base by default, 0 is the base alone.
        base_prefix: text or chat messages that the base reads first, None for nothing; by default the adapter's own.
        tokenizer: the base's; found by the base's name by default.
        revision: branch, tag or commit of the adapter; by default the commit that this file came from.
        token, cache_dir, local_files_only: for downloads, as in `from_pretrained`.
        stop_strings: texts that end an answer too; by default those that the adapter records (a blank line, which
            stands between the examples of its prefix), None or [] for none.
        arguments: those of `generate`.

    Raises:
        ValueError: another vocabulary, no adapter, or a mode that cannot be right.
    """
    if adapter is None:
        adapter, revision = _where_this_came_from(revision)
    kept = _LOADED.setdefault(model, {})
    key, now = (str(adapter), revision), _loaded_for(model, adapter, tokenizer)
    then, text, loaded = kept.get(key, (None, None, None))
    if loaded is None or (then != now and (then is None or then[1:] != now[1:] or text != _text(tokenizer))):
        places = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        loaded = load(model, str(adapter), tokenizer=tokenizer, **places)
        kept[key] = now, _text(tokenizer), loaded
    if base_prefix is not RECORDED:
        theirs = tokenizer if tokenizer is not None else tokenizer_of(model)
        ids = prefix_ids(base_prefix, theirs) if base_prefix else ()
        loaded = dataclasses.replace(loaded, prefix=ids)
    if tokenizer is not None:
        arguments["tokenizer"] = tokenizer
    if "cache" in arguments:
        arguments[CARRIED] = arguments.pop("cache")
    scale = check_scale(loaded.scale if scale is None else scale)
    if stop_strings is RECORDED:
        named = getattr(arguments.get("generation_config"), "stop_strings", None)
        stop_strings = loaded.stop_strings if scale != 0 and not named else ()
    ends = None
    if stop_strings:
        ends = _add_ends(model, arguments, stop_strings, loaded.tokenizer if tokenizer is None else tokenizer)
    if scale == 0:
        return model.generate(**arguments)
    return with_adapter(model, loaded, scale, ends).generate(**arguments)


class AnswerEnds(StoppingCriteria):
    """Whether a row's answer has come to one of some texts. What the prompt says does not count.

    Attributes:
        begin: tokens of the prompt; the answer stands behind.
    """

    eos_token_id = None  # transformers fills finished rows up where a criterion has this

    def __init__(self, texts: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, begin: int) -> None:
        self.texts, self.tokenizer, self.begin = texts, tokenizer, begin
        self.window = max(len(text.encode()) for text in texts) + 1  # a token is a byte at least

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """(rows, seq) prompts and answers so far -> (rows,) of bool."""
        rows = input_ids[:, self.begin :][:, -self.window :].tolist()
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        said = [self.tokenizer.decode(row, **how) for row in rows]
        over = [any(text in one for text in self.texts) for one in said]
        return torch.tensor(over, dtype=torch.bool, device=input_ids.device)


def _add_ends(model: Any, arguments: dict[str, Any], texts: Any, tokenizer: PreTrainedTokenizerBase) -> AnswerEnds:
    """Puts what ends an answer among the arguments of `generate`."""
    ids = arguments.get("input_ids") if arguments.get("inputs") is None else arguments["inputs"]
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    ends = AnswerEnds(texts, tokenizer, 1 if ids is None else ids.shape[1])
    arguments["stopping_criteria"] = StoppingCriteriaList([*(arguments.get("stopping_criteria") or ()), ends])
    settings = arguments.get("generation_config")
    if all(getattr(one, "pad_token_id", None) is None for one in (settings, model.generation_config)):
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        padding = next(token for token in known if token is not None)
        if settings is None:
            arguments.setdefault("pad_token_id", padding)
        else:
            arguments["generation_config"] = copy.copy(settings)
            arguments["generation_config"].pad_token_id = padding
    return ends


class CutCandidates:
    """A candidate generator whose guesses break off before the token that brings an answer's end."""

    def __init__(self, generator: Any, ends: AnswerEnds) -> None:
        self.generator, self.ends = generator, ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def get_candidates(self, input_ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the generator's."""
        ids, logits = self.generator.get_candidates(input_ids, **kwargs)
        before = input_ids.shape[1]
        found = (end for end in range(before, ids.shape[1]) if self.ends(ids[:, : end + 1], None).any())
        end = next(found, ids.shape[1])
        return ids[:, :end], None if logits is None or end == before else logits[:, : end - before]


def _loaded_for(model: PreTrainedModel, adapter: str, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Any, ...]:
    """What a loaded adapter depends on: where the base is, its tokenizer, and of a directory when it was written."""
    config = Path(adapter, "config.json")
    written = (config.stat().st_ino, config.stat().st_mtime_ns) if config.is_file() else None
    template = None if tokenizer is None else str(tokenizer.chat_template)
    size = 0 if tokenizer is None else len(tokenizer)
    return tokenizer, size, template, model.dtype, model.device, model.name_or_path, written


def _text(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """All of a tokenizer, for one that is loaded anew at each call."""
    return None if tokenizer is None else str(tokenizer.backend_tokenizer.to_str())


def _where_this_came_from(revision: str | None) -> tuple[str, str | None]:
    """The published adapter, at the commit of this file: transformers keeps it under …/<user>/<name>/<commit>/."""
    user, name, commit = Path(__file__).parts[-5:-2]
    if ADAPTER is None or _plain(f"{user}{name}") != _plain(ADAPTER):
        published = f"'{ADAPTER}'" if ADAPTER else "no name on the Hub"
        raise ValueError(
            f"this file was exported for {published} and was loaded from elsewhere, so it does not know where its "
            "adapter is; pass the directory or Hub ID: adapter='…'"
        )
    return ADAPTER, revision or commit


def _plain(name: str) -> str:
    """A Hub ID without what transformers changes in it to make a module's name."""
    return re.sub(r"_dot_|_hyphen_|[\W_]", "", name)


def with_adapter(model: PreTrainedModel, adapter: Adapter, scale: float, ends: AnswerEnds | None = None) -> Any:
    """A view of the base whose `forward` gives the sum. It shares the base's weights, and the base stays as it is."""
    view: Any = copy.copy(model)
    for name in ("forward", "generate"):  # what others have put over the class's own; the base keeps it
        vars(view).pop(name, None)
    vars(view).update(_forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
    # past nn.Module, which would register the base
    vars(view).update(_base=model, _adapter=adapter, _scale=scale, _ends=ends)
    view.__class__ = _class_of_sums(type(model))
    return view


@functools.cache
def _class_of_sums(kind: Any) -> type:
    return type(f"{kind.__name__}WithValueAdapter", (WithValueAdapter, kind), {})


class Caches(Cache):
    """A cache for the base and one for each network; what transformers does to its layers it does to all of theirs.

    Attributes:
        parts: the base's cache, then the networks'.
        adapter: what they belong to.
        lead: tokens of the prefix that stand before the prompt; lengths are told without them.
    """

    def __init__(self, parts: list[Cache], adapter: Adapter) -> None:
        self.parts, self.adapter, self.lead = parts, adapter, 0
        self.layer_class_to_replicate, self.offloading = None, False

    @property
    def layers(self) -> list[Any]:
        """The layers of all parts; the objects themselves, not copies."""
        return [layer for part in self.parts for layer in part.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the caller's that were read."""
        return max(0, int(self.parts[0].get_seq_length(layer_idx)) - self.lead)


class WithValueAdapter:
    """Put before a model's class: base_logits + scale * value_logits in the place of the model's own logits."""

    _base: Any
    _adapter: Adapter
    _scale: float
    _ends: AnswerEnds | None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Caches | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        past_key_values: Caches | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's `forward`; the mask is that of tokens, (batch, past + seq). A cache is taken by either name."""
        if input_ids is None:
            raise ValueError("value networks read token ids; pass input_ids in the place of inputs_embeds")
        adapter, cache = self._adapter, past_key_values if cache is None else cache
        models = [self._base, *(network.model for network in adapter.networks)]
        if cache is None and use_cache:
            cache = Caches([DynamicCache(config=one.config) for one in models], adapter)
        call = _Call(adapter, input_ids, attention_mask, position_ids, cache, {"logits_to_keep": logits_to_keep})
        kwargs["return_dict"] = True
        out = call.run(0, self._base, None, kwargs)
        said = [call.run(i, network.model, network, {}).logits for i, network in enumerate(adapter.networks, 1)]
        out.logits = adapter.add(out.logits, said, self._scale)
        setattr(out, CARRIED, cache)
        return out

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_candidate_generator(*args, **kwargs)
        return found if self._ends is None else CutCandidates(found, self._ends)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        """Each model makes its own cache; `generate` carries them as one."""
        adapter = self._adapter
        lead = len(adapter.prefix)
        if generation_config.prefill_chunk_size is not None and lead:
            raise ValueError("the prefix is read with the whole prompt; leave prefill_chunk_size out")
        models = [self._base, *(network.model for network in adapter.networks)]
        for model in models:
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            extra = lead if model is self._base or adapter.networks[models.index(model) - 1].reads_prefix else 0
            if limit and generation_config.max_length and generation_config.max_length + extra > limit:
                raise ValueError(
                    f"prompt and answer may be {generation_config.max_length:,} tokens long, the prefix has {extra}, "
                    f"and {type(model).__name__} reads {limit:,} at most; lower max_new_tokens"
                )
        if (given := model_kwargs.get(CARRIED)) is not None:
            own = isinstance(given, Caches) and given.adapter.networks is adapter.networks
            if not own or given.adapter.prefix != adapter.prefix:
                raise ValueError(
                    "this cache was not made by base + this adapter, whose networks have not read its text"
                )
            given._is_user_defined = True
            return
        parts = []
        for model in models:
            made: dict[str, Any] = {}
            model._prepare_cache_for_generation(generation_config, made, mode, batch_size, max_cache_length + lead)
            parts += [one for one in made.values() if isinstance(one, Cache)]
        if any(part.is_compileable for part in parts):
            raise ValueError("static caches are not supported here; pass cache_implementation='dynamic'")
        if parts:
            model_kwargs[CARRIED] = Caches(parts, adapter)


class _Call:
    """One call's input, as each of the models reads it; with the prefix after the padding of each row, or without."""

    def __init__(
        self,
        adapter: Adapter,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        cache: Caches | None,
        keep: dict[str, Any],
    ) -> None:
        self.adapter, self.ids, self.mask, self.cache, self.keep = adapter, ids, mask, cache, keep
        if mask is not None and mask.dim() != 2:
            raise ValueError("pass the attention_mask of (batch, past + seq), which says what is padding")
        self.past = cache.get_seq_length() if cache is not None else 0
        if positions is None and mask is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        elif positions is None:
            positions = torch.arange(self.past, self.past + ids.shape[1], device=ids.device)[None]
        self.positions = positions.expand(len(ids), -1)
        self.padding = ids.new_zeros(len(ids)) if mask is None else (mask != 0).int().argmax(dim=1)
        self.lead = cache.lead if cache is not None and self.past else self._lead()
        if cache is not None:
            cache.lead = self.lead

    def _lead(self) -> int:
        """Tokens of the prefix before the prompt; the last one takes the place of a token that begins the prompt."""
        prefix, firsts = self.adapter.prefix, self.ids.gather(1, self.padding[:, None])[:, 0]
        if not prefix or self.adapter.start != prefix[0]:
            return len(prefix)
        again = firsts == self.adapter.start
        if again.any() and not again.all():
            raise ValueError("some rows begin with the token that begins a text, some do not; tokenize them alike")
        return len(prefix) - 1 if again.all() else len(prefix)

    def run(self, index: int, model: Any, network: Network | None, more: dict[str, Any]) -> Any:
        """The output of one of the models at the positions of the call; the base where there is no network."""
        ids, mask, positions = self.ids, self.mask, self.positions
        lead = self.lead if network is None or network.reads_prefix else 0
        if lead and not self.past:
            first = ids.new_tensor(self.adapter.prefix[:lead]).expand(len(ids), -1)
            if lead < len(self.adapter.prefix):
                ids = ids.scatter(1, self.padding[:, None], self.adapter.prefix[-1])
            ids = _after(self.padding, ids, first)
            counted = torch.arange(lead, device=ids.device).expand(len(ids), -1)
            positions = _after(self.padding, positions + lead, counted)
        elif lead:
            positions = positions + lead
        if lead and mask is not None:
            mask = _after(self.padding, mask, mask.new_ones(len(mask), lead))
        cached = {cache_name(model): self.cache.parts[index], "use_cache": True} if self.cache else {"use_cache": False}
        read = ids if network is None else self.adapter.ids_for(network, ids)
        inputs = {"input_ids": read, "attention_mask": mask, "position_ids": positions}
        out = model(**inputs, **cached, **self.keep, **{"return_dict": True, **more})
        if lead and not self.past and self.keep["logits_to_keep"] == 0:
            out.logits = out.logits[:, lead:]
        return out


def _after(padding: torch.Tensor, row: torch.Tensor, inserted: torch.Tensor) -> torch.Tensor:
    """(batch, n) with (batch, m) put after each row's padding: (batch, n + m)."""
    count = inserted.shape[1]
    place = torch.arange(row.shape[1] + count, device=row.device)
    begin = padding[:, None]
    within = inserted.gather(1, (place - begin).clamp(0, count - 1))
    before, shifted = torch.nn.functional.pad(row, (0, count)), torch.nn.functional.pad(row, (count, 0))
    return torch.where(place < begin, before, torch.where(place < begin + count, within, shifted))
