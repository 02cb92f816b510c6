"""A recipe: what a run is asked to train, its defaults, what cannot be, and what the run is known again by.

Knows settings and names; directories are `run_directory`'s, records of data those of `demonstrations`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from transformers.integrations import get_available_reporting_integrations

from valueadapter import hub
from valueadapter.artifact.config import Connection, Initialisation, Prefix, Weights
from valueadapter.artifact.config.number import finite, hold, whole
from valueadapter.artifact.config.prefix import GivenPrefix
from valueadapter.errors import ConfigError
from valueadapter.training.arguments import ValueTrainingArguments

NetworkKind = Literal["lora", "full"]

PREFIX_EXAMPLES = 8
EPOCHS: Mapping[NetworkKind, float] = {"lora": ValueTrainingArguments.num_train_epochs, "full": 1}
"""Passes over the demonstrations."""
LEARNING_RATES: Mapping[NetworkKind, float] = {"lora": ValueTrainingArguments.learning_rate, "full": 1e-4}
"""Peak of the cosine schedule."""
DEFAULT_WEIGHTS: Mapping[NetworkKind, Weights] = {"lora": Weights(0.7, (0.6, -0.3)), "full": Weights(1.0, (1.0,))}
"""For bases that nobody measured: the triple of least worst regret, see docs/transfer.md."""
HELD_OUT_SHARE = 12
"""One demonstration of so many is held out, to fit the weights of the training base on; none of fewer than LEAST."""
HELD_OUT_LEAST, HELD_OUT_MOST = 48, 48
"""Of this many demonstrations on some are held out; and this many at most."""


@dataclass(frozen=True)
class Recipe:
    """What to train on what."""

    base: str
    """Hub ID or directory of the base model."""
    data: Any
    """Demonstrations, as `load_demonstrations` takes them."""
    output_dir: Path | str
    """Where checkpoints and the adapter go."""
    split: str | None = None
    """Of `data`, where it is a dataset on the Hub: `train` by default, or as `datasets` writes them (`train[:10%]`)."""
    limit: int | None = None
    """Take the first so many demonstrations of `data`."""
    eval_data: Any = None
    """Held-out demonstrations, on which the weights for the training base are fitted, and which the `score` that `run`
    is given measures for the summary. By default a few of `data` are held out to fit on."""
    base_name: str | None = None
    """Hub ID of the base to record, where `base` is a path. Where that repository holds the same model, its commit is
    recorded too, and of a LoRA network nothing but the LoRA is stored."""
    base_revision: str | None = None
    """Branch, tag or commit of the base on the Hub; the commit is recorded."""
    data_name: str | None = None
    """Name of the data to record, where `data` is no Hub ID."""
    network: NetworkKind = "lora"
    """`lora`: the base with a LoRA at +1, beside the base at -1, which both read the prefix as the base does, so that
    what is added is what training moved beyond it; `full`: a network of its own, all of it trained, on the prefixed
    base."""
    lora_rank: int = 16
    """Of the LoRA."""
    lora_alpha: int | None = None
    """What the LoRA is scaled by, times the rank; twice the rank by default."""
    target_modules: Sequence[str] | None = None
    """Names of the linear layers that the LoRA is on, as `q_proj`; by default every one of the body."""
    lora_reads_prefix: bool = True
    """Whether the network with the LoRA reads the prefix, in training and in use, so that all models have one text."""
    num_layers: int | None = None
    """First N layers of the body, of a full network."""
    initialisation: Initialisation = "zero_head"
    """How a full network starts."""
    connection: Connection = "residual"
    """What the network reads: the tokens, the base's prediction, or both."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """How the bases are loaded, and the networks beside them; `auto` as they are stored. What a LoRA network trains is
    held in float32 all the same."""
    other_bases: Sequence[str] = ()
    """Hub IDs or directories of bases of the same vocabulary that take part."""
    dropout: float | None = None
    """Dropout of a full network; None as its architecture has it."""
    base_prefix: GivenPrefix = None
    """Text or chat messages that the base reads before the prompt; recorded in the adapter."""
    base_prefix_examples: int | None = None
    """In its place: this many demonstrations, drawn by the seed and then not trained on. By default PREFIX_EXAMPLES;
    none for plain text, which shows nothing, or where a `base_prefix` is given."""
    scale: float | None = None
    """The scale to act at on bases that nobody measured; by default 1, as DEFAULT_WEIGHTS say."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """More `ValueTrainingArguments`."""

    def __post_init__(self) -> None:
        hold(self, whole, "lora_rank", "lora_alpha", "num_layers", "limit", least=1)
        hold(self, whole, "base_prefix_examples", least=0)
        hold(self, finite, "scale", "dropout")


_OF_RECIPE = ("network", "connection", "lora_rank", "num_layers", "initialisation", "dropout")
_OF_ARGUMENTS = (
    "penalty",
    "penalty_coefficient",
    "centred",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "label_smoothing_factor",
    "seed",
)


def check_settings(recipe: Recipe, *, push_to: str | None) -> None:
    """Whether the settings of a recipe go together and its result may be published; loads nothing.

    Raises:
        ConfigError: settings that exclude each other, values out of range, or names that only this machine knows.
        huggingface_hub.errors: no permission to publish, or no such account.
    """
    choices: dict[str, Any] = {
        "network": NetworkKind,
        "initialisation": Initialisation,
        "connection": Connection,
        "dtype": Literal["auto", "float32", "bfloat16"],
    }
    for name, kind in choices.items():
        if (given := getattr(recipe, name)) not in get_args(kind):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(kind))}; got {given!r}")
    if not (save_steps := recipe.arguments.get("save_steps", 1)) > 0:
        raise ConfigError(f"save_steps is a number of steps, or below 1 a share of them; got {save_steps}")
    _check_combination(recipe)
    check_trackers(recipe.arguments.get("report_to"))
    private = recipe.arguments.get("hub_private_repo")
    if private and push_to is None:
        raise ConfigError("a private repository is asked for, and nothing is to be published; say under which name")
    if push_to is not None:
        name = recipe.base_name or recipe.base
        if Path(name).exists():
            raise ConfigError(
                f"the base is a path ('{name}'), which others do not have; give its Hub ID with --base-name "
                "(base_name=)"
            )
        hub.check_push(push_to, private=private)


def check_trackers(wanted: str | Sequence[str] | None) -> None:
    """Whether those whom a run reports to are installed.

    Raises:
        ConfigError: one is not; lists those that are.
    """
    names = [wanted] if isinstance(wanted, str) else [*(wanted or ())]
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in (*installed, "all", "none"):
            raise ConfigError(
                f"nobody can report to '{name}' here; installed are {', '.join(installed) or 'no trackers'}. Install "
                "it, or leave it out"
            )


def _check_combination(recipe: Recipe) -> None:
    of_full = {"num_layers": None, "initialisation": "zero_head", "dropout": None, "connection": "residual"}
    given = [name for name, default in of_full.items() if getattr(recipe, name) != default]
    if recipe.network == "lora" and given:
        raise ConfigError(
            f"a LoRA network is the base as it is and reads its tokens; for {', '.join(given)} train network='full'"
        )
    of_lora = {"lora_alpha": recipe.lora_alpha, "target_modules": recipe.target_modules}
    if recipe.network == "full" and (given := [name for name, value in of_lora.items() if value is not None]):
        raise ConfigError(f"{' and '.join(given)} is of a LoRA network; train network='lora', or leave it out")
    if recipe.split is not None and (not isinstance(recipe.data, str) or Path(recipe.data).exists()):
        what = f"'{recipe.data}' is a file" if isinstance(recipe.data, (str, Path)) else "these data are at hand"
        raise ConfigError(
            f"split is of a dataset on the Hub, and {what}; leave it out, or take the first of it by limit"
        )
    if not recipe.lora_reads_prefix and recipe.network == "full":
        raise ConfigError("lora_reads_prefix is of a LoRA network; train network='lora', or leave it out")
    if recipe.eval_data is not None and recipe.arguments.get("release_base"):
        raise ConfigError(
            "release_base gives the base's memory back, and eval_data would be scored with it; give one of them, and "
            "score the adapter with `valueadapter evaluate`"
        )


def all_read(recipe: Recipe, prefix: Prefix | None) -> bool:
    """Whether every network of the adapter reads this prefix, in training, too."""
    return recipe.network == "lora" and recipe.lora_reads_prefix and prefix is not None


def _said_if_chosen(recipe: Recipe, prefix: Prefix | None) -> dict[str, Any]:
    """Settings that runs which lie in directories do not say, since they had them as they are by default."""
    alpha = None if recipe.lora_alpha == 2 * recipe.lora_rank else recipe.lora_alpha
    chosen: dict[str, Any] = {
        "lora_reads_prefix": all_read(recipe, prefix) or None,
        "lora_alpha": alpha,
        "target_modules": None if recipe.target_modules is None else sorted({*recipe.target_modules}),
        "dtype": None if recipe.dtype == "auto" else recipe.dtype,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def run_settings(
    recipe: Recipe, arguments: ValueTrainingArguments, *, base: str, data: Sequence[Any], prefix: Prefix | None
) -> dict[str, Any]:
    """What decides what a run learns, as JSON values; a longer run of the same settings is the same run.

    Args:
        recipe: what is trained.
        arguments: how.
        base: what tells the base from others.
        data: the demonstrations trained on, in their order.
        prefix: what the base reads before them.
    """
    digest = hashlib.sha256()
    for record in data:
        digest.update(json.dumps(record, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    # a list of one, as the runs that lie in directories have it: another digest would be another run
    shown = hashlib.sha256(repr([prefix]).encode("utf-8", "surrogatepass"))
    return {
        **{name: getattr(recipe, name) for name in _OF_RECIPE},
        **{name: getattr(arguments, name) for name in _OF_ARGUMENTS},
        **_said_if_chosen(recipe, prefix),
        "base": base,
        "other_bases": [str(place) for place in recipe.other_bases],
        "data": f"{len(data)} demonstrations, sha256:{digest.hexdigest()}",
        "base_prefix": f"sha256:{shown.hexdigest()}" if prefix is not None else None,
    }
