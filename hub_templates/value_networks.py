"""What a value adapter adds to a base model's logits, without the `valueadapter` package.

Reads an artifact of format version 1 or 2 and loads its networks: of the base's vocabulary, or of one whose ids
correspond one to one. Knows nothing of decoding. Written by `valueadapter export`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

INSTALL = "`pip install valueadapter`, whose ValueAdapterForCausalLM.from_pretrained(base, adapter) can do it"
RECORDED = "the adapter's own prefix"
"""As `base_prefix`: the one that the adapter records."""
# two tokenizers that split these alike split text alike
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "line one\r\nline two\n\n\ttabbed   spaced  ",
    " leading space",
    "Cafe\u0301 caf\u00e9 \ufb01ne \u2460",
    "12345 3.14159 1,000,000",
    "def f(x):\n    return x ** 2  # comment",
    "\u6771\u4eac\u306f\u65e5\u672c \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7",
    "<|im_start|>user<|im_end|><|endoftext|><s></s><bos><eos>[INST]",
    "A\u00a0B\u200bC",
)


_CACHES = ("cache", "past_key_values", "cache_params")
"""What models call the state that they go on from; all but the first until transformers 5.24."""


def cache_name(model: Any) -> str:
    """By what name a model takes a cache."""
    return _cache_name(type(model.get_base_model() if hasattr(model, "get_base_model") else model).forward)


@functools.cache
def _cache_name(function: Any) -> str:
    taken = inspect.signature(function).parameters
    return next((name for name in _CACHES if name in taken), CARRIED)


_TAKEN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CARRIED = next(name for name in _CACHES if name in _TAKEN)
"""By what name `generate` carries a cache from step to step."""


@dataclass
class Network:
    """One summand of the value logits: an ordinary causal language model."""

    model: Any
    reads_prefix: bool
    """Whether it reads the base's prefix, as a network does that stands for the training base."""

    @property
    def width(self) -> int:
        """Columns of its logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])


@dataclass
class Weights:
    """What each summand counts for at scale 1."""

    base: float
    networks: list[float]
    end: float
    """Added to the logits of the tokens that end a text."""


@dataclass
class Adapter:
    """The networks of an adapter, ready for one base."""

    networks: list[Network]
    weights: Weights
    """As recommended for this base."""
    scale: float
    """The same; 1 but in artifacts of format version 1."""
    ends: list[int]
    """The tokens that end a text of the base."""
    base_width: int
    """Columns of the base's logits."""
    value_width: int
    """Columns of the value logits."""
    source: torch.Tensor | None
    """(base_vocab): the value token of each of the base's, -1 for none; None where the ids are the same."""
    prefix: tuple[int, ...]
    """What the base reads before the prompt, in its tokens; often nothing."""
    start: int | None
    """The token that begins every text of the base; None where there is none."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer besides the base's own tokens."""
    tokenizer: Any = None
    """The base's."""

    def ids_for(self, network: Network, ids: torch.Tensor) -> torch.Tensor:
        """The base's tokens as a network has them, (batch, seq). A token it has no row for is read as its id 0."""
        if self.source is not None:
            ids = self.source.clamp(min=0).to(ids)[ids]
        return ids.masked_fill(ids >= network.width, 0)

    def add(self, base_logits: torch.Tensor, said: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
        """base + scale · ((w_base - 1) · base + Σ w_i · network_i + w_end · [end of text]).

        Args:
            base_logits: (batch, seq, base_vocab).
            said: logits of each network, (batch, seq, vocab of its own).
            scale: how strongly the adapter acts.
        """
        weights, own = self.weights.networks, 1 + scale * (self.weights.base - 1)
        if own != 1:  # what the base rules out stays ruled out
            base_logits = (own * base_logits).where(~base_logits.isneginf(), base_logits)
        if self.weights.end:
            base_logits = base_logits.clone()
            base_logits[..., self.ends] += scale * self.weights.end
        if self.source is None:
            for logits, weight in zip(said, weights, strict=True):
                fitting = _fit(logits, base_logits.shape[-1]).to(base_logits)
                base_logits = base_logits.add(fitting, alpha=scale * weight)
            return base_logits
        summands = [weight * _fit(logits, self.value_width) for logits, weight in zip(said, weights, strict=True)]
        total = sum(summands[1:], summands[0])
        source = self.source.to(total.device)
        mean = total.mean(-1, keepdim=True)  # for tokens that the value side lacks: nothing, up to a constant
        value = torch.where(source < 0, mean, total[..., source.clamp(min=0)])
        return base_logits.add(value.to(base_logits), alpha=scale)


def load(
    base: PreTrainedModel,
    adapter: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base_prefix: Any = RECORDED,
    **download: Any,
) -> Adapter:
    """Loads an adapter for a base, on its device and in its dtype.

    Args:
        base: a causal language model.
        adapter: Hub ID or directory.
        tokenizer: the base's; found by the base's name by default.
        base_prefix: text or chat messages that the base reads first, None for nothing; the adapter's own by default.
        download: `revision`, `token`, `cache_dir`, `local_files_only`, for a Hub ID.

    Raises:
        ValueError: not an adapter that this file can read, a damaged one, or a base of another vocabulary.
    """
    folder = Path(adapter)
    if not folder.is_dir():
        patterns = ["*.json", "*.jinja", "*.safetensors"]
        folder = Path(snapshot_download(adapter, allow_patterns=patterns, **download))
    config = _read_config(folder)
    places = {key: value for key, value in download.items() if key != "revision"}
    tokenizer = tokenizer if tokenizer is not None else tokenizer_of(base, **places)
    width = int(base.get_output_embeddings().weight.shape[0])
    recorded = config["vocabulary"]
    own = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    source, fingerprint = None, recorded["byte_fingerprint"]
    if (differs := _differences(own, recorded["logits_width"], tokenizer, width)) is not None:
        found = _one_to_one(folder, own, tokenizer, width=width)
        if found is None:
            raise ValueError(
                f"the base '{base.name_or_path}' has another vocabulary than the adapter: {differs}. Networks "
                f"that read the base's text in tokens of their own need {INSTALL}"
            )
        source, fingerprint = found
    prefix = config.get("base_prefix") if base_prefix is RECORDED else base_prefix
    networks = [_load_network(folder, entry, places) for entry in config["networks"]]
    for network in networks:
        network.model.to(device=base.get_input_embeddings().weight.device, dtype=base.dtype).requires_grad_(False)
    weights, scale = _recommended(config, fingerprint, base.name_or_path)
    return Adapter(
        networks=networks,
        weights=weights,
        scale=scale,
        ends=[token for token in _ends(base, tokenizer) if token < width],
        base_width=width,
        value_width=recorded["logits_width"],
        source=source,
        prefix=prefix_ids(prefix, tokenizer) if prefix else (),
        start=tokenizer.bos_token_id if _begins_texts(tokenizer) else None,
        stop_strings=tuple(config.get("stop_strings", ())),
        tokenizer=tokenizer,
    )


def tokenizer_of(base: PreTrainedModel, **places: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that the base's name leads to."""
    try:
        return AutoTokenizer.from_pretrained(base.name_or_path, **places)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of '{base.name_or_path}' was not found, so the base's vocabulary cannot be compared "
            "with the adapter's; pass tokenizer="
        ) from error


def check_scale(scale: float) -> float:
    """The scale, where it is a finite number."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number; got {scale}")
    return float(scale)


def prefix_ids(prefix: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of a prefix that more text follows: text, or messages by the base's chat template."""
    if not isinstance(prefix, str):
        if not tokenizer.chat_template:
            raise ValueError(
                "the base prefix is a chat, and the base's tokenizer has no chat template; pass it as text"
            )
        text = tokenizer.apply_chat_template(list(prefix), tokenize=False)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = [tokenizer.bos_token_id] if _begins_texts(tokenizer) else []
    # many tokenizers join blank lines at the end of a text, and they must not where more follows
    longer = tokenizer(f"{prefix}A", add_special_tokens=False, return_offsets_mapping=True)
    spans = longer["offset_mapping"]
    kept = [token for token, (_, end) in zip(longer["input_ids"], spans, strict=True) if end <= len(prefix)]
    if not spans[len(kept) :] or any(begin < len(prefix) for begin, _ in spans[len(kept) :]):
        kept = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    return (*start, *kept)


def _begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("model_type") != "value_adapter":
        raise ValueError(f"'{folder}' is no value adapter: its config.json does not say so, or is missing")
    if config.get("format_version") not in (1, 2) or config.get("connection", "residual") != "residual":
        raise ValueError(
            f"this file reads format versions 1 and 2 and networks that read tokens; '{folder}' has version "
            f"{config.get('format_version')} and connection '{config.get('connection')}'. Use {INSTALL}"
        )
    return config


def _recommended(config: dict[str, Any], fingerprint: str, base: str) -> tuple[Weights, float]:
    """What each summand counts for on a base, and the scale: those fitted on it, or those for any."""
    own = [float(entry.get("coefficient", 1.0)) for entry in config["networks"]]
    any_base = Weights(float(config.get("base_weight", 1.0)), own, float(config.get("end_weight", 0.0)))
    fitted = config.get("scales" if config["format_version"] == 1 else "weights", [])
    here = [one for one in fitted if one["base_fingerprint"] == fingerprint]
    named = [one for one in here if one["base"] == base]
    if config["format_version"] > 1:  # which knows a directory by its last part
        named += [one for one in here if one["base"].split("/")[-1] == Path(base).name]
    named += [one for one in here if one.get("for_vocabulary", True)]
    if not named:
        return any_base, float(config.get("scale", 1.0))
    given = named[0].get("weights")
    weights = any_base if given is None else Weights(given["base"], given["networks"], given.get("end", 0.0))
    return weights, float(named[0].get("scale", 1.0))


def _ends(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's end of sequence and those that the base is set to stop at."""
    known = getattr(base.generation_config, "eos_token_id", None)
    found = set(known if isinstance(known, (list, tuple)) else [known]) | {tokenizer.eos_token_id}
    return sorted(int(token) for token in found - {None})


def _load_network(folder: Path, entry: dict[str, Any], places: dict[str, Any]) -> Network:
    reads = bool(entry.get("reads_prefix"))
    if "repo" in entry:
        return Network(_from_hub(entry["repo"], entry["revision"], places), reads)
    path = folder / entry["path"]
    for name, expected in entry["sha256"].items():
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ValueError(f"'{path / name}' has changed since it was saved; download the adapter again")
    if not (path / "adapter_config.json").exists():
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=True, trust_remote_code=False)
        return Network(model.eval(), reads)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"the network '{entry['path']}' is a LoRA: pip install peft") from error
    lora = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    model = _from_hub(lora["base_model_name_or_path"], lora["revision"], places)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT, which asks transformers by an old name
        return Network(PeftModel.from_pretrained(model, path).eval(), reads)


