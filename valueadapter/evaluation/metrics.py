"""Measures a model on held-out demonstrations, example by example.

Knows nothing of adapters: every arm (base alone, small tuned model alone, base + adapter) is just a model here.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.causal_lm import logits_width, longest_text
from valueadapter.artifact.config.number import whole
from valueadapter.demonstrations.responses import (
    Record,
    Responses,
    batches,
    question,
    response_bytes,
    response_texts,
    responses,
    shape_of,
)
from valueadapter.demonstrations.sources import all_checked
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.errors import ConfigError
from valueadapter.evaluation.answers import Asked, answers, begun, says_the_likeliest
from valueadapter.evaluation.score import Example, Score
from valueadapter.forward.bounded_logits import Piece, pieces
from valueadapter.forward.stops import end_tokens


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    generate: bool = True,
    batch_size: int = 16,
    context: Sequence[Record] = (),
    max_new_tokens: int = 16,
    stop_strings: Sequence[str] = (),
    value_norms: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Score:
    """Scores a model on prompts with known completions.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        records: held-out demonstrations.
        generate: also let it answer greedily and compare; plain text, which asks nothing, is left out.
        batch_size: rows per forward pass.
        context: demonstrations that the model reads before each record, as a few-shot prompt.
        max_new_tokens: length of an answer at most.
        stop_strings: texts that end an answer, as the model's own tokens do; the same for all that is compared.
        value_norms: also measure how large the value logits of a `ValueAdapterForCausalLM` are, before its scale.
        on_progress: called with the number of records done since the last call.
    """
    batch_size = whole("batch_size", batch_size, least=1)
    max_new_tokens = whole("max_new_tokens", max_new_tokens, least=1)
    records, context = all_checked(records), all_checked(context, name="context")
    examples: list[Example] = []
    right_texts = [text for record in records for text in response_texts(record)]
    ends = end_tokens(model, tokenizer, stop_strings, width=logits_width(model), answers=right_texts)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop_strings": stop_strings}
    for batch in batches(records, batch_size):
        asked = responses(batch, tokenizer, model.device, context=context)
        rows = _likelihoods(model, asked, batch, ends=ends, value_norms=value_norms)
        right = [_choice_is_right(model, tokenizer, record, context=context) for record in batch]
        questions = _questions(model, tokenizer, batch, asked, rows, context=context) if generate else {}
        found = dict(zip(questions, answers(model, tokenizer, list(questions.values()), **how), strict=True))
        for index, (record, row) in enumerate(zip(batch, rows, strict=True)):
            totals, said = dict(row.totals), found.get(index)
            if (hit := right[index]) is not None:
                totals["choice_accuracy"] = (float(hit), 1)
            if said is not None:
                totals["exact_match"] = (float(normalised(said.text) == normalised(response_texts(record)[-1])), 1)
                totals["ends"] = (float(said.ended), 1)
            examples.append(Example(totals, row.predicted, None if said is None else said.text))
        if on_progress is not None:
            on_progress(len(batch))
    return Score(tuple(examples))


def _likelihoods(
    model: PreTrainedModel,
    batch: Responses,
    records: Sequence[Record],
    *,
    ends: Sequence[int] = (),
    value_norms: bool = False,
) -> list[Example]:
    """Bits of each response and of its parts; `ends` are the tokens of which any ends an answer."""
    here = batch.labels != IGNORED
    columns = _columns(model, batch, ends, value_norms=value_norms)
    columns["is_end"] = batch.ends[here].cpu()
    counts = here.sum(dim=1).tolist()
    split = {name: [part.tolist() for part in torch.split(column, counts)] for name, column in columns.items()}
    examples = []
    for row, record in enumerate(records):
        measured = {name: parts[row] for name, parts in split.items()}
        examples.append(_example(measured, _parts(here[row], batch.content[row]), response_bytes([record])))
    return examples


def _columns(
    model: PreTrainedModel, batch: Responses, ends: Sequence[int], *, value_norms: bool
) -> dict[str, torch.Tensor]:
    """Of every labelled position, row by row: bits, those of an end of any kind, the likeliest token, value norms."""
    found: dict[str, torch.Tensor] = {}
    count, scale = int((batch.labels != IGNORED).sum()), (_scale(model) or 1.0) if value_norms else 1.0
    for piece in pieces(model, batch.inputs, batch.labels, value_logits=value_norms):
        nats = torch.nn.functional.cross_entropy(piece.logits, piece.labels, reduction="none")
        measured = {"bits": nats.double() / math.log(2), "predicted": piece.logits.argmax(dim=-1)}
        measured["end_bits"] = _end_nats(piece, ends) / math.log(2)
        if piece.value_logits is not None:
            value = piece.value_logits / scale
            measured["value_norm_raw"] = value.abs().mean(dim=-1)
            measured["value_norm_centred"] = (value - value.mean(dim=-1, keepdim=True)).abs().mean(dim=-1)
        for name, column in measured.items():
            # one tensor for all: many small ones that stay keep the allocator from giving large ones back
            found.setdefault(name, torch.zeros(count, dtype=column.dtype))[piece.places.cpu()] = column.cpu()
    return found


def _end_nats(piece: Piece, ends: Sequence[int]) -> torch.Tensor:
    """(tokens,): what it costs that an answer ends here, by any of its ends: -log of their summed probability."""
    columns = torch.tensor(sorted(ends), device=piece.logits.device)
    if not len(columns):
        return torch.zeros(len(piece.logits), dtype=torch.float64)
    own = piece.logits[:, columns].logsumexp(dim=-1)
    return (piece.logits.logsumexp(dim=-1) - own).double()


def _example(columns: dict[str, list[Any]], parts: list[str], size: int) -> Example:
    """Sums over the response tokens of one row; `parts` says of each what it is, `size` how many bytes there are."""
    bits = columns["bits"]

    def over(*wanted: str) -> tuple[float, int]:
        chosen = [value for value, part in zip(bits, parts, strict=True) if part in wanted]
        return math.fsum(chosen), len(chosen)

    text = over("first", "middle", "after")[0]
    ending = [cost for cost, is_end in zip(columns["end_bits"], columns["is_end"], strict=True) if is_end]
    totals = {
        "bits_per_byte": (text, size),
        "total_bits_per_byte": (math.fsum([text, *ending]), size),
        "first_token_bits": over("first"),
        "middle_token_bits": over("middle"),
        "last_token_bits": over("last"),
    }
    for norm in ("value_norm_raw", "value_norm_centred"):
        if norm in columns:
            totals[norm] = (math.fsum(columns[norm]), len(parts))
    return Example(totals, tuple(columns["predicted"]))


def _scale(model: Any) -> float:
    """By what a wrapper of one adapter multiplies its value logits."""
    (name,) = model.active_adapters
    return float(model.scales[name])


def _parts(here: torch.Tensor, content: torch.Tensor) -> list[str]:
    """What each labelled position of a row is: the first, a middle or the last token of a response, or none of these.

    A response is a run of labels; its last token is the control token that ends it, and what a chat template writes
    after that (a line end) is "after", any other control token "control".

    Args:
        here: (kept - 1), whether there is a label.
        content: (kept - 1), whether it is no control token.
    """
    parts: list[str] = []
    run: list[bool] = []
    for labelled, is_content in [*zip(here.tolist(), content.tolist(), strict=True), (False, False)]:
        if labelled:
            run.append(is_content)
        elif run:
            end = max((i for i, text in enumerate(run) if not text), default=len(run))
            first = run.index(True) if True in run else len(run)
            for place, text in enumerate(run):
                if place == end:
                    parts.append("last")
                elif not text:
                    parts.append("control")
                else:
                    parts.append("after" if place > end else "first" if place == first else "middle")
            run = []
    return parts


def _choice_is_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: Record, *, context: Sequence[Record]
) -> bool | None:
    """Whether the right one of a record's choices has the fewest bits per byte as the response; None without any."""
    if not record.get("choices") or record.get("answer") is None:
        return None
    candidates = [_with_response(record, choice) for choice in record["choices"]]
    if not 0 <= record["answer"] < len(candidates) or not all(record["choices"]):
        raise ConfigError(
            f"'answer' must be the index of one of {len(candidates)} 'choices', none of them empty; got "
            f"{record['answer']} for {record['choices']}"
        )
    batch = responses(candidates, tokenizer, model.device, context=context)
    scores = [Score((one,)).bits_per_byte for one in _likelihoods(model, batch, candidates)]
    return bool(scores.index(min(scores)) == record["answer"])


