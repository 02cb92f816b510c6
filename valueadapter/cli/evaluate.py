"""The command that measures an adapter on several bases; knows how to show and record it, not how it is measured."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from valueadapter import hub
from valueadapter.cli import other_libraries, output
from valueadapter.cli.artifacts import AsJson, Revision, Source, Token
from valueadapter.cli.destination import check_destination, put
from valueadapter.cli.models import Device, TrustRemoteCode, check_base, check_device
from valueadapter.compat import require

if TYPE_CHECKING:
    from valueadapter.adapter.value_adapter import ValueAdapter
    from valueadapter.evaluation.kept import Kept
    from valueadapter.evaluation.report import Report
    from valueadapter.training.finetuning import FineTuning


def evaluate(
    adapter: Source,
    base: Annotated[list[str], typer.Option(help="Hub ID or directory of a base model; may be given again.")],
    data: Annotated[str, typer.Option(help="Held-out examples: a file (JSON Lines, CSV …) or a Hub dataset.")],
    split: Annotated[str, typer.Option(help="Split of --data, if it is a Hub dataset.")] = "test",
    data_name: Annotated[str | None, typer.Option(help="What to call --data in the record.")] = None,
    limit: Annotated[int | None, typer.Option(help="Score this many examples at most.", min=1)] = None,
    train_data: Annotated[str | None, typer.Option(help="Demonstrations for few-shot prompt and fine-tuning.")] = None,
    shots: Annotated[int, typer.Option(help="Demonstrations in the few-shot prompt.", min=1)] = 4,
    finetune_reference: Annotated[
        bool, typer.Option("--finetune-reference", help="Also fine-tune each base with LoRA on --train-data.")
    ] = False,
    finetune_epochs: Annotated[
        float | None, typer.Option(help="Passes over --train-data; by default as many as the adapter's training had.")
    ] = None,
    calibrate: Annotated[
        int, typer.Option(help="Also fit the weights, on this many examples that are not scored.", min=0)
    ] = 0,
    calibration_data: Annotated[
        str | None, typer.Option(help="Where to take these from; by default --data, after the scored ones.")
    ] = None,
    donor: Annotated[str | None, typer.Option(help="Where the training base lies, if not where recorded.")] = None,
    scale: Annotated[float | None, typer.Option(help="How strongly it acts, in place of its own scale.")] = None,
    generate: Annotated[bool, typer.Option(help="Also answer, and count exact matches.")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer at most.", min=1)] = 16,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.", min=1)] = 16,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    plot: Annotated[list[Path] | None, typer.Option(help="Draw it: FILE.png or FILE.svg; may be given again.")] = None,
    save_to: Annotated[Path | None, typer.Option("--output", help="Write the adapter with the results here.")] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Publish the adapter with the results under its Hub ID.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what a run that was stopped has kept.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
    card_prompts: Annotated[
        bool, typer.Option(help="Show the first three held-out prompts, with the answers, in the adapter's card.")
    ] = True,
) -> None:
    """Measure an adapter on bases, beside everything that one could do without it.

    For each base: it alone, with demonstrations in its prompt, the adapter's own small tuned model, base + adapter at
    its own and at fitted weights, and with --finetune-reference the base fine-tuned directly.
    """
    if finetune_reference:
        require("evaluation", "accelerate", "datasets")
    check_destination(adapter, save_to, push=push, token=token)
    with output.working("starting torch"):
        from valueadapter.adapter.value_adapter import ValueAdapter
        from valueadapter.demonstrations.tokenized import load_demonstrations
        from valueadapter.evaluation.arms import Options, evaluate_adapter
        from valueadapter.evaluation.kept import Kept, default_place
        from valueadapter.evaluation.plot import check_plot, save_plot
        from valueadapter.evaluation.recording import recorded
    other_libraries.also_bars_of_models()
    check_device(device)
    for path in plot or ():
        check_plot(path)
    records = _records(data, split, calibration_data, limit=limit, calibrate=calibrate)
    demonstrations = list(load_demonstrations(train_data)) if train_data else ()
    for one in (*base, *filter(None, [donor])):  # before the first is measured
        check_base(one, token=token)
    with output.working(f"loading {adapter}"):
        loaded = ValueAdapter.from_pretrained(adapter, download=hub.Download(revision=revision, token=token))
    kept = Kept(default_place(), again=again)
    with _resumable(kept), output.progress() as on_progress, output.working("evaluating"):
        options = Options(
            demonstrations=demonstrations,
            shots=shots,
            calibration=records.calibration,
            finetuning=_finetuning(loaded, finetune_epochs, seed) if finetune_reference else None,
            donor=donor,
            scale=scale,
            generate=generate,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            device=device,
            seed=seed,
            trust_remote_code=trust_remote_code,
            data_name=data_name or (Path(data).name if Path(data).exists() else data),
            on_progress=on_progress,
            kept=kept,
        )
        report = evaluate_adapter(loaded, base, records.held_out, options=options)
    report = dataclasses.replace(report, adapter=Path(adapter).name if Path(adapter).is_dir() else adapter)
    done: dict[str, object] = {}
    if plot:
        done["plots"] = [str(save_plot(report, path)) for path in plot]
    better = recorded(loaded, report, prompts=card_prompts)
    _say_what_is_public(better, written=save_to is not None or push)
    message = f"Measured on {', '.join(result.base for result in report.results)}"
    done |= put(better, adapter, save_to, push=push, message=message, revision=revision, token=token)
    _show(report, done, as_json=as_json)
    kept.forget()


def _records(data: str, split: str, calibration_data: str | None, *, limit: int | None, calibrate: int) -> Any:
    from valueadapter.demonstrations.selection import split as split_records
    from valueadapter.demonstrations.tokenized import load_demonstrations

    others = list(load_demonstrations(calibration_data, split=split)) if calibration_data else None
    return split_records(list(load_demonstrations(data, split=split)), limit=limit, calibrate=calibrate, others=others)


def _say_what_is_public(adapter: ValueAdapter, *, written: bool) -> None:
    """Says that held-out prompts are on the card that is written or published, if they are."""
    if written and any(result.prompts for result in adapter.card_results.results):
        output.note(
            "the card shows the first held-out prompts with the answers to them, and is public where the adapter is; "
            "--no-card-prompts leaves them out"
        )


@contextlib.contextmanager
def _resumable(kept: Kept) -> Iterator[None]:
    """Says what is left of a run that is stopped within the block."""
    try:
        yield
    except BaseException:
        if kept.number:
            output.note(
                f"stopped: {kept.number} finished measurements are kept in {kept.place}; the same command goes on with "
                "them"
            )
        raise


def _finetuning(adapter: ValueAdapter, epochs: float | None, seed: int) -> FineTuning:
    from valueadapter.training.finetuning import FineTuning

    recorded = adapter.config.training.epochs if adapter.config.training else None
    return FineTuning(epochs=epochs or recorded or 1.0, seed=seed)


def _show(report: Report, done: Mapping[str, object], *, as_json: bool) -> None:
    """All of it as JSON, or a table for each base with every arm and what the adapter did, and what was done."""
    if as_json:
        output.facts(report.to_dict() | {**done}, as_json=True)
        return
    for arm, result in zip(report.to_dict()["arms"], report.results, strict=True):
        output.show(_table(arm, report))
        facts = {
            "weights": str(result.weights),
            "calibrated weights": "-" if result.calibrated_weights is None else str(result.calibrated_weights),
            "gain recovered": _share(arm["gain_recovered"], arm["intervals"].get("gain_recovered")),
            "tokens changed": _share(arm["changed_share"], arm["intervals"].get("changed_share")),
            "mean |value logit|": f"{_number(arm['value_norm_raw'])}, centred {_number(arm['value_norm_centred'])}",
        }
        output.facts(facts, as_json=False)
    if done:
        output.facts(done, as_json=False)


def _table(arm: dict[str, Any], report: Report) -> Table:
    from valueadapter.evaluation.report import ARMS

    title = f"{arm['base']} ({arm['relation']}): {report.num_examples} examples of {report.data}"
    table = Table(title=output.cell(title), title_justify="left")
    choices = any(arm[f"{name}_choice_accuracy"] is not None for name in ARMS)
    table.add_column("model")
    shown_shares = ("exact", "ends", *(["choices"] if choices else []))
    for column in ("scale", "bits/byte (95 %)", "total", *shown_shares, "first", "middle", "last"):
        table.add_column(column, justify="right", no_wrap=column != "bits/byte (95 %)")
    scales = {"donor": arm["donor_scale"], "adapted": arm["scale"], "calibrated": arm["calibrated_scale"]}
    for name, title in ARMS.items():
        shown = f"{title} ({arm['num_fewshot']})" if name == "fewshot" else title
        at = f"{scales[name]:g}" if scales.get(name) is not None else ""
        if name in arm["not_measured"]:
            table.add_row(shown, at, output.cell(f"not measured: {arm['not_measured'][name]}", "dim"))
            continue
        low, high = arm["intervals"][f"{name}_bits_per_byte"]
        table.add_row(
            shown,
            at,
            f"{arm[f'{name}_bits_per_byte']:.3f} ({low:.2f}-{high:.2f})",
            f"{arm[f'{name}_total_bits_per_byte']:.3f}",
            _share(arm[f"{name}_exact_match"]),
            _share(arm[f"{name}_ends"]),
            *([_share(arm[f"{name}_choice_accuracy"])] if choices else []),
            *(_number(arm[f"{name}_{part}_token_bits"]) for part in ("first", "middle", "last")),
        )
    return table


def _share(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
