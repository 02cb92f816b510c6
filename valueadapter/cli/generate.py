"""The command that lets base + adapters speak, streaming; knows nothing of how their logits are added."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valueadapter.cli import output
from valueadapter.cli.artifacts import AsJson, BaseRevision
from valueadapter.cli.choices import Dtype
from valueadapter.cli.models import AdapterRevision, Device, HowHeld, Places, TrustRemoteCode, load
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from valueadapter.model.modeling import ValueAdapterForCausalLM

System = Annotated[str | None, typer.Option("--system", help="With --chat: what stands before the prompt.")]


def generate(
    base: Annotated[str, typer.Option(help="Hub ID or directory of the base model.")],
    prompt: Annotated[
        list[str], typer.Option(help="Text to go on from; '-' reads standard input; may be given again.")
    ],
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
    dtype: HowHeld = Dtype.auto,
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
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest tokens of so much probability; for temperatures above 0.", max=1),
    ] = None,
    system: System = None,
    device: Device = None,
    base_revision: BaseRevision = None,
    revision: AdapterRevision = None,
    as_json: AsJson = False,
) -> None:
    """Generate text with a base model and any number of adapters."""
    if no_stop and stop:
        raise ConfigError("--stop and --no-stop exclude each other; give one of them")
    if not all(stop or ()):
        raise ConfigError("--stop is empty, which ends every answer at once; leave it out, or give --no-stop")
    sampling = _sampling(temperature, top_p)
    check_system(system, chat=chat)
    texts = read_prompts(prompt)
    model, tokenizer = load(
        base,
        adapter or (),
        base_prefix,
        no_base_prefix=no_base_prefix,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        places=Places(base_revision, revision, device),
    )
    if chat and not tokenizer.chat_template:
        raise ConfigError(f"base model '{base}' has no chat template; leave --chat out")
    ends = tuple(stop or ()) if no_stop or stop else model.attached.stop_strings()
    how = {**sampling, "max_new_tokens": max_new_tokens, "stop_strings": ends, "speculative": speculative}
    told = []
    for number, text in enumerate(texts, 1):
        _seed(seed)  # so that an answer is the same, whatever else is asked
        asked = as_chat(text, system) if chat else text
        if as_json:
            pieces: list[str] = []
            with output.working(f"answering {number} of {len(texts)}"):
                ended = _answer(model, tokenizer, asked, show=pieces.append, how=how)
            told.append({"prompt": text, "text": "".join(pieces).removesuffix("\n"), "ended": ended})
            continue
        if len(texts) > 1:
            output.heading(text)
        with _until_it_speaks() as show:
            _answer(model, tokenizer, asked, show=show, how=how)
    if as_json:
        output.print_json(told)


def _answer(
    model: ValueAdapterForCausalLM,
    tokenizer: Any,
    asked: str | list[dict[str, str]],
    *,
    show: Callable[[str], object],
    how: Mapping[str, Any],
) -> bool:
    """Shows an answer as it comes; whether it has come to its end."""
    import torch

    from valueadapter.demonstrations.encoding import prompt_ids
    from valueadapter.model.streaming import AnswerStreamer, answer_tokens

    if isinstance(asked, str):
        ids = torch.tensor([prompt_ids(asked, tokenizer)], dtype=torch.long, device=model.device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        inputs = {**model.chat_inputs(asked)}
    streamer = AnswerStreamer(tokenizer, how["stop_strings"], show)
    ends = answer_tokens(model, tokenizer)
    said = model.generate(**inputs, **how, **ends, streamer=streamer)
    return streamer.is_over or int(said[0, -1]) in (ends["eos_token_id"] or ())


@contextlib.contextmanager
def _until_it_speaks() -> Iterator[Callable[[str], None]]:
    """What shows an answer; until its first piece comes, the prompt is read."""
    with contextlib.ExitStack() as waiting:
        waiting.enter_context(output.working("reading the prompt"))

        def show(piece: str) -> None:
            waiting.close()
            output.said(piece)

        yield show


def _sampling(temperature: float, top_p: float | None) -> dict[str, Any]:
    if top_p is not None and temperature == 0:
        raise ConfigError("--top-p chooses what to draw from, and --temperature 0 draws nothing; give a temperature")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is a share of probability, above 0 and up to 1; got {top_p:g}")
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, **({} if top_p is None else {"top_p": top_p})}


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def check_system(system: str | None, *, chat: bool) -> None:
    """Raises ConfigError for a system message without a chat."""
    if system is not None and not chat:
        raise ConfigError("--system is a message of a chat; give --chat as well")


def as_chat(text: str, system: str | None) -> list[dict[str, str]]:
    """A prompt as messages."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def read_prompts(given: Sequence[str]) -> list[str]:
    """Prompts as texts; '-' is what standard input holds.

    Raises:
        ConfigError: an empty one, or standard input twice.
    """
    if [*given].count("-") > 1:
        raise ConfigError("--prompt - reads standard input, which is read once; give it once")
    texts = [sys.stdin.read() if one == "-" else one for one in given]
    if not all(texts):
        raise ConfigError("the prompt is empty; give --prompt some text")
    return texts
