"""The commands that move and look at adapters: push, fetch, inspect, verify. None of them needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from valueadapter import hub
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.config import ValueAdapterConfig, prefix_text
from valueadapter.artifact.cost import Cost, cost_of
from valueadapter.cli import output
from valueadapter.errors import IncompatibleBaseError, NotAValueAdapterError
from valueadapter.hub.failures import Asked, readable
from valueadapter.hub.small_files import SmallFiles, adapter_side, base_side
from valueadapter.vocabulary.bridge import alignment_name, connect, why_unreadable
from valueadapter.vocabulary.compatibility import Compatibility, assess
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

Source = Annotated[str, typer.Argument(help="Hub ID (user/name) or directory of an adapter.", metavar="ADAPTER")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Subfolder = Annotated[str, typer.Option(help="Directory of the adapter inside the repository.")]
Token = Annotated[str | None, typer.Option(help="Hub token; by default the one you are logged in with.")]
BaseRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base on the Hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def push(
    directory: Annotated[Path, typer.Argument(help="Directory of the adapter to publish.")],
    repo_id: Annotated[str, typer.Argument(help="Hub ID to publish it under (user/name).")],
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="For a repository that is new.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Tag for the model card; may be given again.")] = None,
    overwrite_card: Annotated[bool, typer.Option("--overwrite-card", help="Replace a hand-written card.")] = False,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Publish an adapter in one commit: all of it arrives, or nothing."""
    options = hub.Push(
        commit_message=message,
        private=private,
        token=token,
        revision=revision,
        create_pr=create_pr,
        tags=tuple(tag or ()),
        overwrite_card=overwrite_card,
    )
    commit = hub.push(directory, repo_id, options)
    output.facts({"repository": repo_id, "commit": commit.oid, "url": commit.commit_url}, as_json=as_json)


