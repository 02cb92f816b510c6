"""The command that lets base + adapters speak, streaming; knows nothing of how their logits are added."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from valueadapter.cli import output
from valueadapter.cli.models import TrustRemoteCode, load
from valueadapter.errors import ConfigError


def generate(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from; '-' reads standard input.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="Hub ID or directory, with =SCALE if you like; may be given again.")
    ] = None,
    base_prefix: Annotated[
        Path | None, typer.Option(help="File with text that only the base reads first, in place of the adapters' own.")
    ] = None,
    no_base_prefix: Annotated[
        bool, typer.Option("--no-base-prefix", help="Leave out what the adapters have the base read first.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Render the prompt with the base's chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed for temperatures above 0.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text that ends the answer, not the adapters' own; may be given again."),
    ] = None,
    no_stop: Annotated[
        bool, typer.Option("--no-stop", help="End the answer at no text, only where the model ends it.")
    ] = False,
    speculative: Annotated[
        bool,
        typer.Option("--speculative", help="Let the adapter draft tokens: the same answer, sooner on a larger base."),
    ] = False,
) -> None:
    """Generate text with a base model and any number of adapters."""
    import torch

    from valueadapter.demonstrations.encoding import prompt_ids
    from valueadapter.model.streaming import AnswerStreamer, answer_tokens

    if no_stop and stop:
        raise ConfigError("--stop and --no-stop exclude each other; give one of them")
    if not all(stop or ()):
        raise ConfigError("--stop is empty, which ends every answer at once; leave it out, or give --no-stop")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ConfigError("the prompt is empty; give --prompt some text")
    model, tokenizer = load(
        base,
        adapter or (),
        base_prefix,
        no_base_prefix=no_base_prefix,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    inputs: dict[str, Any]
    if chat:
        if not tokenizer.chat_template:
            raise ConfigError(f"base model '{base}' has no chat template; leave --chat out")
        inputs = {**model.chat_inputs([{"role": "user", "content": text}])}
    else:
        ids = torch.tensor([prompt_ids(text, tokenizer)], dtype=torch.long, device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ends = tuple(stop or ()) if no_stop or stop else model.attached.stop_strings()
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    model.generate(
        **inputs,
        **sampling,
        max_new_tokens=max_new_tokens,
        stop_strings=ends,
        speculative=speculative,
        **answer_tokens(model, tokenizer),
        streamer=AnswerStreamer(tokenizer, ends, output.said),
    )
