"""What a recipe means in the Trainer's own settings; knows no models and no data but their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from valueadapter.training.arguments import ValueTrainingArguments
from valueadapter.training.recipe_settings import EPOCHS, LEARNING_RATES, Recipe
from valueadapter.training.run_data import name_of_data


def run_arguments(recipe: Recipe) -> ValueTrainingArguments:
    """The settings of a run: those that every run has, and over them the recipe's."""
    base_name = recipe.base_name or recipe.base
    settings: dict[str, Any] = {
        "output_dir": str(recipe.output_dir),
        "save_steps": 0.25,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),  # of which torch warns where there is none
        "num_train_epochs": EPOCHS[recipe.network],
        "learning_rate": LEARNING_RATES[recipe.network],
        "initialisation": "pretrained" if recipe.network == "lora" else recipe.initialisation,
        "initialised_from": None if recipe.initialisation == "random" or Path(base_name).exists() else base_name,
        "num_layers": recipe.num_layers,
        "lora_rank": recipe.lora_rank if recipe.network == "lora" else None,
        "data_name": name_of_data(recipe),
    }
    return ValueTrainingArguments(**{**settings, **recipe.arguments})
