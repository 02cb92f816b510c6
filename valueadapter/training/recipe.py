"""A whole training run from names to a published adapter, as the command line and the demo do it.

Knows which pieces to put together and what a person wants to read at the end; each piece is another module's.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from valueadapter import hub
from valueadapter.adapter.causal_lm import longest_text
from valueadapter.adapter.lora import build_lora_network, merged
from valueadapter.adapter.network_building import build_network
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import card
from valueadapter.artifact.config import Prefix, ValueAdapterConfig
from valueadapter.artifact.publishing import what_becomes_public
from valueadapter.compat import require
from valueadapter.demonstrations.tokenized import encode, load_demonstrations, tokenize
from valueadapter.errors import ConfigError
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training import sharding
from valueadapter.training.arguments import ValueTrainingArguments
from valueadapter.training.fitted_weights import as_trained_on_its_base, on_training_base, with_fitted_weights
from valueadapter.training.pinning import commit_of_base, in_float32, named_at
from valueadapter.training.recipe_settings import (
    DEFAULT_WEIGHTS,
    Recipe,
    all_read,
    check_settings,
    run_settings,
)
from valueadapter.training.run_arguments import run_arguments
from valueadapter.training.run_callbacks import Progress, StopWhenAsked, TrainingStopped
from valueadapter.training.run_data import (
    check_room,
    data_and_prefix,
    name_of_data,
    stop_strings_of,
    with_some_held_out,
)
from valueadapter.training.run_directory import RunDirectory, base_identity
from valueadapter.training.small_lora import silence
from valueadapter.training.trainer import ValueTrainer

Say = Callable[[str], object]
OnProgress = Callable[[str, int, int], object]
Score = Callable[[ValueAdapterForCausalLM, Sequence[Any]], Mapping[str, object]]
"""From base + adapter at scale 1, and held-out demonstrations, to what the summary says of them."""


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    push_to: str | None = None,
    score: Score | None = None,
    say: Say,
    on_progress: OnProgress | None = None,
) -> dict[str, object]:
    """Trains, saves and, where asked, publishes an adapter.

    Whatever could keep the result from being saved or published is asked for before the base is loaded: settings,
    every demonstration, the output directory, names, and the Hub's permission. Ctrl-C writes a checkpoint. Of several
    processes the first saves and publishes, after the others have returned; these stay in `torch.distributed`'s group.

    Args:
        recipe: what to train.
        resume: go on from the last checkpoint in the output directory, which must be of the same run.
        overwrite: begin anew where an earlier run has left checkpoints or an adapter; the adapter is replaced at the
            end, the checkpoints go at once.
        push_to: Hub ID to publish under; a new repository is private where the arguments have `hub_private_repo`.
        score: what to say of the recipe's held-out demonstrations, once the adapter is saved and before it is
            published; required with them, as `evaluation.held_out.bits_per_byte`.
        say: called with a line for every step worth knowing of.
        on_progress: called with what is done, how much of it is, and how much there is. Without it the progress bars
            of other libraries are switched off; with it they are the caller's.

    Returns:
        The summary: tokens, loss before and after, the place, the weights for the training base with what held-out
        demonstrations cost at them, and what `score` found.

    Raises:
        ConfigError, ArtifactError, CheckpointError: settings, data or directories that cannot be; nothing has changed.
        MissingExtraError: `accelerate` or `datasets` is not installed.
        TrainingStopped: Ctrl-C; the message says how to go on.
    """
    require("train", "accelerate", "datasets")
    if int(os.environ.get("RANK", "0")) != 0:  # with several processes, one speaks
        say, on_progress = _silent, None
    if on_progress is None:
        import datasets

        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
    directory = RunDirectory(Path(recipe.output_dir))
    check_settings(recipe, push_to=push_to)
    checkpoint = directory.check(resume=resume, overwrite=overwrite)
    arguments = run_arguments(recipe)
    plan = _plan(recipe, arguments, checkpoint, say=say)
    if plan.held_out and score is None:
        raise ConfigError(_NO_SCORE)
    if checkpoint is None:
        if arguments.process_index == 0:
            directory.begin(plan.settings)
    else:
        directory.check_same_run(plan.settings)
        say(f"going on from {checkpoint}")
    model, trainer = _trainer(recipe, plan, arguments, say=say, on_progress=on_progress)
    _rehearse(recipe, trainer, plan, push_to=push_to, say=say)
    over = checkpoint is not None and _step(checkpoint) >= _last_step(trainer)
    if over and directory.is_finished:
        say(f"this run was finished already, at step {_last_step(trainer)}; its adapter is left as it is")
        return {"adapter": str(directory.adapter)}
    if over:
        trainer.take_up(cast(Path, checkpoint))
    else:
        _train(trainer, checkpoint, say)
    trained = trainer.trained_adapter()
    if not trainer.is_world_process_zero():
        return {}
    adapter = _finished(recipe, trained, plan)
    adapter = as_trained_on_its_base(adapter, model, name=name_of_data(recipe))
    place = directory.save(adapter, say=say)  # before anything more is computed, so that nothing is lost
    adapter, found = with_fitted_weights(adapter, model, plan.to_fit_on, arguments, say=say, on_progress=on_progress)
    if plan.to_fit_on:
        adapter.save_pretrained(place)
    elif sharding.is_on(arguments):
        say("no process has whole models after this training, so nothing was fitted: run valueadapter calibrate")
    summary = _summary(place, adapter) | found
    if plan.held_out and score is not None:
        say(f"scoring {len(plan.held_out):,} held-out demonstrations")
        summary |= score(on_training_base(adapter, model.unload(), model.base_tokenizer), plan.held_out)
    if push_to is not None:
        say(f"publishing {push_to}")
        summary["published"] = adapter.push_to_hub(push_to, private=arguments.hub_private_repo).commit_url
    return summary


_NO_SCORE = (
    "eval_data are held-out demonstrations for the summary, and nothing says how they are scored; pass "
    "score=valueadapter.evaluation.held_out.bits_per_byte, or leave eval_data out"
)


_NOT_SCORED = (
    "held-out demonstrations are scored on whole models, and after a training with FSDP or ZeRO-3 no process has them; "
    "leave eval_data out, and afterwards run valueadapter calibrate, which fits the weights, and valueadapter evaluate"
)


def _silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class _Plan:
    """What is known before the base is loaded."""

    data: Any  # a datasets.Dataset
    """Tokenized demonstrations."""
    prefix: Prefix | None
    """What the base reads before each."""
    stop_strings: tuple[str, ...]
    """What ends an answer behind it."""
    held_out: list[Any]
    """Held-out demonstrations that were given, as they came."""
    to_fit_on: list[Any]
    """Those, or some of the data that are not trained on: the weights for the training base are fitted on them."""
    tokenizer: PreTrainedTokenizerBase
    commit: str | None
    """Of the base on the Hub; of one in a directory that of the repository that holds the same model, if one does."""
    settings: dict[str, Any]
    """What decides what is learned, by which a run is known again."""


def _plan(recipe: Recipe, arguments: ValueTrainingArguments, checkpoint: Path | None, *, say: Say) -> _Plan:
    """Reads and tokenizes all data, and finds out which base is meant."""
    data, prefix = data_and_prefix(recipe)
    held_out = [] if recipe.eval_data is None else list(load_demonstrations(recipe.eval_data))
    in_parts = sharding.is_on(arguments)
    if in_parts and held_out:
        raise ConfigError(_NOT_SCORED)
    data, to_fit_on = (data, held_out) if held_out or in_parts else with_some_held_out(recipe, data)
    commit = hub.resolve_commit(recipe.base, recipe.base_revision)
    _check_code(recipe.base, commit)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base, revision=commit)
    if prefix is not None:
        prefix_ids(prefix, tokenizer)
    for record in held_out:
        encode(record, tokenizer)
    identity = base_identity(recipe.base, commit)
    settings = run_settings(recipe, arguments, base=identity, data=data, prefix=prefix)
    tokenized = tokenize(data, tokenizer, max_length=arguments.max_length)
    if commit is None and recipe.base_name is not None:
        commit = commit_of_base(recipe.base_name, Path(recipe.base), recipe.base_revision, checkpoint, say=say)
    return _Plan(tokenized, prefix, stop_strings_of(recipe, prefix), held_out, to_fit_on, tokenizer, commit, settings)


def _check_code(base: str, commit: str | None) -> None:
    try:
        AutoConfig.from_pretrained(base, revision=commit, trust_remote_code=False)
    except ValueError as error:
        raise ConfigError(
            f"no adapter can be trained on '{base}' ({' '.join(str(error).split())[:160]}). Its networks would need "
            "the base's own code, and an adapter runs none: train on a model that transformers has"
        ) from error


def _trainer(
    recipe: Recipe, plan: _Plan, arguments: ValueTrainingArguments, *, say: Say, on_progress: OnProgress | None
) -> tuple[ValueAdapterForCausalLM, ValueTrainer]:
    """The base with a new adapter, and what trains it."""
    with sharding.whole_models(arguments):
        model = _untrained(recipe, plan, say)
        others = [_other_base(place, recipe.dtype, say) for place in recipe.other_bases]
    if not sharding.is_on(arguments):  # which takes weights of one dtype alone
        in_float32(model.value_networks)
    trainer = ValueTrainer(
        model,
        arguments,
        train_dataset=plan.data,
        processing_class=plan.tokenizer,
        other_bases=others,
        say=say,
    )
    silence(trainer)
    trainer.add_callback(Progress(say, on_progress))
    say(f"training on {len(plan.data):,} demonstrations")
    return model, trainer


def _rehearse(recipe: Recipe, trainer: ValueTrainer, plan: _Plan, *, push_to: str | None, say: Say) -> None:
    """Writes down, and throws away, what will be said of the adapter, so that no name stops it after the training."""
    adapter = trainer.trained_adapter()
    config = _finished_config(recipe, adapter.config, plan)
    ValueAdapterConfig.from_json(config.to_json())
    card.render_card(config, repo_id=push_to)
    if push_to is not None and (line := what_becomes_public(config, push_to)) is not None:
        say(line)
    for network in adapter.networks:
        if network.generation_config is not None:
            network.generation_config.validate(strict=True)


def _train(trainer: ValueTrainer, checkpoint: Path | None, say: Say) -> None:
    """Trains to the end, or until Ctrl-C."""
    stop = StopWhenAsked(trainer, say)
    trainer.add_callback(stop)
    with stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stop.asked and (step := trainer.state.global_step) < trainer.state.max_steps:
        raise TrainingStopped(
            f"stopped after step {step} of {trainer.state.max_steps}; what was learned is in "
            f"'{Path(str(trainer.args.output_dir), f'checkpoint-{step}')}'. Go on with the same command and --resume "
            "(in Python: resume=True)"
        )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _last_step(trainer: ValueTrainer) -> int:
    """After which step the training is over. (Resumed there, the Trainer would do one more.)"""
    return int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])


def _summary(place: Path, adapter: ValueAdapter) -> dict[str, object]:
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
    return summary


def _other_base(place: str, dtype: str, say: Say) -> ValueAdapterForCausalLM:
    say(f"base model {place} takes part, frozen")
    base = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    return ValueAdapterForCausalLM(base, tokenizer=AutoTokenizer.from_pretrained(place))


def _untrained(recipe: Recipe, plan: _Plan, say: Say) -> ValueAdapterForCausalLM:
    """The base with a new adapter."""
    say(f"base model {recipe.base}, frozen")
    here = Path(recipe.base).exists()
    base = AutoModelForCausalLM.from_pretrained(recipe.base, revision=None if here else plan.commit, dtype=recipe.dtype)
    set_seed(int(recipe.arguments.get("seed", 0)))
    model = ValueAdapterForCausalLM(base, tokenizer=plan.tokenizer)
    name = recipe.base_name or recipe.base
    networks, coefficients = _networks(recipe, base, name, plan.commit, say)
    reads_it = all_read(recipe, plan.prefix)
    adapter = ValueAdapter.from_networks(
        networks,
        plan.tokenizer,
        base_model_name_or_path=name,
        coefficients=coefficients,
        base_model_revision=plan.commit,
        connection=recipe.connection,
        # of a LoRA that does not read it, it cancels out, and costs
        base_prefix=plan.prefix if recipe.network == "full" or reads_it else None,
        reads_prefix=[reads_it] * len(networks),
    )
    if recipe.network == "lora" and here and plan.commit is not None:
        adapter = named_at(adapter, 1, repo=name, revision=plan.commit)
    model.add_adapter(adapter, "default", is_trainable=True)
    if plan.prefix is not None:
        tokens = len(prefix_ids(plan.prefix, plan.tokenizer))
        check_room(plan.data["input_ids"], tokens, longest_text(base))
        say(f"the base will read a prefix of {tokens:,} tokens before each prompt")
    if isinstance(plan.prefix, str) and recipe.base_prefix is None and not plan.stop_strings:
        say("responses hold blank lines themselves, so that none ends an answer; the adapter records no stop string")
    return model


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
    network = build_lora_network(
        base,
        rank=recipe.lora_rank,
        name=name,
        revision=commit,
        alpha=recipe.lora_alpha,
        target_modules=recipe.target_modules,
    )
    trained = sum(p.numel() for key, p in network.named_parameters() if "lora_" in key)
    say(f"value network: the base with a LoRA of {trained / 1e6:,.1f}M parameters, minus the base")
    here = commit is None or Path(recipe.base).exists()  # what lies here is not downloaded
    return [network, copy.deepcopy(base) if here else f"{name}@{commit}"], [1.0, -1.0]


def _finished(recipe: Recipe, adapter: ValueAdapter, plan: _Plan) -> ValueAdapter:
    """The adapter as it is recorded. A LoRA whose base has no commit to pin goes into the network's weights."""
    unpinned = recipe.network == "lora" and adapter.config.base_model_revision is None
    networks = [merged(one) for one in adapter.networks] if unpinned else adapter.networks
    return ValueAdapter(_finished_config(recipe, adapter.config, plan), networks, adapter.tokenizer)


def _finished_config(recipe: Recipe, config: ValueAdapterConfig, plan: _Plan) -> ValueAdapterConfig:
    """What is recorded.

    On its training base a LoRA network gives base + (LoRA - base) at scale 1, whatever both bases read: to a LoRA that
    does not read it the prefix changes nothing there, and is set afterwards. The weights are those for bases that
    nobody measured.
    """
    default = DEFAULT_WEIGHTS[recipe.network]
    networks = [
        dataclasses.replace(spec, coefficient=weight)
        for spec, weight in zip(config.networks, default.networks, strict=True)
    ]
    if recipe.network == "lora":
        networks[1] = dataclasses.replace(networks[1], reads_prefix=plan.prefix is not None)
    return dataclasses.replace(
        config,
        networks=tuple(networks),
        base_weight=default.base,
        end_weight=default.end,
        stop_strings=plan.stop_strings,
        scale=1.0 if recipe.scale is None else recipe.scale,
        base_prefix=plan.prefix if recipe.network == "lora" else config.base_prefix,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
