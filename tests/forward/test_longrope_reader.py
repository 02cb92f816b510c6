"""Networks whose positions turn with the length of the text, on a base of another vocabulary."""

from __future__ import annotations

import pytest
import torch
from kinds import model_of
from test_other_vocabulary import ids_of, read_anew
from tiny import tiny_model
from vocabularies import tokenizer_of

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM


def wrapped() -> ValueAdapterForCausalLM:
    """A Phi-3 with a switch at 24 tokens, as a network over bytes."""
    theirs, mine = tokenizer_of("coarse bytes"), tokenizer_of("bytes")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    network = model_of("phi3", seed=2, width=len(mine))
    model.add_adapter(ValueAdapter.from_networks([network], mine, base_model_name_or_path="alice/base"), "default")
    return model.eval()


def test_up_to_the_switch_it_reads_as_anew() -> None:
    """Step by step on a cache, too."""
    model = wrapped()
    ids = ids_of(model, "The fox reads.")
    expected = read_anew(model, ids)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    cache = None
    for step in range(ids.shape[1]):
        out = model(ids[:, step : step + 1], cache=cache, use_cache=True)
        cache = out.cache
        torch.testing.assert_close(out.logits[:, 0], expected[:, step], rtol=1e-4, atol=1e-4)


def test_beyond_the_switch_it_is_refused() -> None:
    """Keys of what was read before would be turned otherwise, without a word."""
    model = wrapped()
    ids = ids_of(model, "The readers read and the riders ride, and then the dog jumps over the fox. " * 3)
    with pytest.raises(UnsupportedModeError, match="tokens of the value network, which reads 24 at most"):
        model(ids)
