"""An adapter, and how it goes with a base, in words for a person: counts and the first ten, or all of it.

Reads no file and prints nothing; what a program wants, `--json` gives it without these words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from valueadapter.artifact.config import (
    EvaluationRecord,
    NetworkSpec,
    TrainingRecord,
    ValueAdapterConfig,
    prefix_size,
    prefix_text,
)
from valueadapter.artifact.cost import Cost
from valueadapter.vocabulary.compatibility import Compatibility

FIRST = 10
"""How many of many things are named."""
_LINE = 160
_KINDS = {
    "same bytes": "have a value token of the same bytes",
    "first of several": "go by the first of several value tokens",
    "end of text": "end a text",
    "nothing": "get nothing",
    "no token": "rows without a token",
}
"""What the base's tokens get, by the kinds of `VocabularyAlignment.coverage`."""
_Record = TypeVar("_Record")


def described(config: ValueAdapterConfig, *, verbose: bool = False) -> dict[str, object]:
    """What an adapter is: where it comes from, what it adds, what was found out about it."""
    base, commit = config.base_model_name_or_path, config.base_model_revision
    rows: dict[str, object] = {"trained_on": base + ("" if commit is None else f" (commit {commit[:12]})")}
    if config.training is not None:
        rows["training"] = _training(config.training, verbose=verbose)
    rows["adds"] = [_summand(network) for network in config.networks]
    rows["weights"] = f"{config.default_weights}, on bases that nobody measured"
    for one in _some(config.weights, verbose=verbose):
        scale = "" if one.scale == 1 else f" at scale {one.scale:g}"
        rows[f"weights on {one.base}"] = f"{one.weights}{scale}, {one.found_on}"
    if config.scale != 1 or verbose:
        rows["scale"] = config.scale
    if config.connection != "residual":
        rows["connection"] = f"{config.connection}; only for bases of this vocabulary"
    if config.base_prefix is not None:
        text = prefix_text(config.base_prefix)
        size = prefix_size(config.base_prefix, config.stop_strings)
        rows["base_prefix"] = f"{size}, which the base reads first: {_line(text) if not verbose else text}"
    if config.stop_strings:
        rows["answers_end_at"] = first_ten([repr(text) for text in config.stop_strings], verbose=verbose)
    for result in _some(config.evaluation, verbose=verbose):
        rows[f"on {result.base}"] = _measured(result)
    left = max(len(config.weights), len(config.evaluation)) - FIRST
    if left > 0 and not verbose:
        rows["more"] = f"{left} further bases; --verbose shows them"
    if verbose:
        rows |= {
            "format_version": config.format_version,
            "logits_width": config.vocabulary.logits_width,
            "vocabulary": config.vocabulary.byte_fingerprint,
        }
    return rows


def cost_rows(cost: Cost, files: Mapping[str, int], base: str, commit: str | None) -> dict[str, object]:
    """What is downloaded, held and run beside the base."""
    elsewhere = [body for body in cost.bodies if body.revision is not None]
    bodies = " and ".join(f"{megabytes(body.num_bytes)} of {body.name}@{str(body.revision)[:12]}" for body in elsewhere)
    held = megabytes(cost.memory_bytes(base, commit))
    one = [body.name for body in elsewhere]
    if cost.lora_bytes and elsewhere and cost.memory_bytes(base, commit) == cost.memory_bytes():
        held += f"; {megabytes(cost.lora_bytes)} where the base is {' or '.join(one)} itself"
    networks = sum(body.num_networks for body in cost.bodies)
    rows = f", with a row for each of {networks} networks" if networks > cost.num_passes else ""
    size = f"{megabytes(cost.adapter_bytes)} in {len(files)} files"
    return {
        "to_download": size + (f" here and {bodies}" if bodies else ""),
        "in_memory": f"{held}, as stored, beside the base",
        "per_token": f"{cost.num_passes} pass{'' if cost.num_passes == 1 else 'es'} beside the base's own{rows}",
    }