def fetch(
    adapter: Source,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Ask no server.")] = False,
    force_download: Annotated[bool, typer.Option("--force-download", help="Download what is cached, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download an adapter into the cache, verify it, and say where it lies."""
    download = hub.Download(
        revision=revision,
        subfolder=subfolder,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    output.facts({"adapter": adapter, "directory": str(hub.fetch(adapter, download))}, as_json=as_json)


def inspect(
    adapter: Source,
    base: Annotated[str | None, typer.Option(help="Say how it goes with this model: Hub ID or directory.")] = None,
    base_revision: BaseRevision = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show what an adapter is, and with --base how it goes with a model; downloads no weights."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # two small files
    facts = hub.repository_facts(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    mine = SmallFiles(adapter, facts.commit, subfolder=subfolder, token=token)
    cost = _cost(facts, mine)
    there = None if base is None else base_place(base, base_revision, token)
    shown: dict[str, object] = {"adapter": adapter, "commit": facts.commit}
    if as_json:
        shown |= {"files": dict(facts.files), "bytes": sum(facts.files.values()), **json.loads(facts.config.to_json())}
        shown["cost"] = cost.to_dict(base or "", there.revision if there else None)
    else:
        shown |= _described(facts.config)
        shown["size"] = f"{sum(facts.files.values()) / 1e6:,.1f} MB in {len(facts.files)} files"
        shown |= _costs(cost, base or "", there.revision if there else None)
    if base is not None and there is not None:
        found, more, refusal = _verdict(facts, mine, there, cost)
        if as_json:
            shown["compatibility"] = {"base": base, **found.to_dict(), **more, **refusal}
        else:
            shown |= {"with": base, **compatibility_rows(found), **refusal, **_cost_rows(found, more)}
    output.facts(shown, as_json=as_json)


def verify(
    adapter: Source,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of an adapter: complete, unchanged, safe, of a known format."""
    directory = hub.fetch(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    config = verification.read_config(directory)
    described = json.loads(config.to_json()) if as_json else _described(config)
    output.facts({"verified": str(directory), **described}, as_json=as_json)


def base_place(name: str, revision: str | None, token: str | None) -> SmallFiles:
    """One commit of the base, so that its files belong together; the cached one where the Hub cannot be reached."""
    from huggingface_hub.errors import HFValidationError

    try:
        return SmallFiles(name, hub.resolve_commit(name, revision, token=token), token=token)
    except HFValidationError:
        return SmallFiles(name, token=token)  # which says what it expected when it is read
    except NotAValueAdapterError:
        raise IncompatibleBaseError(
            f"base model '{name}' is a dataset or a space on the Hub; name a causal language model"
        ) from None


def base_vocabulary(base: SmallFiles) -> ModelVocabulary:
    """The vocabulary of a base, with the Hub's refusals in words of ours."""
    with readable(Asked(base.name, base.revision, base.token)):
        return base_side(base)


def compatibility_rows(found: Compatibility) -> dict[str, object]:
    """What a person wants to read of it."""
    order = ("same bytes", "first of several", "end of text", "nothing", "no token")
    kinds = ", ".join(f"{found.coverage[kind]:,} {kind}" for kind in order if found.coverage[kind])
    rows: dict[str, object] = {"verdict": found.advice, "tokens_of_the_base": kinds}
    if found.relation == "static":
        rows["sample_text"] = (
            f"{found.text_coverage:.1%} of its base tokens have a value token of the same bytes; "
            f"at {found.same_event_share:.1%} base and network predict the same thing"
        )
    if names := found.special_without_counterpart:
        more = ", …" if len(names) > 6 else ""
        rows["no_counterpart"] = f"{len(names):,} control tokens of the base: {', '.join(names[:6])}{more}"
    return rows


def _cost_rows(found: Compatibility, more: Mapping[str, int | None]) -> dict[str, object]:
    own, theirs = (f" ({size / 1e6:,.1f} MB)" if size else "" for size in (more["network_bytes"], more["base_bytes"]))
    rows: dict[str, object] = {
        "cost": f"for each base token the network runs over about {found.value_tokens_per_base_token:.2f} of its tokens"
        f"{own}, beside the base's own pass{theirs}"
    }
    if found.relation != "identity":
        here = more["map_in_artifact"]
        rows["map"] = "in the artifact" if here else "built at first use; `valueadapter align` puts it in the artifact"
    return rows


def _verdict(
    facts: hub.RepositoryFacts, adapter: SmallFiles, base: SmallFiles, of_adapter: Cost
) -> tuple[Compatibility, dict[str, int | None], dict[str, str]]:
    """How the two go together, what it costs, and why it cannot be, where it cannot."""
    theirs = base_vocabulary(base)
    with readable(Asked(adapter.name, adapter.revision, adapter.token)):
        mine = adapter_side(adapter)
    link = connect(mine, theirs)  # the map is built once, and is there when the adapter is used
    found = assess(mine, theirs, alignment=link.alignment if link else None)
    refusal = why_unreadable(facts.config.connection, link)
    cost = {
        "map_in_artifact": f"{file_names.ALIGNMENTS}/{alignment_name(theirs)}{file_names.SAFETENSORS}" in facts.files,
        "network_bytes": of_adapter.memory_bytes(),
        "base_bytes": base.weight_bytes(),
    }
    return found, cost, {} if refusal is None else {"cannot_be_attached": refusal}


def _cost(facts: hub.RepositoryFacts, adapter: SmallFiles) -> Cost:
    def settings(network: str) -> dict[str, object]:
        with readable(Asked(adapter.name, adapter.revision, adapter.token)):
            return adapter.settings(f"{network}/{file_names.PEFT_CONFIG}")

    def body_bytes(name: str, commit: str) -> int | None:
        return SmallFiles(name, commit, token=adapter.token).weight_bytes()

    return cost_of(facts.config, facts.files, settings, body_bytes)


def _costs(cost: Cost, base: str, commit: str | None) -> dict[str, object]:
    """For a person: what is downloaded, held and run beside the base."""
    elsewhere = [body for body in cost.bodies if body.revision is not None]
    bodies = " and ".join(
        f"{_megabytes(body.num_bytes)} of {body.name}@{str(body.revision)[:12]}" for body in elsewhere
    )
    held = _megabytes(cost.memory_bytes(base, commit))
    one = [body.name for body in elsewhere]
    if cost.lora_bytes and elsewhere and cost.memory_bytes(base, commit) == cost.memory_bytes():
        held += f"; {_megabytes(cost.lora_bytes)} where the base is {' or '.join(one)} itself"
    networks = sum(body.num_networks for body in cost.bodies)
    rows = f", with a row for each of {networks} networks" if networks > cost.num_passes else ""
    return {
        "to_download": _megabytes(cost.adapter_bytes) + (f" here and {bodies}" if bodies else ""),
        "in_memory": f"{held}, as stored, beside the base",
        "per_token": f"{cost.num_passes} pass{'' if cost.num_passes == 1 else 'es'} beside the base's own{rows}",
    }


def _megabytes(size: int | None) -> str:
    return "the weights (of a size that nobody tells)" if size is None else f"{size / 1e6:,.1f} MB"


def _described(config: ValueAdapterConfig) -> dict[str, object]:
    networks = [
        f"{n.coefficient:+g} x {n.path or f'{n.repo}@{n.revision}'}{', reads the prefix' if n.reads_prefix else ''}"
        for n in config.networks
    ]
    described: dict[str, object] = {
        "format_version": config.format_version,
        "base_model": config.base_model_name_or_path,
        "base_revision": config.base_model_revision,
        "networks": networks,
        "weights": f"{config.default_weights}, on bases that nobody measured",
        "scale": config.scale,
        "logits_width": config.vocabulary.logits_width,
        "vocabulary": config.vocabulary.byte_fingerprint[:16],
    }
    if config.base_prefix is not None:
        described["base_prefix"] = _shortened(prefix_text(config.base_prefix))
    if config.stop_strings:
        described["answers_end_at"] = [repr(text) for text in config.stop_strings]
    if config.connection != "residual":
        described["connection"] = f"{config.connection}; only for bases of this vocabulary"
    if config.training is not None:
        record = config.training
        described["trained"] = (
            f"{record.steps} steps on {record.num_examples} demonstrations ({record.data}), "
            f"start {record.initialisation}, penalty {record.regularisation.kind}"
        )
    for one in config.weights:
        scale = "" if one.scale == 1 else f" at scale {one.scale:g}"
        described[f"weights on {one.base}"] = f"{one.weights}{scale}, {one.found_on}"
    for result in config.evaluation:
        fewshot, tuned = result.fewshot_bits_per_byte, result.finetuned_bits_per_byte
        beside = "" if fewshot is None else f", {fewshot:.3f} with {result.num_fewshot} examples in its prompt"
        beside += "" if tuned is None else f", {tuned:.3f} fine-tuned"
        described[f"on {result.base}"] = (
            f"{result.base_bits_per_byte:.3f} -> {result.adapted_bits_per_byte:.3f} bits per byte "
            f"at scale {result.scale:g}{beside} ({result.num_examples} held-out examples of {result.data})"
        )
    return described


def _shortened(text: str) -> str:
    """A prefix in one line; `--json` shows all of it."""
    line = text.replace("\n", "\\n")
    return f"{len(text):,} characters that the base reads first: {line if len(line) <= 160 else f'{line[:159]}…'}"
