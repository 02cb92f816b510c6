"""Bases and networks that others have placed: quantized, offloaded, on another device, in other dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from tiny import byte_tokenizer, tiny_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.causal_lm import execution_device

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS).index_fill_(1, torch.tensor([0, 1]), 0)
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
BITS = {
    8: BitsAndBytesConfig(load_in_8bit=True),
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
}
OFFLOADS: dict[str, Callable[[PreTrainedModel, Path], PreTrainedModel]] = {
    "cpu": lambda model, _: cpu_offload(model, execution_device=torch.device("cpu")),
    "disk": lambda model, place: disk_offload(model, place, execution_device=torch.device("cpu")),
    "part": lambda model, place: dispatch_model(
        model,
        {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
        | {"lm_head": "disk", "model.rotary_emb": "cpu"},
        main_device="cpu",
        offload_dir=place,
    ),
}


def adapter(*networks: PreTrainedModel, **options: Any) -> ValueAdapter:
    return ValueAdapter.from_networks(networks, byte_tokenizer(), base_model_name_or_path="alice/base", **options)


def wrapper(base: PreTrainedModel, *networks: PreTrainedModel, **options: Any) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(base, tokenizer=options.pop("tokenizer", byte_tokenizer()))
    model.add_adapter(adapter(*networks, **options), "default", scale=0.7)
    return model.eval()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are wide enough to be quantized in blocks."""
    place = tmp_path_factory.mktemp("wide")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**shape, vocab_size=97, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(place)
    return place


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_base_gets_the_same_sum(bits: int, dtype: torch.dtype, wide: Path) -> None:
    """What the base says in its own way, plus value logits; in every row, with and without a cache."""
    how = {"quantization_config": BITS[bits], "device_map": "cpu", "dtype": dtype}
    base = AutoModelForCausalLM.from_pretrained(wide, **how)
    alone = base(IDS).logits.clone()
    model = wrapper(base, tiny_model("gpt2", seed=2), base_prefix="!#")
    assert model.adapters["default"].networks[0].dtype == dtype
    model.set_base_prefix(None)
    expected = alone.float() + 0.7 * model.adapters["default"].networks[0](IDS).logits.float()
    torch.testing.assert_close(
        model(IDS).logits.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0
    )
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, alone)
    cached = model.generate(IDS, **GREEDY)
    assert torch.equal(cached, model.generate(IDS, **GREEDY, use_cache=False))
    model.set_base_prefix("!#")
    names = ["default", None]
    together = model.generate(IDS, **GREEDY, adapter_names=names)
    assert together.shape == cached.shape
    for row, name in enumerate(names if dtype == torch.float32 else ()):
        alone_in_row = model.generate(IDS[row : row + 1], **GREEDY, adapter_names=[name])
        assert torch.equal(together[row : row + 1], alone_in_row)
    assert model.unload() is base


