"""Small tokenizers of every kind, trained on a page of text, so that the same text is split in many ways."""

from __future__ import annotations

import functools

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("bytes", "coarse bytes", "sentencepiece", "metaspace", "unigram", "wordpiece", "characters")
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then the dog jumps over the quick fox again and again.",
    "def f(x):\n    return x ** 2  # the square of x\n\n\nclass Thing:\n\tpass\n",
    "In 1860 there were 12345 readers; in 1861 there were 67890. That makes 3.14159 times as many, or 1,000,000.",
    "Le garçon naïf déjà vu à la fenêtre où l'été s'achève. 東京は日本の首都です。 مرحبا 👩\u200d💻 🇫🇷",
    "It is what it is. What is it? It was there, then there, and there again; the readers read and the riders ride.",
] * 3
TEXTS = (
    "The readers read 12345 foxes again.",
    "def f(x):\n    return  x\r\n\n\tpass   # naïve été",
    "東京は日本 👩\u200d💻🇫🇷 the dog",
    "It is <|end|> what </s> it is e\u0301te\u0301",
    "  spaces   and\u00a0more\ttabs \n",
)
_TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@functools.cache
def tokenizer_of(kind: str, size: int = 400) -> PreTrainedTokenizerFast:
    """A tokenizer of one of KINDS with the control tokens <pad>, <s>, </s>, <|turn|>, <|end|> as its first ids."""
    special = ["<pad>", "<s>", "</s>", "<|turn|>", "<|end|>"]
    backend, trainer = _made(kind, size, special)
    backend.train_from_iterator(CORPUS, trainer)
    if kind in ("sentencepiece", "metaspace"):
        backend = _with_byte_fallback(backend)
    if kind in ("sentencepiece", "unigram"):  # these begin every text with <s>
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=_TEMPLATE
    )


def _made(kind: str, size: int, special: list[str]) -> tuple[Tokenizer, trainers.Trainer]:
    if kind in ("bytes", "coarse bytes"):
        backend = Tokenizer(models.BPE())
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if kind == "bytes":
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        else:
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bigger = size + (150 if kind == "coarse bytes" else 0)
        return backend, trainers.BpeTrainer(
            vocab_size=bigger, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
        )
    if kind in ("sentencepiece", "metaspace"):
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<pad>", fuse_unk=True))
        if kind == "sentencepiece":  # as Gemma: no pre-tokenizer that splits anything, no space put before the text
            backend.normalizer = normalizers.Replace(" ", "\u2581")
            backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "merged_with_previous")
        else:  # as Llama 2
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
        return backend, trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*special, *_byte_tokens()], show_progress=False
        )
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        return backend, trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<pad>", show_progress=False
        )
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<pad>"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        return backend, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    backend = Tokenizer(models.WordLevel(unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend, trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)


def _byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _with_byte_fallback(backend: Tokenizer) -> Tokenizer:
    """Lone bytes must be tokens of the model, not control tokens, which is all that a trainer can make of them."""
    import json

    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
