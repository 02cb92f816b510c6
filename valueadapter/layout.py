"""The names of the files in an artifact, each once; knows nothing of what is in them."""

from __future__ import annotations

import fnmatch

CONFIG = "config.json"
"""Everything the adapter is, except weights and tokenizer."""
CARD = "README.md"
"""The model card."""
TOKENIZER = "tokenizer.json"
"""The value network's tokenizer; the training base's is the same."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
"""Files that a tokenizer's `save_pretrained` may write."""
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

TRAINING_STATE = (
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
)
"""What Trainer and DeepSpeed keep at the root of a directory that they save to: never opened here, never published."""

CHECKPOINT_ADAPTER = "adapter"
"""Where a training checkpoint keeps its adapter, beside the optimizer's state."""


def is_training_state(name: str) -> bool:
    """Whether an entry of this name at the root of a directory is the Trainer's own."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in TRAINING_STATE)


def network_directory(index: int) -> str:
    """The default directory of the value network at `index`: value_network, value_network_1, …"""
    return NETWORK if index == 0 else f"{NETWORK}_{index}"
