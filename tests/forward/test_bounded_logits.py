"""Logits of labelled positions, piece by piece: what one pass over everything gives, in as little memory as allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import KINDS, SIZE, byte_tokenizer, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.forward import bounded_logits
from valueadapter.forward.bounded_logits import Piece, pieces

BUDGETS = (1, 20_000, 60_000, 2**28)
"""A position at a time, several, a row or two, everything."""
_SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TURN = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SPECIAL: dict[str, Callable[[], PreTrainedModel]] = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**_SHAPE, state_size=4)),
    "falcon-mamba": lambda: FalconMambaForCausalLM(FalconMambaConfig(**_SHAPE, state_size=4)),
    "jamba": lambda: JambaForCausalLM(JambaConfig(**_SHAPE, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1)),
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention"], block_ff_dim=32)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_SHAPE, head_dim=8, sliding_window=4, final_logit_softcapping=3.0)
    ),
    "longrope": lambda: Phi3ForCausalLM(
        Phi3Config(**_SHAPE, original_max_position_embeddings=16, rope_parameters=_TURN)
    ),
    "dynamic": lambda: tiny_with(_DYNAMIC),
}


def tiny_with(rope: dict[str, Any]) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SHAPE, "max_position_embeddings": 16}, rope_parameters=rope))


def of_kind(kind: str) -> PreTrainedModel:
    if kind in KINDS:
        return tiny_model(kind, seed=1)
    model = SPECIAL[kind]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "A_log" not in name:
                parameter.normal_(std=0.35, generator=generator)
    return model.eval()


def batch() -> tuple[dict[str, Any], torch.Tensor]:
    """Rows of uneven length, padded on the left; a row with a gap and a tail without labels, one without any label."""
    lengths, longest, generator = (30, 11, 24, 5), 30, torch.Generator().manual_seed(0)
    ids = torch.randint(3, SIZE, (4, longest), generator=generator)
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    labels = ids.clone()
    labels[0, :6] = labels[0, 14:17] = labels[0, 27:] = IGNORED
    labels[1, :22] = labels[2, :25] = IGNORED  # of the row of 11 no more than its last 8
    labels[3] = IGNORED
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    keep = 25
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "position_ids": positions, "logits_to_keep": keep}
    return inputs, labels[:, -keep + 1 :]


def in_one_pass(model: Any, inputs: dict[str, Any], labels: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    """Logits, and what adapters added, at every label, from all logits of all rows at once."""
    with torch.no_grad():
        out = model(**inputs, use_cache=False, **more)
    found = [out.logits, *([out.value_logits, *out.each.values()] if more else [])]
    return [logits[:, :-1][labels != IGNORED].float() for logits in found]


def row_by_row(model: Any, inputs: dict[str, Any], labels: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    """The same of each row alone."""
    found = []
    for row, mask in enumerate(inputs["attention_mask"]):
        padding = int((mask == 0).sum())
        alone = {key: inputs[key][row : row + 1, padding:] for key in ("input_ids", "attention_mask", "position_ids")}
        own = torch.nn.functional.pad(labels, (29 - labels.shape[1], 0), value=IGNORED)[row : row + 1, padding:]
        found.append(in_one_pass(model, alone, own))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def joined(found: list[Piece], places: int) -> list[torch.Tensor]:
    assert torch.cat([piece.places for piece in found]).tolist() == list(range(places))
    columns = [[p.logits, *([] if p.value_logits is None else [p.value_logits]), *p.each.values()] for p in found]
    return [torch.cat(parts) for parts in zip(*columns, strict=True)]


def assert_same(model: Any, budget: int, *, alone: bool = False, **more: Any) -> None:
    inputs, labels = batch()
    once = row_by_row if alone else in_one_pass
    expected = once(model, inputs, labels, **more)
    asked = {"value_logits": "each"} if more else {}
    found = list(pieces(model, inputs, labels, budget=budget, **asked))
    assert torch.equal(torch.cat([piece.labels for piece in found]), labels[labels != IGNORED])
    for one, other in zip(joined(found, len(expected[0])), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", [*KINDS, "gemma2"])
def test_pieces_are_what_one_pass_gives(kind: str, budget: int) -> None:
    """However little is held at once; with windows and with capped logits too."""
    assert_same(of_kind(kind), budget)


@pytest.mark.parametrize("budget", [10_000, 60_000, 2**28])
@pytest.mark.parametrize("kind", ["mamba", "falcon-mamba", "jamba", "lfm2"])
def test_states_that_cannot_be_gone_on_with_are_made_anew(kind: str, budget: int) -> None:
    """Mamba and its like take one token at a time once they have a state."""
    assert_same(of_kind(kind), budget)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_where_length_counts_a_row_is_read_alone_and_whole(kind: str, budget: int) -> None:
    """Otherwise a text would be read as a longer one that is beside it in the batch, or as a shorter one."""
    assert_same(of_kind(kind), budget, alone=True)


def wrapper(base: str, network: str, *, connection: str = "residual", count: int = 1) -> ValueAdapterForCausalLM:
    """A base with adapters of the same vocabulary."""
    tokenizer = byte_tokenizer()
    model = ValueAdapterForCausalLM(of_kind(base), tokenizer=tokenizer)
    for number in range(count):
        adapter = ValueAdapter.from_networks(
            [tiny_model(network, seed=2 + number)],
            tokenizer,
            base_model_name_or_path="a/b",
            connection=connection,  # type: ignore[arg-type]  # as its text
        )
        model.add_adapter(adapter, f"a{number}", scale=0.5)
    model.set_adapter([f"a{number}" for number in range(count)])
    return model.eval()


@pytest.mark.parametrize("budget", BUDGETS[1:])
@pytest.mark.parametrize(
    ("base", "network", "connection", "count"),
    [
        ("llama", "gpt2", "residual", 1),
        ("gemma3", "llama", "residual", 2),
        ("llama", "llama", "cascade", 1),
        ("gemma2", "gemma3", "cascade_with_text", 1),
    ],
)
def test_what_adapters_add_is_given_beside_the_sum(
    base: str, network: str, connection: str, count: int, budget: int
) -> None:
    """All of it and adapter by adapter, where networks read tokens and where they read what the base predicts."""
    model = wrapper(base, network, connection=connection, count=count)
    assert_same(model, budget, output_value_logits="each")


@pytest.mark.parametrize("budget", BUDGETS[1:])
@pytest.mark.parametrize("base", ["llama", "mistral"])
def test_behind_a_prefix_too(base: str, budget: int) -> None:
    """What the base alone reads first is before every row, and before every step of one."""
    model = wrapper(base, "llama")
    model.set_base_prefix("QRS TUV")
    assert_same(model, budget, output_value_logits="each")


@pytest.mark.parametrize("budget", [200_000, 800_000, 2**28])
@pytest.mark.parametrize("mode", ["map", "chain"])
@pytest.mark.parametrize("kind", ["bytes", "unigram"])
def test_networks_of_other_vocabularies_read_the_same_text(kind: str, mode: str, budget: int) -> None:
    """In tokens of their own, which do not end where the steps do."""
    theirs, mine = tokenizer_of("coarse bytes"), tokenizer_of(kind)
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    network = tiny_model("llama", seed=2, width=len(mine))
    model.add_adapter(ValueAdapter.from_networks([network], mine, base_model_name_or_path="a/b"), "default", scale=0.7)
    if mode != "map":
        model.set_alignment_mode("default", mode)
    text = "The readers read 12345 foxes again, and then the dog jumps over the quick fox."
    ids = theirs([text, text[:40]], padding=True, padding_side="left", return_tensors="pt")
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, IGNORED)[:, 1:]
    labels[:, :4] = labels[1, :12] = IGNORED
    inputs = {key: ids[key] for key in ("input_ids", "attention_mask")}
    (expected,) = in_one_pass(model.eval(), inputs, labels)
    found = joined(list(pieces(model, inputs, labels, budget=budget)), len(expected))
    torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Takes note of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *(leaf.untyped_storage().nbytes() for leaf in made)])
        return out


@pytest.mark.parametrize("connection", ["residual", "cascade"])
@pytest.mark.parametrize("rows", [1, 4])
def test_no_tensor_exceeds_the_budget(rows: int, connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for many rows nor for one that alone is too long."""
    model = wrapper("llama", "llama", connection=connection)
    monkeypatch.setattr(bounded_logits, "BUDGET", 100_000)
    ids = torch.randint(3, SIZE, (rows, 150), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with Largest() as seen:
        count = sum(len(piece.labels) for piece in pieces(model, inputs, ids[:, 20:], value_logits=True))
    assert count == rows * 130
    assert seen.bytes <= 100_000
