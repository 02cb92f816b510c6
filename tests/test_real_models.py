"""The promises that hold on tiny models hold on real ones: SmolLM2-135M-Instruct, and gemma-3-270m with its network."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, build_network
from valueadapter.config import Connection
from valueadapter.testing.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct

pytestmark = pytest.mark.real
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_instruct())


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(smollm2_instruct())


def attach(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    initialisation: str,
    *,
    tokenizer_of_base: PreTrainedTokenizerBase | None = None,
    connection: Connection = "residual",
) -> ValueAdapterForCausalLM:
    network = build_network(smollm2_derived(), initialisation=initialisation, num_layers=2)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer_of_base or tokenizer)
    adapter = ValueAdapter.from_networks(
        [network], tokenizer, base_model_name_or_path="alice/derived", connection=connection
    )
    model.add_adapter(adapter, "default", scale=0.3)
    return model.eval()


@torch.no_grad()
def test_a_fresh_network_leaves_the_base_as_it_is(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """With a head of zeros the first step of training starts at the base, bit for bit."""
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    alone = base(ids).logits
    assert torch.equal(attach(base, tokenizer, "zero_head")(ids).logits, alone)


@torch.no_grad()
def test_decoding_with_and_without_cache_alone_and_in_a_batch(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Chat prompts of different length: the same tokens with a cache, without, in a left-padded batch, speculating."""
    model = attach(base, tokenizer, "pretrained")
    questions = ["What is the capital of France?", "Name a colour, please, and say why you like it."]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    together = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for row, text in enumerate(texts):
        one = tokenizer(text, return_tensors="pt")
        length = one["input_ids"].shape[1]
        cached = model.generate(**one, **GREEDY)
        assert torch.equal(model.generate(**one, **GREEDY, use_cache=False), cached)
        assert torch.equal(model.generate(**one, **GREEDY, prompt_lookup_num_tokens=3), cached)
        assert torch.equal(together[row, : cached.shape[1] - length], cached[0, length:])
    with model.disable_adapter():
        assert torch.equal(model.generate(**batch, **GREEDY), base.generate(**batch, **GREEDY))


@torch.no_grad()
def test_a_network_that_reads_the_prediction_decodes_with_and_without_cache(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The same tokens with a cache and without; step by step the logits of reading at once."""
    model = attach(base, tokenizer, "pretrained", connection="cascade_with_text")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    few = {**GREEDY, "max_new_tokens": 4}
    cached = model.generate(ids, **few)
    assert torch.equal(model.generate(ids, **few, use_cache=False), cached)
    whole, cache = model(cached).logits, None
    for step in range(cached.shape[1]):
        out = model(cached[:, step : step + 1], cache=cache, use_cache=True)
        cache = out.cache
        torch.testing.assert_close(out.logits[:, 0], whole[:, step], rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_another_family_reads_cached_as_uncached_alone_and_in_a_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    """Two layers of SmolLM2 on gemma-3-270m: code, digits and emoji, where tokens are taken back, in every way."""
    theirs = AutoTokenizer.from_pretrained(gemma_3_270m())
    model = attach(
        AutoModelForCausalLM.from_pretrained(gemma_3_270m()), tokenizer, "pretrained", tokenizer_of_base=theirs
    )
    texts = ["def f(x):\n    for i in range(12345):\n        ", "Caf\u00e9 \U0001f469\u200d\U0001f4bb is"]
    batch = theirs(texts, return_tensors="pt", padding=True, padding_side="left")
    together = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for row, text in enumerate(texts):
        one = theirs(text, return_tensors="pt")
        length = one["input_ids"].shape[1]
        cached = model.generate(**one, **GREEDY)
        assert torch.equal(model.generate(**one, **GREEDY, use_cache=False), cached)
        assert torch.equal(model.generate(**one, **GREEDY, prompt_lookup_num_tokens=3), cached)
        assert torch.equal(together[row, : cached.shape[1] - length], cached[0, length:])
    ids, cache = theirs(texts[0], return_tensors="pt")["input_ids"], None
    whole = model(ids).logits[0]
    for step in range(ids.shape[1]):
        out = model(ids[:, step : step + 1], cache=cache, use_cache=True)
        cache = out.cache
        torch.testing.assert_close(out.logits[0, 0], whole[step], rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_another_adapter_in_each_row_on_both_families(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two adapters with prefixes of their own, one common network, and a row of the base: each as alone."""
    gemma = AutoModelForCausalLM.from_pretrained(gemma_3_270m()), AutoTokenizer.from_pretrained(gemma_3_270m())
    shallow = build_network(smollm2_derived(), initialisation="pretrained", num_layers=2)
    prefixes = {"short": "Q: Name a city.\nA: Rome.\n\n", "long": "Q: Why is the sky blue?\nA: Air scatters light.\n\n"}
    texts = ["Q: Name a river.\nA:", "Q: What is a theorem?\nA:", "Q: Hello?\nA:", "Q: Name a colour, please.\nA:"]
    names = ["short", "long", None, "short"]
    for model_base, theirs in ((base, tokenizer), gemma):
        model = ValueAdapterForCausalLM(model_base, tokenizer=theirs).eval()
        for layers, (name, prefix) in enumerate(prefixes.items(), 1):
            deeper = build_network(smollm2_derived(), initialisation="pretrained", num_layers=2 + layers)
            networks = [deeper, shallow if name == "short" else build_network(shallow, initialisation="pretrained")]
            adapter = ValueAdapter.from_networks(
                networks, tokenizer, base_model_name_or_path="alice/derived", coefficients=[1, -1], base_prefix=prefix
            )
            model.add_adapter(adapter, name, scale=0.1)
        assert model.adapters["short"].networks[1] is model.adapters["long"].networks[1]
        batch = theirs(texts, return_tensors="pt", padding=True, padding_side="left")
        together = model.generate(**batch, **GREEDY, adapter_names=names)[:, batch["input_ids"].shape[1] :]
        for row, (text, name) in enumerate(zip(texts, names, strict=True)):
            one = theirs(text, return_tensors="pt")
            alone = model.generate(**one, **GREEDY, adapter_names=[name])[0, one["input_ids"].shape[1] :]
            assert torch.equal(together[row, : len(alone)], alone)
        assert not torch.equal(together[0], together[3])
