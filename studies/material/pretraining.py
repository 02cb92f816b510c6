"""Trains a causal language model on running text, on a CPU, the same way for the same seed.

Knows how windows of text become steps of AdamW and what held-out text costs; knows nothing of where texts or models
come from, nor of adapters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from studies.material.corpora import Corpus
from testkit.packages import Progress
from valueadapter.evaluation.metrics import evaluate

CONTEXT = 2_048
"""Positions that a model trained from scratch has. It is trained on shorter windows, and is worse beyond them."""

PIECE = 1_000
"""Held-out text is scored in pieces of so many characters, each with nothing before it."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    """Steps of AdamW."""
    rows: int
    """Windows per step."""
    window: int
    """Tokens per window."""
    learning_rate: float
    """At its highest: after a linear rise over the first twentieth of the steps, before a cosine down to a tenth."""
    weight_decay: float = 0.0
    """For matrices; vectors have none."""
    seed: int = 0
    """Decides the windows, and the first weights of a model from scratch."""
    threads: int = 1
    """Threads of torch: another number rounds differently, and two on a busy machine are slower than one."""
    held_out_pieces: int = 12
    """Pieces of held-out text that are scored before and after."""

    @property
    def tokens(self) -> int:
        """Tokens that training reads."""
        return self.steps * self.rows * self.window

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0 (Loshchilov & Hutter 2017, without restarts)."""
        rise = max(1, self.steps // 20)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Shape:
    """The size of a Llama model."""

    layers: int
    width: int
    heads: int


def untrained(shape: Shape, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """Returns a Llama model of `CONTEXT` positions with random weights, its head tied to its embeddings."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, *, schedule: Schedule, say: Progress
) -> dict[str, float]:
    """Trains every weight of `model` in place on windows drawn at random from the corpus.

    Returns:
        Bits per UTF-8 byte of held-out text, `before` and `after`.
    """
    pieces = held_out_pieces(corpus, schedule.held_out_pieces)
    with _threads(schedule.threads):
        before = _bits_per_byte(model, tokenizer, pieces)
        say(f"training on {schedule.tokens:,} tokens of text; held-out text costs {before:.3f} bits per byte")
        _train(model, token_stream(corpus.train, tokenizer), schedule, say)
        after = _bits_per_byte(model, tokenizer, pieces)
    say(f"held-out text now costs {after:.3f} bits per byte")
    return {"before": before, "after": after}


def token_stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Returns the ids of all texts in one row, (tokens,), each text followed by the end-of-sequence token."""
    rows = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return torch.tensor([token for row in rows for token in [*row.ids, tokenizer.eos_token_id]])


def held_out_pieces(corpus: Corpus, count: int) -> list[str]:
    """Returns `count` pieces of `PIECE` characters, the beginnings of held-out documents first."""
    longest = max(len(text) for text in corpus.held_out)
    starts = range(0, longest, PIECE)
    pieces = [text[start : start + PIECE] for start in starts for text in corpus.held_out if start < len(text)]
    return pieces[:count]


def windows(stream: torch.Tensor, schedule: Schedule) -> Iterator[torch.Tensor]:
    """Yields the ids of each step, (rows, window), from random places of the stream."""
    generator = torch.Generator().manual_seed(schedule.seed)
    places = len(stream) - schedule.window + 1
    for _ in range(schedule.steps):
        starts = torch.randint(places, (schedule.rows, 1), generator=generator)
        yield stream[starts + torch.arange(schedule.window)]


def _train(model: PreTrainedModel, stream: torch.Tensor, schedule: Schedule, say: Progress) -> None:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    begun, tenth = time.monotonic(), max(1, schedule.steps // 10)
    model.train()
    for step, ids in enumerate(windows(stream, schedule)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % tenth == 0:
            speed = (step + 1) * ids.numel() / (time.monotonic() - begun)
            say(f"step {step + 1} of {schedule.steps}: loss {loss.item():.3f}, {speed:,.0f} tokens/s")
    model.eval()


def _bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> float:
    records = [{"text": piece} for piece in pieces]
    return evaluate(model.eval(), tokenizer, records, generate=False, batch_size=4).bits_per_byte


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
