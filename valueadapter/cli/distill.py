"""The command that teaches base + adapters to a LoRA on the base; knows nothing of how that is learned."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valueadapter.cli import other_libraries, output
from valueadapter.cli.artifacts import AsJson
from valueadapter.cli.choices import Dtype
from valueadapter.cli.models import HowHeld, TrustRemoteCode, load
from valueadapter.compat import require
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from valueadapter.training.distillation import Distilled


def distill(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model, which gets the LoRA.")],
    data: Annotated[str, typer.Option(help="Demonstrations, of which the text counts: a file or a Hub dataset.")],
    output_dir: Annotated[Path, typer.Option("--output", help="Where the LoRA goes: a new or an empty directory.")],
    adapter: Annotated[
        list[str] | None,
        typer.Argument(help="Hub ID or directory, with =SCALE if you like; several act together.", metavar="ADAPTER…"),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            "--held-out", "--eval-data", help="Demonstrations to measure on; by default every tenth of --data."
        ),
    ] = None,
    base_prefix: Annotated[
        Path | None, typer.Option(help="File with text that only the base reads first, in place of the adapters' own.")
    ] = None,
    no_base_prefix: Annotated[
        bool, typer.Option("--no-base-prefix", help="Teach what the adapters do without their prefix.")
    ] = False,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA, on all linear layers but the head.", min=1)] = 16,
    epochs: Annotated[float, typer.Option(help="Passes over the demonstrations.", min=0)] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Demonstrations per step.", min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak of a cosine schedule.", min=0)] = 1e-3,
    max_length: Annotated[int, typer.Option(help="Tokens kept of a demonstration.", min=2)] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of order and initialisation.")] = 0,
    dtype: HowHeld = Dtype.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Teach base + adapter to an ordinary LoRA on the base, where one model must do.

    An adapter cannot be merged, since it is a second model. The LoRA learns the distribution of base + adapter at the
    responses of the demonstrations, prefix included. What it does not reproduce is measured, and said.
    """
    if not adapter:
        raise ConfigError("there is no adapter to teach; name one, a Hub ID or a directory")
    require("train", "accelerate", "datasets")
    _check_target(output_dir)
    with output.working("starting torch"):
        from valueadapter.demonstrations.tokenized import load_demonstrations
        from valueadapter.training.distillation import distill_into_lora
    other_libraries.also_bars_of_models()
    given = load_demonstrations(data)  # before the models are loaded
    held_out = None if eval_data is None else load_demonstrations(eval_data)
    model, _ = load(
        base,
        adapter,
        base_prefix,
        no_base_prefix=no_base_prefix,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    with output.progress() as on_progress:
        found = distill_into_lora(
            model,
            given,
            eval_data=held_out,
            rank=rank,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            say=output.say,
            on_progress=on_progress,
        )
    _save(found, output_dir)
    output.facts(_facts(found, base, output_dir, as_json=as_json), as_json=as_json)
    if not as_json:
        output.out.print(output.cell(_next(base, output_dir), keep="\n"))


def _check_target(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"--output '{directory}' is there and is no empty directory; name a new one for the LoRA")


def _save(found: Distilled, directory: Path) -> None:
    """Writes the LoRA as a whole or nothing: its configuration, without which none loads it, comes last."""
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".lora-") as work:
            found.model.save_pretrained(work)
            for path in sorted(Path(work).iterdir(), key=lambda one: one.name == "adapter_config.json"):
                path.replace(directory / path.name)
    except BaseException:
        if made:
            shutil.rmtree(directory)
        raise


def _facts(found: Distilled, base: str, directory: Path, *, as_json: bool) -> dict[str, object]:
    """For a program the numbers, for a person what they say."""
    before, after = found.divergence_before, found.divergence_after
    if as_json:
        return {
            "lora": str(directory),
            "base": base,
            "divergence_before": before,
            "divergence_after": after,
            "examples": found.num_examples,
            "held_out_tokens": found.num_held_out_tokens,
        }
    return {
        "lora": str(directory),
        "divergence": f"{before:.3f} nats per token from base + adapter to the base alone, {after:.3f} to the base "
        f"with the LoRA ({found.num_held_out_tokens:,} held-out response tokens)",
        "examples": found.num_examples,
    }


def _next(base: str, directory: Path) -> str:
    """What to write to use the LoRA."""
    return (
        "next: from peft import PeftModel\n"
        "      from transformers import AutoModelForCausalLM\n"
        f"      model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {str(directory)!r})\n"
        "      model.merge_and_unload()  # one plain model, where that is wanted"
    )
