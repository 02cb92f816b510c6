"""The command that finds the best scale on a base and records it; knows nothing of how it is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from valueadapter import hub
from valueadapter.cli import output
from valueadapter.cli.artifacts import AsJson, Revision, Source, Token
from valueadapter.cli.destination import check_destination, put
from valueadapter.cli.models import TrustRemoteCode


def calibrate(
    adapter: Source,
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model.")],
    data: Annotated[str, typer.Option(help="Labelled examples: a file or a Hub dataset; not those you evaluate on.")],
    data_name: Annotated[str | None, typer.Option(help="What to call them in the record.")] = None,
    limit: Annotated[int, typer.Option(help="Use this many examples at most.", min=1)] = 100,
    save_to: Annotated[Path | None, typer.Option("--output", help="Write the adapter with the scale here.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Publish the adapter with the scale under its Hub ID.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Find the scale at which base + adapter predicts the examples best, and record it where you say."""
    check_destination(adapter, save_to, push=push, token=token)
    from valueadapter.adapter.value_adapter import ValueAdapter
    from valueadapter.demonstrations.tokenized import load_demonstrations
    from valueadapter.evaluation.calibration import calibrate_scale
    from valueadapter.model.modeling import ValueAdapterForCausalLM

    output.silence_libraries()
    examples = list(load_demonstrations(data))[:limit]
    loaded = ValueAdapter.from_pretrained(adapter, download=hub.Download(revision=revision, token=token))
    model = ValueAdapterForCausalLM.from_pretrained(base, loaded, scale=1.0, trust_remote_code=trust_remote_code)
    output.note(f"scoring {len(examples)} examples with {base}")
    with output.progress() as tell:
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            tell("examples", done, len(examples))

        found = calibrate_scale(model, examples, on_progress=on_progress)
    facts: dict[str, object] = {
        "scale": found.scale,
        "base_bits_per_byte": round(found.curve[0.0], 4),
        "adapted_bits_per_byte": round(found.bits_per_byte, 4),
        "examples": found.num_examples,
    }
    name = Path(base).name if Path(base).is_dir() else base  # a path of this machine means nothing to others
    record = found.recommended(model, base=name, data=data_name or Path(data).name)
    same = name, record.base_fingerprint
    others = [one for one in loaded.config.scales if (one.base, one.base_fingerprint) != same]
    better = loaded.with_config(scales=(*others, record))
    facts |= put(better, adapter, save_to, push=push, message=f"Scale for {name}", revision=revision, token=token)
    if as_json:
        facts |= {"curve": {f"{scale:g}": bits for scale, bits in found.curve.items()}}
        facts["record"] = dataclasses.asdict(record)
    output.facts(facts, as_json=as_json)
