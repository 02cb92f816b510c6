"""Attaching, choosing and detaching adapters, in PEFT's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.peft import PeftAdapterMixin

from valueadapter import (
    AdapterNameError,
    ConfigError,
    IncompatibleBaseError,
    UnsupportedModeError,
    ValueAdapter,
    ValueAdapterForCausalLM,
)
from valueadapter.adapter.causal_lm import set_trainable

IDS = torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(0))
Make = Callable[..., ValueAdapter]
Wrapped = Callable[..., ValueAdapterForCausalLM]


def test_several_adapters_add_up_with_their_scales(wrapped: Wrapped, tiny_adapter: Make) -> None:
    """logits = base + Σ scale · value logits."""
    model = wrapped(scale=0.5)
    model.add_adapter(tiny_adapter("gpt2", seed=7), "style", scale=2.0)
    assert model.active_adapters == ["default"]
    model.set_adapter(["default", "style"])
    parts = [tiny_model(kind, seed=seed)(IDS).logits for kind, seed in (("llama", 1), ("llama", 2), ("gpt2", 7))]
    torch.testing.assert_close(model(IDS).logits, parts[0] + 0.5 * parts[1] + 2 * parts[2])
    model.delete_adapter("default")
    torch.testing.assert_close(model(IDS).logits, parts[0] + 2 * parts[2])


def test_unload_gives_the_base_back(wrapped: Wrapped) -> None:
    """After unload nothing of the adapter is left."""
    model = wrapped()
    base = model.unload()
    assert base is model.base
    assert model.adapters == {}
    assert torch.equal(base(IDS).logits, tiny_model("llama", seed=1)(IDS).logits)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "a b"])
def test_unusable_names_are_refused(wrapped: Wrapped, tiny_adapter: Make, name: str) -> None:
    """A name that would clash with a module's attribute is an error, not a broken model."""
    with pytest.raises(AdapterNameError, match=r"made of letters|a method or an attribute of torch's modules"):
        wrapped().add_adapter(tiny_adapter(), name)


def test_names_taken_unknown_and_ambiguous(wrapped: Wrapped, tiny_adapter: Make, tmp_path: Path) -> None:
    """The message lists what is attached."""
    model = wrapped()
    with pytest.raises(AdapterNameError, match="attached already"):
        model.add_adapter(tiny_adapter(), "default")
    with pytest.raises(AdapterNameError, match=r"attached are \['default'\]"):
        model.set_adapter("other")
    model.add_adapter(tiny_adapter(), "second")
    with pytest.raises(AdapterNameError, match="name the adapter"):
        model.save_pretrained(tmp_path / "a")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(wrapped: Wrapped, scale: float) -> None:
    """NaN never reaches the logits."""
    with pytest.raises(ConfigError, match="finite"):
        wrapped().set_scale("default", scale)


@pytest.mark.parametrize(("base_width", "network_width"), [(97, 104), (104, 97)])
def test_padded_widths_of_one_vocabulary_fit(
    tokenizer: object, tiny_adapter: Make, base_width: int, network_width: int
) -> None:
    """Rows that stand for no token may differ; the tokens' logits are the plain sum, and generation runs."""
    base = tiny_model("llama", seed=1, width=base_width)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    model.add_adapter(tiny_adapter(width=network_width), "default")
    network = tiny_model("llama", seed=2, width=network_width)
    logits = model(IDS).logits
    assert logits.shape[-1] == base_width
    torch.testing.assert_close(logits[..., :97], base(IDS).logits[..., :97] + network(IDS).logits[..., :97])
    padding = torch.tensor([[5, 100, 7]])  # a row that stands for no token; the network reads its id 0 there
    if base_width == 104:
        readable = padding.masked_fill(padding >= 97, 0)
        expected = base(padding).logits[..., :97] + network(readable).logits
        torch.testing.assert_close(model(padding).logits[..., :97], expected)
    greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(IDS, **greedy), model.generate(IDS, **greedy, use_cache=False))


def test_a_tokenizer_without_byte_view_is_refused(tiny_adapter: Make) -> None:
    """Words that have lost their spaces cannot be read as text; the error names both sides."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "hello": 1, "world": 2}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    base = tiny_model("llama", seed=1, width=90)
    model = ValueAdapterForCausalLM(base, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words))
    with pytest.raises(IncompatibleBaseError, match=r"trained on 'alice/base'.*no byte view"):
        model.add_adapter(tiny_adapter(), "default")
    assert model.adapters == {}


def test_an_unknown_tokenizer_asks_for_the_argument(tiny_adapter: Make) -> None:
    """A base without a name cannot be compared; the message says what to pass."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1))
    with pytest.raises(IncompatibleBaseError, match="tokenizer=AutoTokenizer"):
        model.add_adapter(tiny_adapter(), "default")


def test_the_adapter_follows_the_bases_dtype(tokenizer: object, tiny_adapter: Make) -> None:
    """A bfloat16 base gets bfloat16 networks."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1).bfloat16(), tokenizer=tokenizer)
    model.add_adapter(tiny_adapter(), "default")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(IDS).logits.dtype == torch.bfloat16


def test_the_adapter_follows_the_bases_device(tokenizer: object, tiny_adapter: Make) -> None:
    """Networks go where the base is."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1).to("meta"), tokenizer=tokenizer)
    model.add_adapter(tiny_adapter(), "default")
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_cache_of_a_deleted_adapter_is_refused(wrapped: Wrapped, tiny_adapter: Make) -> None:
    """Another adapter of the same name did not read that text."""
    model = wrapped()
    cache = model(IDS, use_cache=True).cache
    model.delete_adapter("default")
    model.add_adapter(tiny_adapter(seed=9), "default")
    with pytest.raises(UnsupportedModeError, match="this cache was made for"):
        model(IDS, cache=cache)


def test_deleting_the_active_adapter_warns(
    wrapped: Wrapped, tiny_adapter: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The model would otherwise be the base without a word."""
    model = wrapped()
    model.add_adapter(tiny_adapter(), "second")
    model.delete_adapter("default")
    assert "no adapter is active now" in caplog.text


def test_no_method_of_transformers_peft_mixin_is_left_as_it_is() -> None:
    """Each would put LoRA into base and networks."""
    for name in (n for n, value in vars(PeftAdapterMixin).items() if not n.startswith("_") and callable(value)):
        assert getattr(ValueAdapterForCausalLM, name) is not getattr(PeftAdapterMixin, name), name


def test_merging_and_resizing_say_why_not(wrapped: Wrapped) -> None:
    """The message names the alternatives."""
    with pytest.raises(UnsupportedModeError, match="distil"):
        wrapped().merge_and_unload()
    with pytest.raises(UnsupportedModeError, match="before attaching"):
        wrapped().resize_token_embeddings(200)


def test_training_mode_leaves_what_is_frozen_in_evaluation(wrapped: Wrapped) -> None:
    """No dropout in the base or in networks that are not trained; frozen and without gradients."""
    model = wrapped().train()
    (network,) = model.adapters["default"].networks
    assert not model.base.training
    assert not network.training
    assert not any(p.requires_grad for p in model.parameters())
    set_trainable(network, True)
    assert model.train().adapters["default"].networks[0].training
    assert not model.base.training
