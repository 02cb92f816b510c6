"""The names of the files in an artifact, each once; knows nothing of what is in them."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable

CONFIG = "config.json"
"""Everything the adapter is, except weights and tokenizer."""
CARD = "README.md"
"""The model card."""
CARD_RESULTS = "value_adapter_card.json"
"""What the card shows of an evaluation beside what config.json says."""
CARD_PICTURE = "value_adapter_card.png"
"""The picture of it."""
TOKENIZER = "tokenizer.json"
"""The value network's tokenizer; the training base's is the same."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
"""Files that a tokenizer's `save_pretrained` may write at the root."""
BESIDE_CONFIG = (CARD_RESULTS, CARD_PICTURE, *TOKENIZER_FILES)
"""All of an adapter that may lie at the root, except config.json and the card."""
CHAT_TEMPLATES = "additional_chat_templates"
"""Directory of a tokenizer's further chat templates, a file for each name; the default one is at the root."""
CHAT_TEMPLATE = ".jinja"
"""What the name of a chat template ends with."""
NETWORK = "value_network"
"""Directory of the (first) value network."""
ALIGNMENTS = "alignments"
"""Directory of prebuilt vocabulary alignment maps."""

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
"""How a model generates; a network, which never does, has none."""
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
"""Marks a PEFT checkpoint; allowed under a network's directory, never at the root."""
CUSTOM_GENERATE = "custom_generate"
"""Directory of code that transformers runs for users without this library, where they trust it; no reader runs it."""
LOGITS_PROCESSOR = "logits_processor"
"""Directory of code that users without this library import themselves; no reader runs it."""
CODE_FOLDERS = (CUSTOM_GENERATE, LOGITS_PROCESSOR)
SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5")
"""Endings of formats that can run code when opened, or that no reader of this format needs."""

RUN_RECORD = "run.json"
"""How a run of `valueadapter train` began, in its output directory."""

TRAINING_STATE = (
    RUN_RECORD,
    "trainer_state.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "*_results.json",
    "latest",
    "global_step*",
    "zero_to_fp32.py",
    "checkpoint-*",
    "runs",
    "wandb",
    "mlruns",
)
"""What Trainer, DeepSpeed and what Trainer reports to keep at the root of a directory that they save to: never opened
here, never published."""

CHECKPOINT_ADAPTER = "adapter"
"""Where a training checkpoint keeps its adapter, beside the optimizer's state."""
CHECKPOINT_LORA = "lora"
"""Where it keeps what is trained in place of an adapter, if a LoRA's base has no commit that an adapter could name."""
TRAINED_WEIGHTS = "trained.safetensors"
"""The file that holds it."""

SAVING = ".valueadapter-saving-"
"""How the name of a directory begins in which an adapter is put together while it is saved."""
BEFORE = "before"
"""In such a directory: the adapter that is being replaced, once that has begun."""


def is_training_state(name: str) -> bool:
    """Whether an entry of this name at the root of a directory is the Trainer's own."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in TRAINING_STATE)


def is_hidden(name: str) -> bool:
    """Whether an entry of a directory is neither read nor published: an editor's, a tool's, the file system's own."""
    return name.startswith(".") or name == "lost+found"


def patterns(networks: Iterable[str]) -> list[str]:
    """Patterns of the paths of everything that makes up an adapter, except the card and code.

    What a save replaces, a push publishes and a download brings. A star also matches what lies deeper.

    Args:
        networks: the directories of the value networks.
    """
    return [
        CONFIG,
        *BESIDE_CONFIG,
        f"{CHAT_TEMPLATES}/*{CHAT_TEMPLATE}",
        f"{ALIGNMENTS}/*{SAFETENSORS}",
        *(f"{glob.escape(network)}/*{end}" for network in networks for end in (".json", SAFETENSORS)),
    ]


def is_part(path: str, networks: Iterable[str]) -> bool:
    """Whether the file at `path`, relative and with forward slashes, is one of those that make up an adapter."""
    if any(is_hidden(name) for name in path.split("/")):
        return False
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns(networks))


def is_code(path: str) -> bool:
    """Whether the file at `path` lies where `valueadapter export` writes code, and may be of it."""
    folder, _, name = path.partition("/")
    return folder in CODE_FOLDERS and (name.endswith((".py", "requirements.txt")) or name.startswith("__pycache__/"))


def network_directory(index: int) -> str:
    """The default directory of the value network at `index`: value_network, value_network_1, …"""
    return NETWORK if index == 0 else f"{NETWORK}_{index}"
