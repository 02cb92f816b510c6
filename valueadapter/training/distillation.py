"""Base + adapters taught to a LoRA on the base: what stands in for merging, which a sum of logits cannot have.

The LoRA is trained towards the whole distribution, KL(base + adapters ‖ base with LoRA), at the response tokens of
demonstrations (Hinton et al. 2015, arXiv 1503.02531). The base in the sum reads its prefix and the one with the LoRA
does not, so a prefix is taught as well. What remains of the divergence on held-out demonstrations is reported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Trainer,
)

from valueadapter.adapter.causal_lm import execution_device, moved
from valueadapter.adapter.lora import with_lora
from valueadapter.artifact.config.number import finite, whole
from valueadapter.demonstrations.tokenized import IGNORED, Collator, load_demonstrations, tokenize
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training import small_lora

HELD_OUT = 10
"""Every tenth demonstration is held out, where no others are given for it."""


@dataclass(frozen=True)
class Distilled:
    """A LoRA that stands in for adapters, and how well."""

    model: Any
    """The `PeftModel`, on a copy of the base; `save_pretrained` writes an ordinary LoRA."""
    divergence_before: float
    """KL(base + adapters ‖ base alone), nats per held-out response token."""
    divergence_after: float
    """KL(base + adapters ‖ base with the LoRA), on the same tokens: what the LoRA does not reproduce."""
    num_examples: int
    """Demonstrations trained on."""
    num_held_out_tokens: int
    """Response tokens that both divergences are means over."""


def distill_into_lora(
    model: ValueAdapterForCausalLM,
    data: Any,
    *,
    eval_data: Any = None,
    rank: int = 16,
    epochs: float = 2.0,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    max_length: int = 1024,
    seed: int = 0,
    say: Callable[[str], object] | None = None,
    on_progress: Callable[[str, int, int], object] | None = None,
) -> Distilled:
    """Trains a LoRA on a copy of the base towards base + adapters as they stand; this model does not change.

    Args:
        model: base + adapters; its base is copied.
        data: demonstrations, as `load_demonstrations` takes them; only the text counts, for the sum is the teacher.
        eval_data: held-out ones; by default every tenth of `data`, which is then not trained on.
        rank: of the LoRA on all linear layers but the head.
        epochs: passes over the demonstrations.
        learning_rate: peak of a cosine schedule.
        batch_size: demonstrations per step.
        max_length: tokens kept of a demonstration.
        seed: of initialisation and order.
        say: called with a line of progress now and then.
        on_progress: called after each step with what is done, how much of it is, and how much there is.

    Raises:
        UnsupportedModeError: no adapter acts.
        ConfigError: the base is a `PeftModel`, or there are too few demonstrations to hold some out.
    """
    counts = {"rank": rank, "batch_size": batch_size, "max_length": max_length}
    rank, batch_size, max_length = (whole(name, given, least=1) for name, given in counts.items())
    epochs, learning_rate = finite("epochs", epochs), finite("learning_rate", learning_rate)
    seed = whole("seed", seed)
    if not model.active_adapters:
        raise UnsupportedModeError("no adapter acts here, so there is nothing to distil; call set_adapter first")
    if hasattr(model.base, "peft_config"):
        raise ConfigError("the base has a PEFT adapter already; merge it into the base first (merge_and_unload())")
    tokenizer = model.attached.base_tokenizer()
    train, held_out = _parted(data, eval_data, lambda given: tokenize(given, tokenizer, max_length=max_length))
    torch.manual_seed(seed)
    student = with_lora(copy.deepcopy(model.base), rank)
    collator = Collator(tokenizer.pad_token_id or 0)
    scored = _in_batches(held_out, batch_size, collator)
    with student.disable_adapter():
        before, tokens = _divergence(model, student, scored)
    if say is not None:
        say(f"teaching a LoRA of rank {rank} on {len(train):,} demonstrations")
    small_lora.train(
        lambda arguments: _Distiller(model, model=student, args=arguments, train_dataset=train, data_collator=collator),
        small_lora.SmallTraining(epochs, learning_rate, batch_size, seed),
        on_cpu=execution_device(model.base).type == "cpu",
        on_progress=on_progress,
    )
    after, _ = _divergence(model, student.eval(), scored)
    if say is not None:
        say(f"KL on {tokens:,} held-out tokens: {before:.3f} -> {after:.3f} nats per token")
    return Distilled(student, before, after, len(train), tokens)


def _in_batches(data: Any, size: int, collator: Collator) -> list[dict[str, torch.Tensor]]:
    batches = [data[begin : begin + size] for begin in range(0, len(data), size)]
    rows = [[dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)] for batch in batches]
    return [collator(each) for each in rows]


def _parted(data: Any, eval_data: Any, tokenized: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What is trained on, and what is held out."""
    train = tokenized(load_demonstrations(data))
    if eval_data is not None:
        held_out = tokenized(load_demonstrations(eval_data))
    else:
        numbers = range(len(train))
        held_out = train.select([number for number in numbers if number % HELD_OUT == HELD_OUT - 1])
        train = train.select([number for number in numbers if number % HELD_OUT != HELD_OUT - 1])
    if not len(train) or not len(held_out):
        raise ConfigError(
            f"{len(train)} demonstrations are left to train on and {len(held_out)} are held out; give {HELD_OUT} "
            "or more, or others for evaluation with eval_data="
        )
    return train, held_out


@torch.no_grad()
def _divergence(
    model: ValueAdapterForCausalLM, student: Any, batches: Sequence[dict[str, torch.Tensor]]
) -> tuple[float, int]:
    """Mean KL per response token, and how many there are."""
    total, count = 0.0, 0
    for batch in batches:
        here = moved(batch, execution_device(model.base))
        divergence = token_divergence(model, student, here)
        total, count = total + float(divergence.double().sum()), count + len(divergence)
    return total / count, count


def token_divergence(teacher: Any, student: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """KL(teacher ‖ student) in nats at each response token of a batch, (tokens,); gradients go to the student."""
    labels = batch["labels"]
    wanted = labels[:, 1:] != IGNORED
    keep = labels.shape[1] - int(wanted.any(dim=0).int().argmax())
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    mask = wanted[:, -(keep - 1) :]
    how = {"use_cache": False, "logits_to_keep": keep, "return_dict": True}
    with torch.no_grad():
        towards = teacher(**inputs, **how).logits[:, :-1][mask].float().log_softmax(-1)
    own = student(**inputs, **how).logits[:, :-1][mask].float().log_softmax(-1)
    divergence: torch.Tensor = (towards.exp() * (towards - own)).sum(-1)
    return divergence


class _Distiller(Trainer):
    """A Trainer whose loss is the divergence from a teacher."""

    def __init__(self, teacher: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher = teacher

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return token_divergence(self.teacher, model, inputs).mean()
