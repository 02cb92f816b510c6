"""The command that lets base + adapters speak, streaming; knows nothing of how their logits are added."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from valueadapter.cli import output
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
) -> None:
    """Generate text with a base model and any number of adapters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
    from transformers.utils import logging

    from valueadapter.modeling import ValueAdapterForCausalLM

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"--dtype must be float32, bfloat16, float16 or auto; got '{dtype}'")
    if base_prefix is not None and no_base_prefix:
        raise ConfigError("--base-prefix and --no-base-prefix exclude each other; give one of them")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise ConfigError("the prompt is empty; give --prompt some text")
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = ValueAdapterForCausalLM(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), tokenizer=tokenizer).eval()
    names = []
    if no_base_prefix or base_prefix is not None:
        model.set_base_prefix(None if base_prefix is None else base_prefix.read_text(encoding="utf-8"))
    for index, (source, scale) in enumerate(parse_adapter(text) for text in adapter or []):
        names.append(f"adapter{index}")
        model.load_adapter(source, names[-1], scale=scale)
        output.err.print(f"{source} at scale {model.scales[names[-1]]:g}", style="dim")
    model.set_adapter(names)
    if chat:
        if not tokenizer.chat_template:
            raise ConfigError(f"base model '{base}' has no chat template; leave --chat out")
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not chat).to(model.device)
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    model.generate(
        **inputs,
        **sampling,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )


def parse_adapter(text: str) -> tuple[str, float | None]:
    """`user/name=0.7` -> name and scale; without a scale the adapter's own recommendation holds.

    Raises:
        ConfigError: what follows the `=` is no number.
    """
    source, separator, number = text.rpartition("=")
    if not separator or Path(text).is_dir():
        return text, None
    try:
        return source, float(number)
    except ValueError:
        raise ConfigError(f"expected --adapter NAME or NAME=SCALE with a number; got '{text}'") from None
