"""The command that trains an adapter: arguments to a run, a run to a summary; knows nothing of the loss."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valueadapter.cli import other_libraries, output
from valueadapter.cli.choices import Connection, Network, Penalty, Start, TrainingDtype
from valueadapter.cli.models import check_device
from valueadapter.compat import require
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from valueadapter.training.recipe_settings import Recipe


def train(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model; it stays frozen.")],
    data: Annotated[str, typer.Option(help="Demonstrations: a file (JSON Lines, CSV …) or a Hub dataset.")],
    output_dir: Annotated[Path, typer.Option("--output", help="Where checkpoints and the adapter go.")],
    eval_data: Annotated[str | None, typer.Option(help="Held-out demonstrations, for the summary.")] = None,
    base_name: Annotated[
        str | None,
        typer.Option(
            help="The base's Hub ID to record, if --base is a path. Where it holds the same model, its commit is "
            "recorded, too, and of a LoRA nothing else is stored."
        ),
    ] = None,
    base_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base.")] = None,
    network: Annotated[
        Network, typer.Option(help="lora: the base with a LoRA, minus the base; full: a network of its own.")
    ] = Network.lora,
    lora_rank: Annotated[int, typer.Option(help="Rank of the LoRA.", min=1)] = 16,
    layers: Annotated[int | None, typer.Option(help="Keep the first N layers of a full network.", min=1)] = None,
    init: Annotated[Start, typer.Option(help="How a full network starts.")] = Start.zero_head,
    connection: Annotated[
        Connection, typer.Option(help="What a full network reads: tokens, what the base expects next, or both.")
    ] = Connection.residual,
    base_prefix: Annotated[
        Path | None, typer.Option(help="File with text that only the base reads, before each demonstration.")
    ] = None,
    base_prefix_examples: Annotated[
        int | None,
        typer.Option(help="In its place: demonstrations drawn from the data, and not trained on; 0: none.  [8]", min=0),
    ] = None,
    penalty: Annotated[Penalty, typer.Option(help="On the value logits.")] = Penalty.none,
    penalty_coefficient: Annotated[float, typer.Option(help="Weight of the penalty.", min=0)] = 1.0,
    centred: Annotated[bool, typer.Option("--centred/--raw", help="Penalty after, or without, centring.")] = True,
    dropout: Annotated[float | None, typer.Option(help="Dropout of a full network, if it has some.")] = None,
    other_base: Annotated[list[str] | None, typer.Option(help="Another base of the vocabulary; repeatable.")] = None,
    cache_base: Annotated[bool, typer.Option(help="Compute the base's hidden states once, to disk.")] = False,
    release_base: Annotated[bool, typer.Option(help="Then give back the base's memory; without --eval-data.")] = False,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.  [2 for lora, 1 for full]")] = None,
    batch_size: Annotated[int, typer.Option(help="Demonstrations per step.", min=1)] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of a cosine schedule.  [1e-3 for lora, 1e-4 for full]")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens kept of a demonstration.", min=2)] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of order and initialisation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where an earlier run has left checkpoints or an adapter.")
    ] = False,
    push_to: Annotated[str | None, typer.Option(help="Hub ID to publish the adapter under.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    lora_reads_prefix: Annotated[
        bool,
        typer.Option(help="Whether the LoRA reads the prefix, too, as an adapter for vLLM has to."),
    ] = True,
    split: Annotated[
        str | None, typer.Option(help="Split of --data, if it is a Hub dataset; also train[:10%].  [train]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first N demonstrations of --data.", min=1)] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, or the kind that is there: cuda, mps, xpu.  [the latter]")
    ] = None,
    dtype: Annotated[
        TrainingDtype,
        typer.Option(
            help="How the base is loaded, and the network beside it; auto: as it is stored. A LoRA is trained and kept "
            "in float32 all the same; a full network is trained in float32 alone."
        ),
    ] = TrainingDtype.auto,
    save_steps: Annotated[
        float, typer.Option(help="A checkpoint every N steps, or below 1 after that share of them.", min=0)
    ] = 0.25,
    gradient_accumulation: Annotated[int, typer.Option(help="Batches in a step; each is of --batch-size.", min=1)] = 1,
    lora_alpha: Annotated[
        int | None, typer.Option(help="What the LoRA is scaled by, times its rank.  [twice the rank]", min=1)
    ] = None,
    target_modules: Annotated[
        list[str] | None,
        typer.Option(help="Linear layer that the LoRA is on, as q_proj; may be given again.  [all of the body]"),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="Tracker that is told of loss and steps, as wandb or tensorboard; may be given again."),
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="With --push-to, for a repository that is new.")
    ] = None,
) -> None:
    """Train a value adapter on a frozen base from demonstrations.

    A record has `prompt` and `completion`, or `messages` (chat; the loss is on assistant turns), or `text`.
    """
    require("train", "accelerate", "datasets")
    speaks = os.environ.get("RANK", "0") == "0"  # one of several processes
    with output.working("starting torch") if speaks else contextlib.nullcontext():
        from valueadapter.training.recipe_settings import Recipe
    given = {
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "report_to": report_to,
        "hub_private_repo": private,
    }
    recipe = Recipe(
        base=base,
        data=data,
        output_dir=output_dir,
        eval_data=eval_data,
        base_name=base_name,
        base_revision=base_revision,
        network=network.value,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        target_modules=target_modules or None,
        num_layers=layers,
        initialisation=init.value,
        connection=connection.value,
        dtype=dtype.value,
        split=split,
        limit=limit,
        other_bases=other_base or (),
        dropout=dropout,
        base_prefix=None if base_prefix is None else base_prefix.read_text(encoding="utf-8"),
        base_prefix_examples=base_prefix_examples,
        lora_reads_prefix=lora_reads_prefix,
        arguments={
            "penalty": penalty.value,
            "penalty_coefficient": penalty_coefficient,
            "centred": centred,
            "cache_base": cache_base,
            "release_base": release_base,
            "per_device_train_batch_size": batch_size,
            **{key: value for key, value in given.items() if value is not None},
            "max_length": max_length,
            "seed": seed,
            "save_steps": save_steps,
            "gradient_accumulation_steps": gradient_accumulation,
            "use_cpu": _is_cpu(device),
        },
    )
    summary = _run(recipe, speaks=speaks, resume=resume, overwrite=overwrite, push_to=push_to)
    if summary:  # of several processes, the first has it
        output.facts(summary, as_json=as_json)


def _is_cpu(device: str | None) -> bool:
    """Whether a training is to leave the machine's accelerator alone."""
    if device is not None and ":" in device:
        raise ConfigError(
            f"--device takes a kind of device in training; got '{device}'. Which ones of that kind are taken is "
            "said by CUDA_VISIBLE_DEVICES, or accelerate launch"
        )
    check_device(device)
    return device == "cpu"


def _run(recipe: Recipe, *, speaks: bool, **how: Any) -> dict[str, object]:
    """The run, with bars for a person, and for a log the lines that it says itself."""
    from valueadapter.evaluation.held_out import bits_per_byte
    from valueadapter.training.recipe import run
    from valueadapter.training.run_callbacks import TRAINING, TrainingStopped

    other_libraries.also_bars_of_models()
    with contextlib.ExitStack() as shown:
        tell = shown.enter_context(output.progress())
        if speaks:
            shown.enter_context(output.working("at work"))

        def on_progress(what: str, done: int, total: int) -> None:
            if what != TRAINING or output.err.is_terminal:
                tell(what, done, total)

        score = functools.partial(bits_per_byte, on_progress=on_progress)
        try:
            summary = run(recipe, score=score, say=output.say, on_progress=on_progress, **how)
        except TrainingStopped as stopped:
            _leave_process_group()
            output.say(str(stopped))
            raise typer.Exit(130) from None  # as shells say it of a program that Ctrl-C has ended
        _leave_process_group()
    return summary


def _leave_process_group() -> None:
    """A process that ends within its group may abort, and its launcher then ends the one that is still writing."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
