"""What each adapter does to each token of a text: the base's choice, every push, the final choice; as data, or to see.

At a position let p be the base's distribution and v the scaled value logits. An adapter's *push* on a token t is
v[t] - Σ p·v in nats: what the token's logit gains over the average that the base expects, so that a constant pushes
nothing. Where the base's own logits count for more or less than 1, that is a part of v, and is shown beside it. The
*divergence* is KL(final ‖ base) in nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import torch
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from valueadapter.artifact.card import templates
from valueadapter.artifact.config import Weights
from valueadapter.artifact.config.number import whole
from valueadapter.demonstrations.encoding import prompt_ids, response_ids
from valueadapter.demonstrations.messages import text_of
from valueadapter.errors import UnsupportedModeError
from valueadapter.evaluation.question import Prompt, as_read
from valueadapter.evaluation.visible import signed, visible
from valueadapter.forward.bounded_logits import pieces
from valueadapter.forward.stops import padding, stop_tokens
from valueadapter.model.modeling import ValueAdapterForCausalLM

TEMPLATE = "trace.html.jinja"


@dataclass(frozen=True)
class Choice:
    """A token that a distribution likes best."""

    token: str
    probability: float
    """From 0 to 1."""


@dataclass(frozen=True)
class Push:
    """What one adapter does at one position, in nats."""

    on_token: float
    """On the token of the text."""
    token: str
    """The one that it pushes up most, among the likeliest of base and sum."""
    on_it: float
    """How far."""
    of_base: float = 0.0
    """The part of `on_token` that comes from the base's own logits, where they count for more or less than 1."""


@dataclass(frozen=True)
class Step:
    """One token of the text, and what spoke for it."""

    token: str
    """As it stands in the text."""
    base_probability: float
    """Of that token under the base, which has read its prefix."""
    probability: float
    """Of that token under base + adapters."""
    base: Choice
    final: Choice
    pushes: dict[str, Push]
    """Adapter -> its push."""
    divergence: float
    """KL(final ‖ base) in nats, 0 or more."""
    alone: Choice | None = None
    """What the base likes best without its prefix; None where it reads none."""
    alone_probability: float | None = None
    """Of the token of the text there."""

    @property
    def changed(self) -> bool:
        """Whether the adapters changed the likeliest token."""
        return self.base.token != self.final.token


