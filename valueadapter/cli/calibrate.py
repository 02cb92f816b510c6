"""The command that fits adapters' weights on a base and records them; knows nothing of how they are found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valueadapter import hub
from valueadapter.artifact.config import ValueAdapterConfig, same_base
from valueadapter.cli import other_libraries, output
from valueadapter.cli.artifacts import AsJson, Revision, Token
from valueadapter.cli.destination import check_destination, put
from valueadapter.cli.models import TrustRemoteCode, check_base, names_of
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from valueadapter.model.modeling import ValueAdapterForCausalLM
    from valueadapter.training.calibration import Calibration


def calibrate(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model.")],
    data: Annotated[str, typer.Option(help="Labelled examples: a file or a Hub dataset; not those you evaluate on.")],
    adapter: Annotated[str | None, typer.Argument(help="Hub ID or directory of the adapter.")] = None,
    together: Annotated[
        list[str] | None, typer.Option("--adapter", help="Fit this one too, together; may be given again.")
    ] = None,
    data_name: Annotated[str | None, typer.Option(help="What to call the examples in the record.")] = None,
    limit: Annotated[int, typer.Option(help="Use this many examples at most.", min=1)] = 100,
    save_to: Annotated[Path | None, typer.Option("--output", help="Write the adapter with its weights here.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Publish the adapter with them under its Hub ID.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Fit what base, networks and end of text count for on a base, and record it where you say."""
    sources = [*([adapter] if adapter is not None else []), *(together or ())]
    if not sources:
        raise ConfigError("there is no adapter to calibrate; name one, a Hub ID or a directory")
    if len(sources) > 1 and (save_to is not None or push):
        raise ConfigError(
            "weights that were fitted together hold for these adapters together, and are no record of one of them; "
            "leave --output and --push out, and take them up with model.set_weights"
        )
    check_destination(sources[0], save_to, push=push, token=token)
    with output.working("starting torch"):
        from valueadapter.demonstrations.tokenized import load_demonstrations
    other_libraries.also_bars_of_models()
    examples = list(load_demonstrations(data))[:limit]
    check_base(base, token=token)
    for source in sources[1:]:  # the first is loaded before the base, the others after it
        hub.fetch_config(source, hub.Download(token=token))
    download = hub.Download(revision=revision, token=token)
    with output.working(f"loading {base} and {' and '.join(sources)}"):
        model = _attached(sources, base, download, trust_remote_code=trust_remote_code)
    found = _found(model, examples, base)
    facts = _facts(found)
    if len(sources) == 1:
        (loaded,) = model.adapters.values()
        name = _name_of(base, loaded.config)
        record = found.recommended(model, base=name, data=data_name or Path(data).name)
        same = name, record.base_fingerprint
        others = [one for one in loaded.config.weights if (one.base, one.base_fingerprint) != same]
        better = loaded.with_config(weights=(*others, record))
        message = f"Weights for {name}"
        done = put(better, sources[0], save_to, push=push, message=message, revision=revision, token=token)
        facts |= done or {"recorded": "nothing; add --output or --push"}
        if as_json:
            facts["record"] = dataclasses.asdict(record)
    if as_json:
        facts |= {"expected_gain": found.expected_gain, "expected_gain_interval": found.expected_gain_interval}
        facts["weights"] = {name: dataclasses.asdict(one) for name, one in found.weights.items()}
    output.facts(facts, as_json=as_json)


def _name_of(base: str, config: ValueAdapterConfig) -> str:
    """What a base is called in the record: a directory as the adapter knows it, since paths mean nothing to others."""
    if not Path(base).is_dir():
        return base
    known = [config.base_model_name_or_path, *(one.base for one in config.weights)]
    return next((one for one in known if same_base(one, base)), Path(base).name)


def _attached(
    sources: list[str], base: str, download: hub.Download, *, trust_remote_code: bool
) -> ValueAdapterForCausalLM:
    """The base with all adapters, each at scale 1; a revision is that of the first."""
    from valueadapter.adapter.value_adapter import ValueAdapter
    from valueadapter.model.modeling import ValueAdapterForCausalLM

    first, *others = zip(names_of(sources), sources, strict=True)
    loaded = ValueAdapter.from_pretrained(first[1], download=download)
    model = ValueAdapterForCausalLM.from_pretrained(
        base, loaded, scale=1.0, adapter_name=first[0], trust_remote_code=trust_remote_code
    )
    for name, source in others:
        model.add_adapter(ValueAdapter.from_pretrained(source, token=download.token), name, scale=1.0)
    return model


def _found(model: ValueAdapterForCausalLM, examples: list[Any], base: str) -> Calibration:
    """The weights, with progress for each time that the examples are read."""
    from valueadapter.training.calibration import calibrate as fit

    output.note(f"scoring {len(examples)} examples with {base}")
    with output.progress() as tell:
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            before = (done - 1) // len(examples)
            what = "examples" if not before else f"examples, again ({before})"
            tell(what, done - before * len(examples), len(examples))

        return fit(model, examples, adapter_name=list(model.adapters), on_progress=on_progress)


def _facts(found: Calibration) -> dict[str, object]:
    """What was found, for people and programs; bits hold the ends of the answers."""
    facts: dict[str, object] = {
        "weights": {name: str(one) for name, one in found.weights.items()},
        "fitted": found.fitted,
        "base_bits_per_byte": round(found.base_bits_per_byte, 4),
        "default_bits_per_byte": round(found.default_bits_per_byte, 4),
        "adapted_bits_per_byte": round(found.bits_per_byte, 4),
        "examples": found.num_examples,
    }
    if found.expected_gain is not None and found.expected_gain_interval is not None:
        low, high = found.expected_gain_interval
        facts["expected_gain"] = f"{found.expected_gain:.4f} bits per byte ({low:.4f} to {high:.4f})"
    if not found.fitted:
        facts["why_not_fitted"] = (
            "examples that are left out do not gain by fitted weights; the weights stay as they were"
            if found.expected_gain is not None
            else "one example tells nothing of others; the weights stay as they were"
        )
    facts["curve"] = {f"{scale:g}": round(bits, 4) for scale, bits in found.curve.items()}
    return facts
