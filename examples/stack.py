"""The demo's last part: two adapters of different tasks on one base, together and each in its own row of a batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

console = Console(soft_wrap=True)


def use_both(model: Any, prompts: Mapping[str, str], tasks: Mapping[str, str]) -> None:
    """Answers a batch whose rows have adapters of their own, and one with both.

    Args:
        model: a base with both adapters.
        prompts: adapter -> what to ask it.
        tasks: adapter -> what it is called here.
    """
    answer_mixed_batch(model, prompts, tasks)
    answer_together(model, prompts)


def answer_mixed_batch(model: Any, prompts: Mapping[str, str], tasks: Mapping[str, str]) -> None:
    """One batch, another adapter in each row with the prefix that it brings, or none; each row as it is alone."""
    tokenizer = model.base_tokenizer
    asked = _asked(tokenizer)
    rows = [(name, prompt) for name, prompt in prompts.items()] + [(None, prompt) for prompt in prompts.values()]
    batch = tokenizer([prompt for _, prompt in rows], return_tensors="pt", padding=True, padding_side="left")
    names = [name for name, _ in rows]
    together = model.generate(**batch, **asked, adapter_names=names)[:, batch["input_ids"].shape[1] :]
    console.print("One batch, its rows with adapters of their own:")
    for row, (name, prompt) in enumerate(rows):
        one = tokenizer(prompt, return_tensors="pt")
        alone = model.generate(**one, **asked, adapter_names=[name])[0, one["input_ids"].shape[1] :]
        if alone.tolist() != together[row, : len(alone)].tolist():
            sys.exit(f"Row {row} of the mixed batch is not what it is alone.")
        _say(tasks[name] if name else "none", prompt, tokenizer, alone)
    console.print("Each row is what it is alone.")


def answer_together(model: Any, prompts: Mapping[str, str]) -> None:
    """Both adapters on every row, behind the prefixes of both, at half of each."""
    model.set_base_prefix("".join(model.adapters[name].config.base_prefix for name in prompts))
    model.set_adapter(list(prompts))
    for name in prompts:
        model.set_scale(name, 0.5)
    tokenizer = model.base_tokenizer
    batch = tokenizer(list(prompts.values()), return_tensors="pt", padding=True, padding_side="left")
    said = model.generate(**batch, **_asked(tokenizer))[:, batch["input_ids"].shape[1] :]
    console.print("Both on every row, behind both prefixes, each at scale 0.5:")
    for prompt, answer in zip(prompts.values(), said, strict=True):
        _say("both", prompt, tokenizer, answer)


def _asked(tokenizer: Any) -> dict[str, Any]:
    return {"max_new_tokens": 14, "do_sample": False, "pad_token_id": tokenizer.pad_token_id or 0}


def _say(name: str, prompt: str, tokenizer: Any, answer: Any) -> None:
    said = tokenizer.decode(answer, skip_special_tokens=True).strip().split("\n")[0]
    console.print(f"  {name:8} {prompt.splitlines()[-2]} -> {said}", markup=False)
