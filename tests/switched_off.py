"""Everything that tests and examples switch off of the libraries that users have, each with its reason.

What is not here runs as installed: a default that tests switch off hides what users meet. `test_switched_off.py` looks
for anything else that is switched off in their files and in `testkit`.
"""

from __future__ import annotations

import pytest

VARIABLES = {
    "HF_HUB_OFFLINE": "1: what needs no Hub must reach none; `hub_clients.online` is how a test gets a loopback Hub",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1: a test's output is its failure; they change nothing but the error stream",
    "TOKENIZERS_PARALLELISM": "false: tokenizers would warn, an error here, of the processes that tests start",
}
"""Environment variables of the whole run, and of the programs that it starts: value and reason."""

ELSEWHERE = {
    "HF_HUB_DISABLE_XET": "only by `without_xet`, and by LocalHub(xet=False).env: faults of LFS, which clients without "
    "hf_xet (no wheel for their system) upload and download by; Xet's own storage is a folder, which cannot be cut off",
    "HF_HUB_DISABLE_SHARED_BLOBS": "one case of several: the caches of clients that share no blobs must load, too",
    "TRANSFORMERS_VERBOSITY": "one test: the command line would set it for good in the tests' process",
    "logging.disable": "lm-eval's harness logs deprecations that no caller can avoid",
    "PIP_NO_INDEX": "tests of the package downloader: pip must find a folder of ours, and no index",
    "time.sleep": "tests of faults: the Hub client's waits between its own retries, which are minutes in sum",
    "disable_progress_bar": "as HF_HUB_DISABLE_PROGRESS_BARS, of transformers",
    "disable_tqdm": "as HF_HUB_DISABLE_PROGRESS_BARS, of transformers.Trainer",
    "report_to": "of transformers.Trainer, to nobody: which trackers are installed here is chance",
    "set_verbosity_error": "converting reference models: GGUF loaders announce what is known",
    "setLevel": "in the demo, bitsandbytes, which PEFT loads, asks for kernels that nothing there uses",
    "simplefilter": "in the program that fills a disk: the client warns of the space, which is the point",
}
"""What is switched off in single tests or examples, and why."""

WARNINGS = {
    "Use 'content=<...>'": "huggingface_hub's own LFS upload, by an old name of httpx2's",
    "Use 'content=<...>' to upload raw bytes": "the same, in pyproject.toml",
    ".*is_gradient_checkpointing. is deprecated": "peft asks transformers by the old name",
    ".*is_gradient_checkpointing.*": "peft asks transformers by the old name",
    ".*gradient_checkpointing.*is deprecated": "TRL sets its own arguments by an old name",
    ".*gradient_checkpointing.*": "transformers.Trainer's own arguments",
    "Could not find a config file in  -": "PEFT before 0.21 alone, of a LoRA put into a network without a name",
    "The PEFT config's .base_model_name_or_path. was renamed": "the same, where it is saved under the network's name",
    "Model has .tie_word_embeddings=True. and a tied layer": "PEFT, which cannot merge such a LoRA; what saves it can",
    "Cannot enable progress bars": "a test that switches them on while the run has them off",
    "'pin_memory' argument is set": "accelerate's default, on a machine without a GPU",
    "You are trying to modify a model with PEFT": "the test does it twice on purpose",
    "invalid escape sequence": "in MBPP's solutions, which the test compiles",
    "default": "lm-eval's and vLLM's dependencies have deprecations of their own",
}
"""Warnings that are no errors, by the beginning of their filter, and why."""


def of_the_run() -> dict[str, str]:
    """The environment variables that every test runs with; set before the libraries are imported, which read them."""
    return {name: reason.split(":")[0] for name, reason in VARIABLES.items()}


def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's Hub client moves large files by LFS, as where hf_xet has no wheel."""
    from huggingface_hub import constants  # not before the run has its variables

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
