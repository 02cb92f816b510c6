"""The demo's last part: two adapters of different tasks on one base, together and each in its own row of a batch.

`examples/demo.py` calls it; alone it trains nothing and needs the Hub that the demo leaves in build/demo/hub.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

JEOPARDY = "alice/jeopardy-value"
OPEN = "alice/open-questions-value"
TRAINED_ON, HELD_OUT, CALIBRATION = 200, 25, 15  # the last two of each task
CHOICES: tuple[tuple[str, ...], ...] = ((), ("jeopardy",), ("open",), ("jeopardy", "open"))
ROWS: tuple[Any, ...] = ("jeopardy", "open", None, ["jeopardy", "open"])
console = Console(soft_wrap=True)


def train_second(base: str, build: Path) -> None:
    """Trains an adapter on open questions, whose prompts look otherwise, and publishes it beside the first."""
    from testkit.tasks import task
    from valueadapter.training.recipe import Recipe, run

    recipe = Recipe(
        base=base,
        data=task("natural_questions").train[:TRAINED_ON],
        data_name="Natural Questions",
        output_dir=build / "training-open",
        base_prefix_examples=0,
        arguments={"save_strategy": "no", "use_cpu": True, "num_train_epochs": 1},
    )
    summary = run(recipe, overwrite=True, push_to=OPEN, say=console.print)
    console.print(f"  published: {summary['published']}")


def use_both(bases: list[str]) -> None:
    """Loads both by Hub ID onto each base; measures them alone and together, and answers a mixed batch."""
    from transformers.utils import logging

    from valueadapter import ValueAdapterForCausalLM

    logging.disable_progress_bar()
    for base in bases:
        model = ValueAdapterForCausalLM.from_pretrained(base, JEOPARDY, adapter_name="jeopardy")
        model.load_adapter(OPEN, "open")
        measure(model, base)
        answer_mixed_batch(model)


def measure(model: Any, base: str) -> None:
    """Bits per byte on both tasks, ends counted: each adapter alone, and both at weights fitted together."""
    from testkit.demonstrations import jeopardy
    from testkit.tasks import task
    from valueadapter import calibrate
    from valueadapter.evaluation.metrics import evaluate

    tasks = {"Jeopardy": jeopardy(), "Natural Questions": task("natural_questions")}
    table = Table(title=f"{base.split('/')[1]}: bits per byte on {HELD_OUT} held-out questions of each task")
    for column in ("adapters", *tasks):
        table.add_column(column, justify="left" if column == "adapters" else "right")
    model.set_base_prefix(None)  # so that what differs is the adapters alone
    others = [record for one in tasks.values() for record in list(one.calibration)[:CALIBRATION]]
    together = calibrate(model, others, adapter_name=["jeopardy", "open"]).weights
    for names in CHOICES:
        model.set_adapter(names)
        for name in names if len(names) > 1 else ():
            model.set_weights(name, together[name])
        held_out = [list(one.held_out)[:HELD_OUT] for one in tasks.values()]
        scores = [evaluate(model, model.base_tokenizer, part, generate=False, batch_size=25) for part in held_out]
        bits = [score.value("total_bits_per_byte") for score in scores]
        table.add_row(" + ".join(names) or "none", *(f"{one:.3f}" for one in bits))
    console.print(table)
    console.print(f"Together at weights fitted on {len(others)} other questions: {_in_words(together)}", markup=False)


def _in_words(weights: Any) -> str:
    return "; ".join(f"{name} {one}" for name, one in weights.items())


def answer_mixed_batch(model: Any) -> None:
    """One batch, another choice of adapters in each row, and the prefix that it brings; each row as it is alone."""
    from valueadapter import RECORDED

    model.set_base_prefix(RECORDED)
    tokenizer, question = model.base_tokenizer, "Question: This gas makes up most of the air\nAnswer:"
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.pad_token_id or 0}
    texts = [
        f"Category: SCIENCE\n{question}",
        "Question: what gas makes up most of the air\nAnswer:",
        question,
        question,
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    together = model.generate(**batch, **asked, adapter_names=list(ROWS))[:, batch["input_ids"].shape[1] :]
    console.print("One batch, its rows with adapters of their own:")
    for row, (text, names) in enumerate(zip(texts, ROWS, strict=True)):
        one = tokenizer(text, return_tensors="pt")
        alone = model.generate(**one, **asked, adapter_names=[names])[0, one["input_ids"].shape[1] :]
        if alone.tolist() != together[row, : len(alone)].tolist():
            sys.exit(f"Row {row} of the mixed batch is not what it is alone.")
        said = tokenizer.decode(alone, skip_special_tokens=True).strip().split("\n")[0]
        name = " + ".join(names) if isinstance(names, list) else names or "none"
        console.print(f"  {name:16} {text.splitlines()[-2][10:]}? {said}", markup=False)
    console.print("Each row is what it is alone.")