def _from_hub(repo: str, revision: str, places: dict[str, Any]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        repo, revision=revision, dtype="auto", use_safetensors=True, trust_remote_code=False, **places
    )
    return model.eval()


def _fit(logits: torch.Tensor, width: int) -> torch.Tensor:
    """Cut, or filled up with the row's mean, to `width` columns: what is beyond belongs to no token."""
    missing = width - logits.shape[-1]
    if missing <= 0:
        return logits[..., :width]
    return torch.cat((logits, logits.mean(-1, keepdim=True).expand(*logits.shape[:-1], missing)), dim=-1)


# -- vocabularies ------------------------------------------------------------------------------------------------------
def _tokens(tokenizer: PreTrainedTokenizerBase, width: int) -> dict[int, tuple[str, bool]]:
    """Id -> token and whether it is a control token, of those that a model with `width` columns has a row for."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return {token: (text, token in special) for text, token in tokenizer.get_vocab().items() if token < width}


def _split(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """How it splits the probes, as plain text in which control tokens are not recognised."""
    plain = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    return [plain.encode(probe, add_special_tokens=False).ids for probe in _PROBES]


def _differences(
    own: PreTrainedTokenizerBase, own_width: int, theirs: PreTrainedTokenizerBase, their_width: int
) -> str | None:
    """Why ids do not mean the same on both sides; None where they do. Either side may have added tokens of its own."""
    mine, base = _tokens(own, own_width), _tokens(theirs, their_width)
    other = sorted(token for token in mine.keys() & base.keys() if mine[token] != base[token])
    more, added = base.keys() - mine.keys(), set(theirs.added_tokens_decoder)
    other += sorted(token for token in more if token < own_width or token not in added)
    other += sorted(mine.keys() - base.keys() - own.added_tokens_decoder.keys())
    if other:
        shown = [repr(side.get(other[0], ("nothing",))[0]) for side in (base, mine)]
        return f"{len(other):,} ids mean something else (id {other[0]} is {shown[0]}, to the adapter {shown[1]})"
    return None if _split(own) == _split(theirs) else "the tokens are the same, but text is split in another way"


def _one_to_one(
    folder: Path, own: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, *, width: int
) -> tuple[torch.Tensor, str] | None:
    """A map of the artifact to the same tokens under other ids, and the base's fingerprint; None where none holds."""
    base, added = _tokens(theirs, width), set(theirs.added_tokens_decoder)
    for path in sorted((folder / "alignments").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["valueadapter-alignment"])
            source = file.get_tensor("source").long()
        if about["relation"] != "permuted" or len(source) != width:
            continue
        mine = _tokens(own, about["value"]["logits_width"])
        to = source.tolist()
        # checked token by token, so that a map for another base is not taken
        same = all(mine.get(to[t]) == base[t] if to[t] >= 0 else t in added for t in base)
        unused = mine.keys() - set(to) - own.added_tokens_decoder.keys()
        split = [[to[token] if token < width else -1 for token in ids] for ids in _split(theirs)]
        if same and not unused and split == _split(own):
            return source, about["base"]["byte_fingerprint"]
    return None