@torch.no_grad()
def test_a_quantized_network_stays_as_it_is(wide: Path) -> None:
    """Its quantizer has placed it; it is neither moved nor given another dtype."""
    network = AutoModelForCausalLM.from_pretrained(wide, quantization_config=BITS[8], device_map="cpu")
    said = network(IDS).logits.clone()
    base = tiny_model("llama", seed=1).to(torch.float64)
    model = wrapper(base, network)
    torch.testing.assert_close(model(IDS).logits, base(IDS).logits + 0.7 * said.double(), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("how", OFFLOADS)
@pytest.mark.parametrize("vocabulary", ["same", "another"])
def test_an_offloaded_base_gets_the_same_sum(how: str, vocabulary: str, tmp_path: Path) -> None:
    """Weights that accelerate brings from memory or disk for each layer: sum, prefix, and decoding are the same."""
    tokenizer = byte_tokenizer() if vocabulary == "same" else tokenizer_of("coarse bytes")
    width = len(tokenizer)
    networks, options = (tiny_model("gpt2", seed=2), tiny_model("qwen3", seed=3)), {"coefficients": [1, -0.4]}
    options |= {"base_prefix": "!#", "reads_prefix": [False, True], "tokenizer": tokenizer}
    plain = wrapper(tiny_model("llama", seed=1, width=width), *networks, **options)
    base = OFFLOADS[how](tiny_model("llama", seed=1, width=width), tmp_path)
    assert any(parameter.is_meta for parameter in base.parameters())
    model = wrapper(base, *(tiny_model(kind, seed=seed) for kind, seed in (("gpt2", 2), ("qwen3", 3))), **options)
    assert model.device == torch.device("cpu")
    torch.testing.assert_close(model(IDS, attention_mask=MASK).logits, plain(IDS, attention_mask=MASK).logits)
    for names in (None, ["default", None]):
        found = model.generate(IDS, attention_mask=MASK, **GREEDY, adapter_names=names)
        assert torch.equal(found, plain.generate(IDS, attention_mask=MASK, **GREEDY, adapter_names=names))


@torch.no_grad()
@pytest.mark.parametrize("connection", ["residual", "cascade", "cascade_with_text"])
def test_an_offloaded_network_says_the_same(connection: Any, tmp_path: Path) -> None:
    """Networks too may be brought layer by layer; attaching leaves accelerate's hooks alone."""
    plain = wrapper(tiny_model("llama", seed=1), tiny_model("llama", seed=2), connection=connection)
    network = cpu_offload(tiny_model("llama", seed=2), execution_device=torch.device("cpu"))
    model = wrapper(tiny_model("llama", seed=1), network, connection=connection)
    assert all(parameter.is_meta for parameter in network.parameters())
    torch.testing.assert_close(model(IDS, attention_mask=MASK).logits, plain(IDS, attention_mask=MASK).logits)
    assert torch.equal(model.generate(IDS, **GREEDY), plain.generate(IDS, **GREEDY))


@contextmanager
def elsewhere(network: PreTrainedModel) -> Iterator[list[dict[str, Any]]]:
    """A network on the device "meta", which computes nothing: it says zeros; yields what it is called with."""
    calls: list[dict[str, Any]] = []

    def said(**inputs: Any) -> CausalLMOutputWithPast:
        calls.append(inputs)
        return CausalLMOutputWithPast(logits=torch.zeros(*inputs["input_ids"].shape, 97)[:, -2:])

    network.to("meta").forward = said
    yield calls
    del network.forward


@torch.no_grad()
def test_a_network_on_another_device_gets_its_inputs_there() -> None:
    """Ids, mask and positions go to the network, its logits come back to the base's."""
    model = wrapper(tiny_model("llama", seed=1), tiny_model("gpt2", seed=2))
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    with elsewhere(model.adapters["default"].networks[0]) as calls:
        assert execution_device(model.adapters["default"].networks[0]).type == "meta"
        found = model(IDS, attention_mask=MASK, position_ids=positions, logits_to_keep=2, use_cache=False)
    with model.disable_adapter():
        assert torch.equal(
            found.logits, model(IDS, attention_mask=MASK, position_ids=positions, logits_to_keep=2).logits
        )
    (call,) = calls
    assert {key for key, value in call.items() if isinstance(value, torch.Tensor) and value.is_meta} == {
        "input_ids",
        "attention_mask",
        "position_ids",
    }


@torch.no_grad()
@pytest.mark.parametrize("of_base", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_network", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_dtypes_meet_in_the_bases(of_base: torch.dtype, of_network: torch.dtype) -> None:
    """Networks take the base's dtype when they are attached; one that is given another later is still added."""
    network = tiny_model("gpt2", seed=2).to(of_network)
    model = wrapper(tiny_model("llama", seed=1).to(of_base), network)
    assert network.dtype == of_base
    network.to(of_network)
    out = model(IDS, output_value_logits=True)
    with torch.enable_grad():
        assert out.logits.dtype == model(IDS).logits.dtype == of_base
    expected = model.base(IDS).logits.float() + 0.7 * network(IDS).logits.float()
    torch.testing.assert_close(out.logits.float(), expected, atol=0.2, rtol=0.02)
    assert model.generate(IDS, **GREEDY).shape == (2, 14)


def test_training_beside_an_offloaded_base(tokenizer: PreTrainedTokenizerFast) -> None:
    """Only the network takes gradients, and they are those beside the base as it was."""
    gradients = []
    for place in (lambda model: model, lambda model: cpu_offload(model, execution_device=torch.device("cpu"))):
        model = ValueAdapterForCausalLM(place(tiny_model("llama", seed=1)), tokenizer=tokenizer)
        model.add_adapter(adapter(tiny_model("gpt2", seed=2)), "default", is_trainable=True)
        model.train()
        torch.manual_seed(0)
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in model.value_networks.parameters()])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
