"""Small tokenizers that put things around a text or change it, as those of published models do, by their kinds.

All have the control tokens of `vocabularies`; the names of models say whose behaviour a kind copies.
"""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from vocabularies import _TEMPLATE, CORPUS, _byte_tokens, tokenizer_of

SPECIAL = ("<pad>", "<s>", "</s>", "<|turn|>", "<|end|>")
OPENED = ("<s> $A", "<s> $A </s>")
FAITHFUL = (
    "gpt-2",
    "smollm2",
    "llama-3",
    "byte-level with end",
    "gpt-2 with prefix space",
    "roberta",
    "gemma",
    "llama-2",
    "llama-2 with end",
    "mistral",
    "metaspace always",
    "phi-3",
)
"""Kinds whose tokens spell the text."""
NORMALISING = ("t5", "bert", "lowercase", "strips", "characters")
"""Kinds that change the text, or know only part of it."""
ALL = (*FAITHFUL, *NORMALISING)


@functools.cache
def tokenizer_of_kind(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of `ALL`."""
    if kind in ("gpt-2", "characters"):
        return tokenizer_of("coarse bytes" if kind == "gpt-2" else kind)
    if kind == "smollm2":
        return tokenizer_of("bytes")
    if kind in ("llama-3", "byte-level with end", "gpt-2 with prefix space", "roberta", "lowercase"):
        backend = _byte_level(prefix_space=kind in ("gpt-2 with prefix space", "roberta"), lower=kind == "lowercase")
    elif kind in ("gemma", "llama-2", "llama-2 with end", "phi-3", "mistral", "metaspace always"):
        backend = _sentencepiece(kind)
    elif kind == "bert":
        backend = _bert()
    else:
        backend = _unigram(strips=kind == "strips")
    template = (
        "$A </s>" if kind == "t5" else OPENED[kind in ("byte-level with end", "llama-2 with end", "roberta", "bert")]
    )
    if kind not in ("gpt-2 with prefix space", "lowercase", "strips"):
        names = [("<s>", 1), ("</s>", 2)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=names)
    if kind == "phi-3":  # control tokens swallow the space around them
        swallowing = [AddedToken(name, special=True, rstrip=True, lstrip=name == "<|turn|>") for name in SPECIAL[2:]]
        backend.add_special_tokens(swallowing)
    opens = {} if kind == "t5" else {"bos_token": "<s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", chat_template=_TEMPLATE, **opens
    )


def _byte_level(*, prefix_space: bool, lower: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _sentencepiece(kind: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<pad>", fuse_unk=True))
    space = normalizers.Replace(" ", "\u2581")
    if kind in ("mistral", "metaspace always"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if kind == "mistral" else "always")
    elif kind == "gemma":
        backend.normalizer = space
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "merged_with_previous")
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581*[^\u2581]*"), "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*SPECIAL, *_byte_tokens()], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    if kind not in ("gemma", "mistral", "metaspace always"):
        state["pre_tokenizer"] = None  # as Llama 2 has it: it served to train
    return Tokenizer.from_str(json.dumps(state))


def _unigram(*, strips: bool) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    steps = [normalizers.NFKC(), normalizers.Strip(left=strips, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=[*SPECIAL], unk_token="<pad>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def _bert() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<pad>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=[*SPECIAL], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend
