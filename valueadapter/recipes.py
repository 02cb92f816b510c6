"""A whole training run from names to a published adapter, as the command line and the demo do it.

Knows which pieces to put together and what a person wants to read at the end; each piece is another module's.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from valueadapter import hub, layout
from valueadapter.adapter import ValueAdapter
from valueadapter.config import Connection, Initialisation, Prefix
from valueadapter.data import as_context, load_demonstrations
from valueadapter.demonstrations import Demonstrations
from valueadapter.errors import ConfigError
from valueadapter.evaluation import draw, evaluate
from valueadapter.modeling import ValueAdapterForCausalLM
from valueadapter.network import build_lora_network, build_network, merged, set_trainable
from valueadapter.prefix import GivenPrefix, Recorded, as_prefix, prefix_ids
from valueadapter.record_checks import shape_of
from valueadapter.training import ValueTrainer, ValueTrainingArguments

Say = Callable[[str], object]
NetworkKind = Literal["lora", "full"]

PREFIX_EXAMPLES = 8
EPOCHS: Mapping[NetworkKind, int] = {"lora": 2, "full": 1}
"""Passes over the demonstrations."""
LEARNING_RATES: Mapping[NetworkKind, float] = {"lora": 1e-3, "full": 1e-4}
"""Peak of the cosine schedule."""
SCALES: Mapping[NetworkKind, float] = {"lora": 0.25, "full": 1.0}
"""Recommended for bases that nobody measured; these defaults are what docs/transfer.md argues for."""


@dataclass(frozen=True)
class Recipe:
    """What to train on what."""

    base: str
    """Hub ID or directory of the base model."""
    data: Any
    """Demonstrations, as `load_demonstrations` takes them."""
    output_dir: Path
    """Where checkpoints and the adapter go."""
    eval_data: Any = None
    """Held-out demonstrations."""
    base_name: str | None = None
    """Hub ID of the base to record, where `base` is a path."""
    data_name: str | None = None
    """Name of the data to record, where `data` is no Hub ID."""
    network: NetworkKind = "lora"
    """`lora`: the base with a LoRA at +1, beside the base at -1, which reads the prefix as the base does, so that what
    is added is what training moved beyond it; `full`: a network of its own, all of it trained, on the prefixed base."""
    lora_rank: int = 16
    """Of the LoRA."""
    num_layers: int | None = None
    """First N layers of the body, of a full network."""
    initialisation: Initialisation = "zero_head"
    """How a full network starts."""
    connection: Connection = "residual"
    """What the network reads: the tokens, the base's prediction, or both."""
    other_bases: Sequence[str] = ()
    """Hub IDs or directories of bases of the same vocabulary that take part."""
    dropout: float | None = None
    """Dropout of a full network; None as its architecture has it."""
    base_prefix: GivenPrefix = None
    """Text or chat messages that the base reads before the prompt; recorded in the adapter."""
    base_prefix_examples: int | None = None
    """In its place: this many demonstrations, drawn by the seed and then not trained on. By default PREFIX_EXAMPLES;
    none for plain text, which shows nothing, or where a `base_prefix` is given."""
    base_prefix_draws: int = 1
    """So many prefixes of that many examples are drawn, and a full network is trained behind a random one of them; the
    first is recorded."""
    scale: float | None = None
    """Recommended scale to record; by default that of SCALES."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """More `ValueTrainingArguments`."""


def run(recipe: Recipe, *, resume: bool = False, push_to: str | None = None, say: Say) -> dict[str, object]:
    """Trains, saves and, where asked, publishes an adapter.

    Args:
        recipe: what to train.
        resume: go on from the last checkpoint in the output directory.
        push_to: Hub ID to publish under.
        say: called with a line for every step worth knowing of.

    Returns:
        The summary: tokens, loss before and after, held-out bits per byte of base and base + adapter, the place.
    """
    if int(os.environ.get("RANK", "0")) != 0:  # with several processes, one speaks

        def say(line: str) -> None:
            """Silence."""

    _check(recipe)
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    data, prefixes = _data_and_prefixes(recipe)
    prefix, more = prefixes[0] if prefixes else None, prefixes[1:]
    model, name = _untrained(recipe, prefix, say)
    others = [_other_base(place, say) for place in recipe.other_bases]
    trainer = ValueTrainer(
        model, _arguments(recipe, name), train_dataset=data, other_bases=others, more_prefixes=more, say=say
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(_Progress(say))
    say(f"training on {len(data):,} demonstrations")
    trainer.train(resume_from_checkpoint=resume)
    place = recipe.output_dir / layout.CHECKPOINT_ADAPTER
    adapter = _finished(recipe, trainer.trained_adapter(), prefix)
    if not trainer.is_world_process_zero():
        return {}
    adapter.save_pretrained(place)
    record = adapter.config.training
    summary: dict[str, object] = {"adapter": str(place)}
    if record is not None:
        summary |= {
            "demonstrations": record.num_examples,
            "response_tokens": record.num_response_tokens,
            "steps": record.steps,
            "loss_before": _rounded(record.loss_first),
            "loss_after": _rounded(record.loss_last),
        }
    if recipe.eval_data is not None:
        base, tokenizer = model.unload(), model.base_tokenizer
        model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
        model.add_adapter(adapter, "default", scale=1.0)
        summary |= _held_out(model.eval(), recipe.eval_data, say)
    if push_to is not None:
        summary["published"] = adapter.push_to_hub(push_to).commit_url
    return summary


def _check(recipe: Recipe) -> None:
    if recipe.network not in get_args(NetworkKind):
        raise ConfigError(f"network must be one of {', '.join(get_args(NetworkKind))}; got {recipe.network!r}")
    of_full: dict[str, Any] = {"num_layers": None, "initialisation": "zero_head", "dropout": None}
    of_full |= {"connection": "residual", "base_prefix_draws": 1}
    given = [name for name, default in of_full.items() if getattr(recipe, name) != default]
    if recipe.network == "lora" and given:
        raise ConfigError(
            f"a LoRA network is the base as it is and reads its tokens; for {', '.join(given)} train network='full'"
        )
    if recipe.eval_data is not None and recipe.arguments.get("release_base"):
        raise ConfigError(
            "release_base gives the base's memory back, and eval_data would be scored with it; give one of them, and "
            "score the adapter with `valueadapter evaluate`"
        )
    draws = recipe.base_prefix_draws
    if draws < 1 or (draws > 1 and (recipe.base_prefix is not None or recipe.base_prefix_examples == 0)):
        raise ConfigError(
            f"base_prefix_draws must be at least 1, and is for prefixes of drawn examples; got {draws}. Give "
            "base_prefix_examples, and no base_prefix"
        )


def _other_base(place: str, say: Say) -> ValueAdapterForCausalLM:
    say(f"base model {place} takes part, frozen")
    base = AutoModelForCausalLM.from_pretrained(place)
    return ValueAdapterForCausalLM(base, tokenizer=AutoTokenizer.from_pretrained(place))


def _data_and_prefixes(recipe: Recipe) -> tuple[Demonstrations, list[Prefix]]:
    """The demonstrations to train on, and what the base may read before each, the one to record first."""
    data, given = load_demonstrations(recipe.data), recipe.base_prefix
    count = recipe.base_prefix_examples
    if count is None:
        shapes = {shape_of(record) for record in data}  # plain text shows nothing, and a context is of one shape
        count = 0 if given is not None or "text" in shapes or len(shapes) > 1 else PREFIX_EXAMPLES
    if not count:
        prefix = None if isinstance(given, Recorded) else as_prefix(given)
        return data, [] if prefix is None else [prefix]
    if given is not None:
        raise ConfigError("base_prefix and base_prefix_examples exclude each other; give one of them")
    wanted = count * recipe.base_prefix_draws
    drawn = draw(list(data), wanted, seed=int(recipe.arguments.get("seed", 0))) if wanted < len(data) else list(data)
    rest = [index for index in range(len(data)) if data[index] not in drawn]
    if not rest:
        raise ConfigError(
            f"base_prefix_examples={count} (drawn {recipe.base_prefix_draws} times) leaves nothing to train on of "
            f"{len(data)} demonstrations; take fewer (0: no prefix)"
        )
    contexts = [as_prefix(as_context(drawn[begin : begin + count])) for begin in range(0, wanted, count)]
    return data.select(rest), [prefix for prefix in contexts if prefix is not None]


def _untrained(recipe: Recipe, prefix: Prefix | None, say: Say) -> tuple[ValueAdapterForCausalLM, str]:
    """The base with a new adapter, and the base's name for the record."""
    say(f"base model {recipe.base}, frozen")
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    base = AutoModelForCausalLM.from_pretrained(recipe.base)
    set_seed(int(recipe.arguments.get("seed", 0)))
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    name = recipe.base_name or recipe.base
    commit = None if Path(recipe.base).exists() else hub.resolve_commit(recipe.base)
    networks, coefficients = _networks(recipe, base, name, commit, say)
    adapter = ValueAdapter.from_networks(
        networks,
        tokenizer,
        base_model_name_or_path=name,
        coefficients=coefficients,
        base_model_revision=commit,
        connection=recipe.connection,
        base_prefix=prefix if recipe.network == "full" else None,  # of a LoRA it cancels out, and costs
    )
    model.add_adapter(adapter, "default", is_trainable=True)
    for network in adapter.networks[1:]:
        set_trainable(network, False)
    if prefix is not None:
        say(f"the base will read a prefix of {len(prefix_ids(prefix, tokenizer)):,} tokens before each prompt")
    return model, name


def _networks(
    recipe: Recipe, base: PreTrainedModel, name: str, commit: str | None, say: Say
) -> tuple[list[PreTrainedModel | str], list[float]]:
    """The networks of a new adapter, and their coefficients."""
    if recipe.network == "full":
        network = build_network(
            base, initialisation=recipe.initialisation, num_layers=recipe.num_layers, dropout=recipe.dropout
        )
        say(f"value network of {network.num_parameters() / 1e6:,.1f}M parameters, start: {recipe.initialisation}")
        return [network], [1.0]
    network = build_lora_network(base, rank=recipe.lora_rank, name=name, revision=commit)
    trained = sum(p.numel() for key, p in network.named_parameters() if "lora_" in key)
    say(f"value network: the base with a LoRA of {trained / 1e6:,.1f}M parameters, minus the base")
    return [network, copy.deepcopy(base) if commit is None else f"{name}@{commit}"], [1.0, -1.0]


def _finished(recipe: Recipe, adapter: ValueAdapter, prefix: Prefix | None) -> ValueAdapter:
    """The adapter as it is recorded. A LoRA whose base has no commit to pin goes into the network's weights.

    On its training base a LoRA network gives base + (LoRA - base) at scale 1, whatever both bases read: the prefix
    changes nothing there, and is set afterwards.
    """
    config = adapter.config
    scale = SCALES[recipe.network] if recipe.scale is None else recipe.scale
    if recipe.network == "full":
        return adapter.with_config(scale=scale)
    with_lora, base = config.networks
    networks = [merged(one) for one in adapter.networks] if config.base_model_revision is None else adapter.networks
    stands_in = dataclasses.replace(base, reads_prefix=prefix is not None)
    changed = dataclasses.replace(config, networks=(with_lora, stands_in), base_prefix=prefix, scale=scale)
    return ValueAdapter(changed, networks, adapter.tokenizer)