@dataclass(frozen=True)
class Trace:
    """A text, and what each of its traced tokens owes to whom."""

    prompt: str
    """What stands before the traced tokens; the prefix of the base is not in it."""
    steps: tuple[Step, ...]
    scales: dict[str, float]
    """The acting adapters, and how strongly they act."""
    weights: dict[str, Weights] = field(default_factory=dict)
    """What each summand of these counts for at scale 1."""
    base: str = ""
    """Hub ID of the base, or the name of its directory."""
    adapters: dict[str, str] = field(default_factory=dict)
    """What these adapters are called where they come from: Hub IDs, names of directories."""
    prefix: str | None = None
    """What the base reads first, control tokens included; None where it reads nothing."""
    read: tuple[str, ...] = ()
    """The prompt's tokens, control tokens included."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """For a terminal: a row for each token."""
        table = Table(title=Text(f"{len(self.steps)} tokens after {signed(self.prompt[-40:])}"))
        for column in ("token", "base says", "", *(f"{n} at {s:g}" for n, s in self.scales.items()), "final", "", "KL"):
            justify: Any = "right" if column in ("", "KL") else "left"
            table.add_column(Text(visible(column)), justify=justify, overflow="fold")
        for step in self.steps:
            style = "bold" if step.changed else ""
            pushes = [_push(step.pushes[name]) for name in self.scales]
            cells = [signed(step.token), signed(step.base.token), f"{step.base.probability:.0%}", *pushes]
            cells += [signed(step.final.token), f"{step.final.probability:.0%}", f"{step.divergence:.2f}"]
            table.add_row(*(Text(cell, style=style) for cell in cells))
        return table

    def to_html(self) -> str:
        """A page of its own: the text with its tokens shaded by divergence, and the table below it."""
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True)
        environment.filters |= {"shown": signed, "visible": lambda text: visible(text, keep="\n\t")}
        environment.filters |= {"signed": lambda text: signed(text, in_line=True), "percent": _percent}
        template = environment.from_string((templates() / TEMPLATE).read_text(encoding="utf-8"))
        most = max([step.divergence for step in self.steps], default=0.0)
        return template.render(trace=self, most=most, tokens=self.read or (self.prompt,))

    def save_html(self, path: str | Path) -> None:
        """Writes the page to a file."""
        Path(path).write_text(self.to_html(), encoding="utf-8")


@torch.no_grad()
def trace(
    model: ValueAdapterForCausalLM,
    prompt: Prompt,
    *,
    max_new_tokens: int = 0,
    sources: Mapping[str, str] | None = None,
) -> Trace:
    """Goes through a text token by token, with the adapters as they stand.

    Where the base reads a prefix, it goes through the text once more without it.

    Args:
        model: base + adapters.
        prompt: text, or one conversation. Text is traced itself, all but its first token; of a conversation the last
            turn, which is the assistant's.
        max_new_tokens: in its place trace so many tokens that are generated after it, greedily.
        sources: where the adapters come from (Hub IDs), by their names on the model; for whoever reads the trace.

    Raises:
        UnsupportedModeError: no adapter acts, or the prompt has nothing to trace.
        ConfigError: a chat that the base's tokenizer cannot take, or a number that is none.
    """
    max_new_tokens = whole("max_new_tokens", max_new_tokens, least=0)
    acting = {name: model.scales[name] for name in model.active_adapters if model.scales[name] != 0}
    if not acting:
        raise UnsupportedModeError(
            "no adapter acts here, so there is nothing to trace; set_adapter([…]) activates some"
        )
    tokenizer, shares = model.attached.base_tokenizer(), {term.name: term.of_base for term in model.attached.terms()}
    given, begin, messages = _read(model, prompt, tokenizer, generates=max_new_tokens > 0)
    ids, chat = torch.tensor([given], dtype=torch.long, device=model.device), {"messages": messages} if messages else {}
    if max_new_tokens:
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, **chat}
        how |= {"pad_token_id": padding(tokenizer), "eos_token_id": sorted(stop_tokens(model, tokenizer)) or None}
        ids = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    count = ids.shape[1] - begin
    if count < 1:
        raise UnsupportedModeError(f"the prompt {prompt!r} has {ids.shape[1]} tokens; tracing it needs 2 or more")
    labels = ids[:, begin:]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **chat}
    prefix = model.attached.acting_prefix()
    alone = _alone(model, inputs, labels, tokenizer) if prefix is not None else []
    steps: list[Step] = []
    for piece in pieces(model, inputs, labels, value_logits="each"):
        each = {name: piece.each[name] for name in acting}
        base = piece.logits - sum(each.values())
        steps += _steps(piece.labels.tolist(), base, piece.logits, each, shares, tokenizer)
    for index, (choice, probability) in enumerate(alone):
        steps[index] = dataclasses.replace(steps[index], alone=choice, alone_probability=probability)
    return Trace(
        tokenizer.decode(ids[0, :begin], skip_special_tokens=True),
        tuple(steps),
        acting,
        {name: model.weights[name] for name in acting},
        _called(model.base.name_or_path),
        {name: _called((sources or {}).get(name, name)) for name in acting},
        None if prefix is None else str(tokenizer.decode(list(prefix.ids))),
        tuple(str(tokenizer.decode([token])) for token in ids[0, :begin].tolist()),
    )


def _called(name: str) -> str:
    """A Hub ID as it is; of a directory the last part, since a path of this machine means nothing to others."""
    return Path(name).name if Path(name).is_dir() else name


def _alone(
    model: ValueAdapterForCausalLM, inputs: dict[str, Any], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[Choice, float]]:
    """At every traced token what the base likes best without a prefix, and what it gives that token."""
    found: list[tuple[Choice, float]] = []
    with model.disable_adapter():
        for piece in pieces(model, inputs, labels):
            said = piece.logits.softmax(-1)
            best, given = said.max(-1), said.gather(-1, piece.labels[:, None])[:, 0]
            rows = zip(best.indices.tolist(), best.values.tolist(), given.tolist(), strict=True)
            found += [(Choice(str(tokenizer.decode([token])), most), here) for token, most, here in rows]
    return found


def _read(
    model: ValueAdapterForCausalLM, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, generates: bool
) -> tuple[list[int], int, Sequence[Mapping[str, str]] | None]:
    """The ids of a prompt, how many of them stand before what is traced, and the chat that they begin with."""
    if isinstance(prompt, str):
        ids = prompt_ids(prompt, tokenizer)
        return ids, len(ids) if generates else 1, None
    question, answer = as_read(model, prompt, tokenizer), []
    if not generates:
        if prompt[-1].get("role") != "assistant" or len(prompt) < 2:
            raise UnsupportedModeError(
                "without max_new_tokens the last turn of a chat is traced, which must be the assistant's answer; got "
                f"one of {prompt[-1].get('role')!r}. Give max_new_tokens to trace what would be answered"
            )
        question = as_read(model, prompt[:-1], tokenizer)
        answer = response_ids(text_of(prompt[-1].get("content")), tokenizer, prompt=question.text)
    return [*question.ids, *answer], len(question.ids), question.messages


def _steps(
    labels: Sequence[int],
    base: torch.Tensor,
    final: torch.Tensor,
    each: dict[str, torch.Tensor],
    shares: dict[str, float],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Step, ...]:
    log_p, log_q = base.log_softmax(-1), final.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    divergence = (q * (log_q - log_p)).sum(-1).clamp(min=0)
    centred = {name: _centred(values, p) for name, values in each.items()}
    own = _centred(base, p)  # what the base's logits push, of which an adapter may take a part away

    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    def best(probabilities: torch.Tensor) -> Choice:
        token = int(probabilities.argmax())
        return Choice(text(token), float(probabilities[token]))

    found = []
    for index, label in enumerate(labels):
        likely = torch.cat([p[index].topk(min(20, p.shape[-1])).indices, q[index].topk(min(20, p.shape[-1])).indices])
        pushes = {}
        for name, values in centred.items():
            most = int(likely[values[index, likely].argmax()])
            of_base = shares[name] * float(own[index, label])
            pushes[name] = Push(float(values[index, label]), text(most), float(values[index, most]), of_base)
        probabilities = float(p[index, label]), float(q[index, label])
        found.append(
            Step(text(label), *probabilities, best(p[index]), best(q[index]), pushes, float(divergence[index]))
        )
    return tuple(found)


def _centred(values: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """(tokens, vocab): how far each value lies above what p expects."""
    values = values.masked_fill(values.isneginf(), 0.0)  # what is ruled out has no share, and no push
    return values - (p * values).sum(-1, keepdim=True)


def _push(push: Push) -> str:
    of_base = f", base {push.of_base:+.1f}" if push.of_base else ""
    return f"{push.on_token:+.1f}{of_base}  ({signed(push.token)} {push.on_it:+.1f})"


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f}" if probability >= 0.01 or not probability else f"{100 * probability:.1g}"
