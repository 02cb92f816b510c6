"""The command that makes of an adapter what runs elsewhere: without this library, or in vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from valueadapter import hub
from valueadapter.artifact import file_names
from valueadapter.artifact import standalone as exporting
from valueadapter.cli import output
from valueadapter.cli.artifacts import AsJson, BaseRevision, Revision, Source, Subfolder, Token
from valueadapter.cli.choices import Target
from valueadapter.cli.models import check_base, parse_adapter
from valueadapter.errors import ConfigError


def export(
    adapter: Source,
    to: Annotated[Target, typer.Option("--to", help="What it is to run in.")],
    output_dir: Annotated[Path, typer.Option("--output", help="Write adapter and code to this directory.")],
    repo_id: Annotated[
        str | None, typer.Option(help="Hub ID (user/name) it will have, if not `valueadapter push` publishes it.")
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: AsJson = False,
    base: Annotated[
        str | None, typer.Option(help="For vllm: Hub ID or directory of the base; by default the training base.")
    ] = None,
    base_revision: BaseRevision = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="For vllm: another adapter, with =SCALE if you like; may be given again."),
    ] = None,
    scale: Annotated[float | None, typer.Option(help="For vllm: how strongly the adapter acts.")] = None,
    no_base_prefix: Annotated[
        bool, typer.Option("--no-base-prefix", help="For vllm: do not begin texts with the adapters' prefix.")
    ] = False,
    draft: Annotated[
        bool, typer.Option("--draft", help="For vllm: also write the model that drafts in speculative decoding.")
    ] = False,
) -> None:
    """Copy an adapter, with code that runs it without this library; or make a directory that vLLM serves."""
    if to == Target.vllm:
        _check_for_vllm(repo_id, subfolder)
        adapters = [(adapter, scale, revision), *((*parse_adapter(one), None) for one in more or ())]
        _to_vllm(
            adapters,
            base,
            output_dir,
            base_revision=base_revision,
            use_prefix=not no_base_prefix,
            draft=draft,
            token=token,
            as_json=as_json,
        )
        return
    if base or base_revision or more or scale is not None or no_base_prefix or draft:
        raise ConfigError("--base, --base-revision, --adapter, --scale, --no-base-prefix and --draft are for --to vllm")
    directory = hub.fetch(adapter, hub.Download(revision=revision, subfolder=subfolder, token=token))
    code = exporting.export(directory, output_dir, to=cast(exporting.Target, to.value), repo_id=repo_id)
    place, name = str(output_dir), repo_id or "user/name"
    use = [
        f"model.generate(**inputs, custom_generate='{place}', adapter='{place}', trust_remote_code=True)",
        f"published: model.generate(**inputs, custom_generate='{name}', trust_remote_code=True)",
    ]
    if to == file_names.LOGITS_PROCESSOR:
        use = [f"with '{place}' on Python's path: from logits_processor import ValueLogitsProcessor"]
    output.facts({"adapter": adapter, "directory": place, "code": code, "use": use}, as_json=as_json)


def _check_for_vllm(repo_id: str | None, subfolder: str) -> None:
    if repo_id is not None or subfolder:
        given = "--repo-id" if repo_id is not None else "--subfolder"
        raise ConfigError(f"{given} is not for --to vllm; leave it out")


def _to_vllm(
    adapters: list[tuple[str, float | None, str | None]],
    base: str | None,
    directory: Path,
    *,
    base_revision: str | None,
    use_prefix: bool,
    draft: bool,
    token: str | None,
    as_json: bool,
) -> None:
    from valueadapter.model.vllm_export import GivenAdapter, export_to_vllm

    given = [GivenAdapter(*one) for one in adapters]
    if base is None:
        config = hub.fetch_config(given[0].name, hub.Download(revision=given[0].revision, token=token))
        base, base_revision = config.base_model_name_or_path, base_revision or config.base_model_revision
    check_base(base, base_revision, token)
    made = export_to_vllm(
        given,
        base,
        directory,
        base_revision=base_revision,
        use_prefix=use_prefix,
        draft=draft,
        token=token,
    )
    serve = f"vllm serve {directory}"
    serve += f" --max-model-len {made.max_model_len}" if made.max_model_len else ""
    speculative = {"method": "draft_model", "model": str(made.draft), "num_speculative_tokens": 4}
    facts: dict[str, object] = {
        "adapter": " and ".join(one.name for one in given),
        "base": base,
        "directory": str(directory),
        "networks": made.networks,
        "prefix_tokens": made.prefix_tokens,
        "context": made.context,
        "chats": made.chats,
        "use": [serve],
    }
    if made.draft is not None:
        facts["use"] = [f"{serve} --speculative-config '{json.dumps(speculative)}'"]
    output.facts(facts, as_json=as_json)
