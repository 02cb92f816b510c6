"""Building value networks: where they start, and what of the body they keep."""

from __future__ import annotations

import pytest
import torch
from tiny import KINDS, tiny_model

from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, build_network

IDS = torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_head_starts_at_the_base_bit_for_bit(kind: str, tokenizer: object) -> None:
    """Step 0 of training is the base itself."""
    base = tiny_model(kind, seed=1)
    before = base(IDS).logits.clone()
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    model.add_adapter(ValueAdapter.from_networks([build_network(base)], tokenizer, base_model_name_or_path="a/b"), "x")
    assert torch.equal(model(IDS).logits, before)
    assert model(IDS, output_value_logits=True).value_logits.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_is_a_copy(kind: str) -> None:
    """The same logits, from weights of its own."""
    source = tiny_model(kind, seed=1)
    network = build_network(source, initialisation="pretrained")
    assert torch.equal(network(IDS).logits, source(IDS).logits)
    with torch.no_grad():
        network.get_input_embeddings().weight.zero_()
    assert source.get_input_embeddings().weight.count_nonzero() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_first_layers_are_the_sources(kind: str) -> None:
    """Cut to one layer, the layer is the source's first."""
    source = tiny_model(kind, seed=1)
    network = build_network(source, initialisation="pretrained", num_layers=1)
    assert network.config.num_hidden_layers == 1
    assert len(getattr(network.config, "layer_types", None) or [1]) == 1
    weights = source.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert len(network.state_dict()) < len(weights)


def test_random_draws_new_weights() -> None:
    """Nothing of the source but its shape."""
    source = tiny_model("llama", seed=1)
    network = build_network(source, initialisation="random")
    assert not torch.equal(network.get_input_embeddings().weight, source.get_input_embeddings().weight)


@pytest.mark.parametrize("layers", [0, 3])
def test_impossible_depths_are_refused(layers: int) -> None:
    """The message names the range."""
    with pytest.raises(ConfigError, match="from 1 to 2"):
        build_network(tiny_model("llama", seed=1), num_layers=layers)


def test_unknown_initialisation_is_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(ConfigError, match="zero_head, pretrained, random"):
        build_network(tiny_model("llama", seed=1), initialisation="lucky")


@pytest.mark.parametrize(("kind", "name"), [("llama", "attention_dropout"), ("gpt2", "resid_pdrop")])
def test_dropout_acts_in_training_only(kind: str, name: str) -> None:
    """Whatever the architecture calls it; out of range it is refused."""
    source = tiny_model(kind, seed=1)
    network = build_network(source, initialisation="pretrained", dropout=0.5)
    assert getattr(network.config, name) == 0.5
    assert torch.equal(network(IDS).logits, source(IDS).logits)
    assert not torch.allclose(network.train()(IDS).logits, source(IDS).logits, atol=1e-2)
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        build_network(source, dropout=1.0)
