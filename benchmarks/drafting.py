"""The adapter drafts for its base: how often its drafts are taken, and what that brings beside larger bases.

Taken drafts are measured with adapters of the demo's two tasks on SmolLM2: notes, whose form an adapter knows, and
Jeopardy, whose answers are a few tokens of facts, in which the sum often differs from the network that drafts. Larger
bases have the shapes of SmolLM2-360M and 1.7B and random weights, which cost what trained ones do; which drafts are
taken there is replayed from the measured ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LogitsProcessor

from benchmarks.harness import Interval, Measured, interval, rounds
from benchmarks.one_body import GREEDY, PROMPT, with_adapters
from testkit.demonstrations import jeopardy
from testkit.ledger import ledger
from testkit.reference_models import smollm2_derived, smollm2_instruct
from valueadapter import ValueAdapterForCausalLM
from valueadapter.model.drafting import DraftedCandidates
from valueadapter.training.recipe import Recipe, run

QUESTIONS, TOKENS = 40, 24
ASSISTANT, LARGEST = 4, "1.7B"
"""Tokens that the assistant drafts in a round; transformers' default of 20 would be slower here."""
SHAPES = {
    "360M": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32},
}
_HEADS = {"360M": 5, "1.7B": 32}


class Task(NamedTuple):
    """What an adapter learns."""

    demonstrations: Callable[[], Any]
    count: int
    """Of the training split."""
    epochs: int


TASKS = {"notes": Task(ledger, 176, 3), "Jeopardy": Task(jeopardy, 400, 2)}


def drafted_tokens() -> Measured:
    """How many of the drafted tokens are not taken, on SmolLM2 with greedy answers, task by task."""
    return {f"P4 drafted tokens that are refused, {task}": (_share(_refused(task)), 0.5) for task in TASKS}


def drafting() -> Measured:
    """P4: an answer that the adapter drafts / without drafts / of the base alone, and with its network as
    `assistant_model`; which drafts are taken is replayed, task by task."""
    refused = {task: _refused(task) for task in TASKS}
    rates = {task: sum(found) / len(found) for task, found in refused.items()}
    found: Measured = {}
    for name, shape in SHAPES.items():
        config = LlamaConfig(**shape, vocab_size=49_152, num_key_value_heads=_HEADS[name], tie_word_embeddings=True)
        base = LlamaForCausalLM(config).eval()
        model = with_adapters(base, AutoTokenizer.from_pretrained(smollm2_instruct()), 1)
        ids = dict(model.base_tokenizer(PROMPT, return_tensors="pt"))
        how = {**GREEDY, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
        alone = {key: value for key, value in how.items() if key != "stop_strings"}
        text = model.generate(**ids, **how)[0]
        network = model.adapters["a0"].networks[0]
        network.generation_config.num_assistant_tokens = ASSISTANT
        variants: dict[str, Any] = {
            "without drafts": lambda m=model, i=ids, h=how: m.generate(**i, **h),
            "the base alone": lambda b=base, i=ids, a=alone: b.generate(**i, **a),
        }
        for task, rate in rates.items():
            replay = _Replay(model, text, rate)
            variants[task] = lambda m=model, h=ids | how, r=replay: r.run(m, **h, speculative=True)
            variants[f"{task} by assistant_model"] = lambda m=model, h=ids | how, r=replay, n=network: r.run(
                m, **h, assistant_model=n
            )
        if name == LARGEST:
            agreed = _Replay(model, text, 0.0)
            variants["every draft taken"] = lambda m=model, h=ids | how, r=agreed: r.run(m, **h, speculative=True)
        done = rounds(variants, number=3)
        for task in rates:
            for other in ("without drafts", "the base alone", f"{task} by assistant_model"):
                ratios = [one[task] / one[other] for one in done]
                found[f"P4 adapter on {name}, drafting {task} / {other}"] = interval(ratios), 1.0
        for other, goal in (("without drafts", 0.45), ("the base alone", 0.5)) if name == LARGEST else ():
            ratios = [one["every draft taken"] / one[other] for one in done]
            found[f"P4 adapter on {name}, every draft taken / {other}"] = interval(ratios), goal
    return found


def _refused(task: str) -> list[bool]:
    """For each drafted token that was looked at whether the sum chose another one."""
    one = TASKS[task]
    split, adapter = one.demonstrations(), Path("build/bench") / task.lower() / "adapter"
    if not adapter.exists():
        arguments = {"save_strategy": "no", "use_cpu": True, "num_train_epochs": one.epochs}
        how = {"base": str(smollm2_derived()), "base_name": "bench/body", "output_dir": adapter.parent}
        recipe = Recipe(**how, data=split.train[: one.count], data_name=task, arguments=arguments)
        run(recipe, overwrite=True, say=print)
    model = ValueAdapterForCausalLM.from_pretrained(str(smollm2_instruct()), str(adapter))
    found: list[bool] = []
    update = DraftedCandidates.update_candidate_strategy

    def noted(self: DraftedCandidates, input_ids: Any, scores: Any, num_matches: int) -> None:
        taken, drafted = int(num_matches), scores.shape[1] - 1
        found.extend([False] * taken + [True] * (taken < drafted))
        update(self, input_ids, scores, num_matches)

    DraftedCandidates.update_candidate_strategy = noted  # type: ignore[method-assign]  # to be counted
    try:
        for record in split.held_out[:QUESTIONS]:
            ids = model.base_tokenizer(record["prompt"], return_tensors="pt")
            model.generate(**ids, max_new_tokens=32, do_sample=False, speculative=True)
    finally:
        DraftedCandidates.update_candidate_strategy = update  # type: ignore[method-assign]
    return found


def _share(found: list[bool]) -> Interval:
    generator = random.Random(0)
    shares = sorted(sum(generator.choices(found, k=len(found))) / len(found) for _ in range(1000))
    return sum(found) / len(found), shares[50], shares[949]


class _Replay(LogitsProcessor):
    """Has whoever drafts say the text that the sum says, but at places that are drawn at a rate, one token else.

    Args:
        model: the model that is drafted for.
        text: (seq,) prompt and plain answer.
        rate: how often a drafted token is another one.
    """

    def __init__(self, model: ValueAdapterForCausalLM, text: torch.Tensor, rate: float) -> None:
        self.text = text
        generator = random.Random(0)
        self.other = [generator.random() < rate for _ in text]
        self.drafting = False
        model.adapters["a0"].networks[0].register_forward_hook(lambda *_: self._now(drafting=True))
        model.register_forward_hook(lambda *_: self._now(drafting=False))

    def run(self, model: ValueAdapterForCausalLM, **how: Any) -> None:
        """Generates, and checks that drafts change no token."""
        if not torch.equal(model.generate(**how, logits_processor=[self])[0], self.text):
            raise RuntimeError("a draft has changed the answer")

    def _now(self, *, drafting: bool) -> None:
        self.drafting = drafting

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(1, seq) and (1, vocab) -> (1, vocab)."""
        place = input_ids.shape[1]
        if not self.drafting or place >= len(self.text):
            return scores
        token = (int(self.text[place]) + self.other[place]) % scores.shape[-1]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


GROUPS = (drafted_tokens, drafting)
