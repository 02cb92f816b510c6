"""Tokenizers of our own for models trained from scratch: a byte-level BPE trained on a corpus, and bytes alone.

Knows how text becomes ids; knows nothing of corpora or models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from valueadapter.vocabulary.byte_view import byte_of_character

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
CONTROLS = [PAD, BEGIN, END]


def bpe_tokenizer(texts: Iterable[str], *, size: int, context: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE of `size` tokens trained on the texts; digits are single tokens, as SmolLM2 has them.

    The control tokens are the first ids. Nothing is put before or after a text.

    Args:
        texts: What to learn merges from.
        size: Tokens, the 256 bytes and three controls among them.
        context: The longest text, in tokens, that its model reads.
    """
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False),
    )
    return _wrapped(backend, context)


def byte_tokenizer(*, context: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose tokens are the bytes of UTF-8: id = byte, then the three control tokens, 256 to 258.

    Args:
        context: The longest text, in bytes, that its model reads.
    """
    vocabulary = byte_of_character() | {name: 256 + number for number, name in enumerate(CONTROLS)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend, context)


def _wrapped(backend: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BEGIN, eos_token=END, model_max_length=context
    )
