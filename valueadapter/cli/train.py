"""The command that trains an adapter: arguments to a run, a run to a summary; knows nothing of the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valueadapter.cli import output
from valueadapter.cli.extras import require


def train(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model; it stays frozen.")],
    data: Annotated[str, typer.Option(help="Demonstrations: a file (JSON Lines, CSV …) or a Hub dataset.")],
    output_dir: Annotated[Path, typer.Option("--output", help="Where checkpoints and the adapter go.")],
    eval_data: Annotated[str | None, typer.Option(help="Held-out demonstrations, for the summary.")] = None,
    base_name: Annotated[str | None, typer.Option(help="The base's Hub ID to record, if --base is a path.")] = None,
    base_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the base.")] = None,
    network: Annotated[
        str, typer.Option(help="lora: the base with a LoRA, minus the base; full: a network of its own.")
    ] = "lora",
    lora_rank: Annotated[int, typer.Option(help="Rank of the LoRA.", min=1)] = 16,
    layers: Annotated[int | None, typer.Option(help="Keep the first N layers of a full network.", min=1)] = None,
    init: Annotated[str, typer.Option(help="Of a full network: zero_head, pretrained or random.")] = "zero_head",
    connection: Annotated[
        str, typer.Option(help="What the network reads: residual (tokens), cascade or cascade_with_text.")
    ] = "residual",
    base_prefix: Annotated[
        Path | None, typer.Option(help="File with text that only the base reads, before each demonstration.")
    ] = None,
    base_prefix_examples: Annotated[
        int | None,
        typer.Option(help="In its place: demonstrations drawn from the data, and not trained on; 0: none.  [8]", min=0),
    ] = None,
    penalty: Annotated[str, typer.Option(help="none, l1, l2 or entropy, on the value logits.")] = "none",
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
) -> None:
    """Train a value adapter on a frozen base from demonstrations.

    A record has `prompt` and `completion`, or `messages` (chat; the loss is on assistant turns), or `text`.
    """
    require("train", "accelerate", "datasets")
    from valueadapter.evaluation.held_out import bits_per_byte
    from valueadapter.training.recipe import run
    from valueadapter.training.recipe_settings import Recipe
    from valueadapter.training.run_callbacks import TrainingStopped  # torch and transformers load here

    given = {"num_train_epochs": epochs, "learning_rate": learning_rate}
    recipe = Recipe(
        base=base,
        data=data,
        output_dir=output_dir,
        eval_data=eval_data,
        base_name=base_name,
        base_revision=base_revision,
        network=network,  # type: ignore[arg-type]  # checked by the recipe
        lora_rank=lora_rank,
        num_layers=layers,
        initialisation=init,  # type: ignore[arg-type]  # checked by build_network
        connection=connection,  # type: ignore[arg-type]  # checked by ValueAdapterConfig
        other_bases=other_base or (),
        dropout=dropout,
        base_prefix=None if base_prefix is None else base_prefix.read_text(encoding="utf-8"),
        base_prefix_examples=base_prefix_examples,
        lora_reads_prefix=lora_reads_prefix,
        arguments={
            "penalty": penalty,
            "penalty_coefficient": penalty_coefficient,
            "centred": centred,
            "cache_base": cache_base,
            "release_base": release_base,
            "per_device_train_batch_size": batch_size,
            **{key: value for key, value in given.items() if value is not None},
            "max_length": max_length,
            "seed": seed,
        },
    )
    try:
        summary = run(recipe, resume=resume, overwrite=overwrite, push_to=push_to, score=bits_per_byte, say=output.say)
    except TrainingStopped as stopped:
        output.say(str(stopped))
        raise typer.Exit(130) from None  # as shells say it of a program that Ctrl-C has ended
    if summary:  # of several processes, the first has it
        output.facts(summary, as_json=as_json)
