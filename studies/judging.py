"""Lets an adapter choose among sampled answers to questions with an exact checker; knows nothing of bits per byte."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from studies.cell import Judge, key_of
from studies.material.best_of import compare_best_of
from studies.material.reasoning_tasks import reasoning_task
from studies.store import Result, Store
from studies.targets import TARGETS, relation
from valueadapter import ValueAdapterForCausalLM, calibrate
from valueadapter.forward.stops import stop_tokens
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe

MAX_NEW_TOKENS = 12


def run_judge(spec: Judge, store: Store, say: Callable[[str], object]) -> Result:
    """Trains an adapter by the default recipe on a task, and answers its held-out questions in each way.

    Returns:
        `relation`, `scale`, and `right`: way to answer -> for each question 1, 0, or the share of right samples.
    """
    task = reasoning_task(spec.task)
    donor, target = TARGETS[spec.donor], TARGETS[spec.target]
    count = spec.num_demonstrations + spec.prefix_examples
    place = store.root / "runs" / key_of(spec)
    recipe = Recipe(
        base=str(donor.folder),
        base_name=donor.name,
        data=[item.demonstration() for item in task.train[:count]],
        data_name=spec.task,
        output_dir=place,
        base_prefix_examples=spec.prefix_examples,
        arguments={"num_train_epochs": spec.epochs, "seed": spec.seed, "save_strategy": "no", "use_cpu": True},
    )
    try:
        adapter = str(run(recipe, overwrite=True, say=say)["adapter"])
        model = ValueAdapterForCausalLM.from_pretrained(
            target.load(), adapter, tokenizer=target.tokenizer, scale=1.0
        ).eval()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    calibration = [item.demonstration() for item in task.calibration[: spec.calibration]]
    weights = calibrate(model, calibration).weights["default"]
    model.set_weights("default", weights)
    items = task.held_out[: spec.held_out]
    done = 0

    def on_progress(more: int) -> None:
        nonlocal done
        done += more
        if done % 10 == 0:
            say(f"  answered {done} of {len(items)} questions")

    arms = compare_best_of(
        model,
        items,
        n=spec.n,
        seed=spec.seed,
        on_progress=on_progress,
        temperature=spec.temperature,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=_ends(model, target.tokenizer),
    )
    return {
        "relation": relation(spec.donor, spec.target),
        "weights": dataclasses.asdict(weights),
        "right": {arm.name: list(arm.right) for arm in arms},
    }


def _ends(model: ValueAdapterForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where an answer ends: where the model's do, or at the end of its line, which is where one of a base ends."""
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    return sorted({*stop_tokens(model, tokenizer), newline})
