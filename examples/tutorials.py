"""Runs the notebooks in docs/tutorials on real models and a Hub on loopback, and writes what they print into them.

Run it after a change of a cell. Models come from Python packages and stand under other names on the
loopback Hub; in the notebooks they have their own. What the notebooks take for granted is trained here first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BUILD = Path("build/tutorials")
TUTORIALS = Path("docs/tutorials").absolute()
SMALL, OTHER = "alice/SmolLM2-135M-Instruct", "alice/gemma-3-270m"
NAMES = {"HuggingFaceTB/SmolLM2-135M-Instruct": SMALL, "google/gemma-3-270m": OTHER, "user/": "alice/"}
ORDER = ("train-and-publish", "load-and-stack", "another-vocabulary", "from-lora")


def main() -> None:
    """All four, in the order in which one builds on another."""
    from testkit.local_hub import LocalHub

    BUILD.mkdir(parents=True, exist_ok=True)
    with LocalHub(BUILD / "hub") as hub:
        os.environ.update(hub.env(token="hf_alice"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        from demo import publish_folder  # imports the Hub's client, which reads these

        from testkit import notebooks
        from testkit.reference_models import gemma_3_270m, smollm2_instruct

        publish_folder(SMALL, smollm2_instruct())
        publish_folder(OTHER, gemma_3_270m())
        os.chdir(BUILD)
        train("alice/sums", [(f"What is {a} plus {b}?", str(a + b)) for a in range(3, 40, 4) for b in range(2, 50, 7)])
        for name in ORDER:
            print(name, flush=True)
            path = TUTORIALS / f"{name}.ipynb"
            notebook = notebooks.read(path)
            if name == "from-lora":
                publish_lora(notebooks.read(TUTORIALS / "train-and-publish.ipynb"))
            notebooks.write(notebooks.run(notebook, NAMES, title=name), path)


def train(name: str, pairs: list[tuple[str, str]]) -> None:
    """An adapter without a prefix, which goes along with any other."""
    records = [{"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"} for question, answer in pairs]
    trained(records, Path(name.split("/")[1]), push_to=name)


def trained(records: list[dict[str, str]], folder: Path, push_to: str | None) -> None:
    """Trains one by the recipe, but for the prefix."""
    from valueadapter.training.recipe import run
    from valueadapter.training.recipe_settings import Recipe

    arguments: dict[str, Any] = {"save_strategy": "no"}
    recipe = Recipe(base=SMALL, data=records, output_dir=folder, base_prefix_examples=0, arguments=arguments)
    run(recipe, overwrite=True, push_to=push_to, say=print)


def publish_lora(notebook: dict[str, Any]) -> None:
    """The LoRA of an adapter for the capitals of the first tutorial, as the ordinary PEFT checkpoint that it is."""
    from huggingface_hub import HfApi

    space: dict[str, Any] = {}
    exec("".join(next(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code")), space)
    trained(space["train"], Path("lora"), push_to=None)
    HfApi().create_repo("alice/capitals-lora", exist_ok=True)
    HfApi().upload_folder(repo_id="alice/capitals-lora", folder_path=Path("lora/adapter/value_network"))


if __name__ == "__main__":
    main()