def _arguments(recipe: Recipe, base_name: str) -> ValueTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(recipe.output_dir),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 5,
        "logging_steps": 0.05,
        "logging_first_step": True,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "num_train_epochs": EPOCHS[recipe.network],
        "learning_rate": LEARNING_RATES[recipe.network],
        "initialisation": "pretrained" if recipe.network == "lora" else recipe.initialisation,
        "initialised_from": None if recipe.initialisation == "random" or Path(base_name).exists() else base_name,
        "num_layers": recipe.num_layers,
        "lora_rank": recipe.lora_rank if recipe.network == "lora" else None,
        "data_name": recipe.data_name or _name_of(recipe.data),
    }
    if recipe.network == "lora" and Path(recipe.base).exists():
        settings["save_strategy"] = "no"  # a checkpoint of a LoRA needs a commit of its base to name
    return ValueTrainingArguments(**{**settings, **recipe.arguments})


def _name_of(data: Any) -> str:
    """A Hub ID as it is, the name of a file without its place, and nothing of what objects hold."""
    if not isinstance(data, (str, Path)):
        return "unnamed"
    return Path(data).name if Path(data).exists() else str(data)


def _held_out(model: ValueAdapterForCausalLM, source: Any, say: Say) -> dict[str, object]:
    tokenizer = model.adapters[model.only_adapter()].tokenizer
    records = list(load_demonstrations(source))
    say(f"scoring {len(records):,} held-out demonstrations")
    with model.disable_adapter():
        alone = evaluate(model, tokenizer, records, generate=False).bits_per_byte
    adapted = evaluate(model, tokenizer, records, generate=False).bits_per_byte
    return {
        "held_out_bits_per_byte_base": round(alone, 4),
        "held_out_bits_per_byte_base_and_adapter": round(adapted, 4),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class _Progress(TrainerCallback):
    """One line per logged step: how far, the loss, the time left."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.begun = time.monotonic()
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        done = state.global_step - self.first
        left = (time.monotonic() - self.begun) / max(done, 1) * (state.max_steps - state.global_step)
        self.say(f"  step {state.global_step:>4}/{state.max_steps}  loss {logs['loss']:.3f}  about {left:,.0f} s left")