def _with_response(record: Record, text: str) -> dict[str, Any]:
    """A record with another response."""
    if shape_of(record) == "messages":
        return {**record, "messages": [*record["messages"][:-1], {**record["messages"][-1], "content": text}]}
    return {"prompt": record.get("prompt", ""), "completion": text}


def _questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    batch: Responses,
    scored: Sequence[Example],
    *,
    context: Sequence[Record],
) -> dict[int, Asked]:
    """Of the records that ask something the prompts, with as much of the answers as their scores show."""
    shown = says_the_likeliest(model)
    found = {}
    for index, (record, example) in enumerate(zip(records, scored, strict=True)):
        if not (prompt := question(record, tokenizer, context=context)):
            continue
        ids, read = batch.inputs["input_ids"][index], batch.inputs["attention_mask"][index] != 0
        labelled = torch.nn.functional.pad(batch.labels[index], (len(ids) - batch.labels.shape[1], 0), value=IGNORED)
        places = (labelled[read] != IGNORED).nonzero()[:, 0].tolist()
        predicted = dict(zip(places, example.predicted, strict=True)) if shown else {}
        found[index] = Asked(prompt, begun(prompt, ids[read].tolist(), predicted))
    return found


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (as SQuAD's script does, Rajpurkar et al. 2016)."""
    text = "".join(" " if c in string.punctuation else c for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def tokens_too_many(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], context: Sequence[Record]
) -> int:
    """By how many tokens the longest record after the context goes beyond what the model can read; 0 if it fits."""
    limit = longest_text(model)
    if limit is None:
        return 0
    longest: int = max(
        responses([record], tokenizer, context=context).inputs["input_ids"].shape[1] for record in records
    )
    return max(0, longest - limit)
