"""The settings of a `ValueTrainer`: what they are where nobody says, and that each of ours is explained."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments

from valueadapter import ValueTrainingArguments
from valueadapter.training import arguments
from valueadapter.training.recipe_settings import EPOCHS, LEARNING_RATES


def test_the_defaults_are_the_recipes_for_a_lora(tmp_path: Path) -> None:
    """With the Trainer's own, 5e-5 and linear, the documented block learns nothing."""
    own = ValueTrainingArguments(str(tmp_path))
    assert (own.learning_rate, own.num_train_epochs) == (LEARNING_RATES["lora"], EPOCHS["lora"]) == (1e-3, 2)
    assert (own.lr_scheduler_type, own.warmup_steps, own.per_device_train_batch_size) == ("cosine", 5, 8)
    assert (own.logging_steps, own.logging_first_step) == (0.05, True)


def test_each_field_of_ours_is_explained() -> None:
    """By a string under it, for readers and the reference, and by a help for command lines that are made of fields."""
    (known,) = [one for one in ast.parse(Path(arguments.__file__).read_text()).body if isinstance(one, ast.ClassDef)]
    ours = [one for one in known.body if isinstance(one, ast.AnnAssign)]
    for one in ours:
        below = known.body[known.body.index(one) + 1]
        assert isinstance(below, ast.Expr), ast.unparse(one.target)
        assert isinstance(below.value, ast.Constant), ast.unparse(one.target)
    named = {ast.unparse(one.target) for one in ours}
    assert named >= {one.name for one in fields(ValueTrainingArguments)} - {
        one.name for one in fields(TrainingArguments)
    }
    assert all(one.metadata["help"] for one in fields(ValueTrainingArguments) if one.name in named)


def test_a_command_line_can_be_made_of_them(tmp_path: Path) -> None:
    """As scripts of transformers do."""
    words = ["--output_dir", str(tmp_path), "--penalty", "l1", "--initialisation", "random", "--use_cpu"]
    (found,) = HfArgumentParser(ValueTrainingArguments).parse_args_into_dataclasses(words)
    assert (found.penalty, found.initialisation, found.lora_rank) == ("l1", "random", None)
