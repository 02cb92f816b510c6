"""Tiny models and a byte tokenizer for the tests; weights are large, since small ones hide a broken cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TinyModel = Callable[..., PreTrainedModel]
KINDS = ("llama", "gpt2", "gemma3", "mistral", "qwen3")
SIZE = 97
_SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def byte_tokenizer(size: int = SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges: three control tokens and the first bytes of the alphabet."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet())[: size - 3]:
        vocab[character] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=_TEMPLATE
    )


def tiny_model(kind: str, *, seed: int, width: int = SIZE, tied: bool = False) -> PreTrainedModel:
    """A model of two layers, 16 wide, weights normal with standard deviation 0.35, logits of `width` columns."""
    shape = {**_SHAPE, "vocab_size": width}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied))
    elif kind == "gpt2":
        special = {key: value for key, value in shape.items() if key.endswith("token_id")}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=width, n_embd=16, n_layer=2, n_head=2, n_positions=256, **special)
        )
    elif kind == "gemma3":
        types = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**shape, head_dim=8, sliding_window=4, layer_types=types))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=4))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.35, generator=generator)
    return model.eval()