def compatibility_rows(found: Compatibility, *, verbose: bool = False) -> dict[str, object]:
    """How an adapter's vocabulary meets a base's."""
    kinds = ", ".join(f"{found.coverage[kind]:,} {words}" for kind, words in _KINDS.items() if found.coverage[kind])
    rows: dict[str, object] = {"verdict": found.advice, "tokens_of_the_base": kinds}
    if found.relation == "static":
        rows["sample_text"] = (
            f"{found.text_coverage:.1%} of its base tokens have a value token of the same bytes; "
            f"at {found.same_event_share:.1%} base and network predict the same thing"
        )
    if names := found.special_without_counterpart:
        shown = first_ten(names, verbose=verbose)
        rows["no_counterpart"] = f"{len(names):,} control tokens of the base, to which nothing is added: {shown}"
    return rows


def pair_rows(
    config: ValueAdapterConfig, found: Compatibility, more: Mapping[str, int | None], base: str, fingerprint: str
) -> dict[str, object]:
    """What an adapter does on a base, and what that costs.

    Args:
        config: of the adapter.
        found: how the two vocabularies meet.
        more: sizes, and whether the map is there, as `inspect --json` has them.
        base: Hub ID or directory of the base.
        fingerprint: of its vocabulary.
    """
    fitted = config.weights_for(fingerprint, base)
    acts = f"{config.default_weights}: the weights for bases that nobody measured; `valueadapter calibrate` fits others"
    if fitted is not None:
        acts = f"{fitted.weights}{'' if fitted.scale == 1 else f' at scale {fitted.scale:g}'}: {fitted.found_on}"
    own, theirs = (f" ({size / 1e6:,.1f} MB)" if size else "" for size in (more["network_bytes"], more["base_bytes"]))
    rows: dict[str, object] = {
        "acts_here_with": acts,
        "cost": f"for each base token the network runs over about {found.value_tokens_per_base_token:.2f} of its tokens"
        f"{own}, beside the base's own pass{theirs}",
    }
    if found.relation != "identity":
        here = more["map_in_artifact"]
        rows["map"] = "in the artifact" if here else "built at first use; `valueadapter align` puts it in the artifact"
    return rows


def first_ten(items: Sequence[str], *, verbose: bool) -> str:
    """Items in a row; where there are many the first ten, and how many are left."""
    if verbose or len(items) <= FIRST:
        return ", ".join(items)
    return ", ".join([*items[:FIRST], f"and {len(items) - FIRST:,} more (--verbose lists them)"])


def megabytes(size: int | None) -> str:
    """A size in bytes."""
    return "the weights (of a size that nobody tells)" if size is None else f"{size / 1e6:,.1f} MB"


def _some(records: Sequence[_Record], *, verbose: bool) -> Sequence[_Record]:
    return records if verbose else records[:FIRST]


def _training(record: TrainingRecord, *, verbose: bool) -> str:
    short = f"{record.num_examples:,} demonstrations of {record.data}, {record.steps:,} steps"
    return f"{short}, start {record.initialisation}, penalty {record.regularisation.kind}" if verbose else short


def _summand(network: NetworkSpec) -> str:
    name = network.path or f"{network.repo}@{network.revision}"
    return f"{network.coefficient:+g} x {name}{', reads the prefix' if network.reads_prefix else ''}"


def _measured(result: EvaluationRecord) -> str:
    fewshot, tuned = result.fewshot_bits_per_byte, result.finetuned_bits_per_byte
    beside = "" if fewshot is None else f", {fewshot:.3f} with {result.num_fewshot} examples in its prompt"
    beside += "" if tuned is None else f", {tuned:.3f} fine-tuned"
    return (
        f"{result.base_bits_per_byte:.3f} -> {result.adapted_bits_per_byte:.3f} bits per byte "
        f"at scale {result.scale:g}{beside} ({result.num_examples} held-out examples of {result.data})"
    )


def _line(text: str) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"
