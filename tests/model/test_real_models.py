"""The promises that hold on tiny models hold on real ones: SmolLM2-135M-Instruct, and gemma-3-270m with its network."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import SFTConfig, SFTTrainer

from testkit.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct
from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, build_network
from valueadapter.artifact.config import Connection

pytestmark = pytest.mark.real
GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2_instruct())


@functools.cache
def derived() -> PreTrainedModel:
    """What networks are built of, which copies it."""
    return AutoModelForCausalLM.from_pretrained(smollm2_derived())


@pytest.fixture(scope="module")
def gemma() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Adapters lie in a wrapper of its own in each test, and leave it as it is."""
    return tuple(kind.from_pretrained(gemma_3_270m()) for kind in (AutoModelForCausalLM, AutoTokenizer))  # type: ignore[return-value]


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
    network = build_network(derived(), initialisation=initialisation, num_layers=2)
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
def test_another_family_reads_cached_as_uncached_alone_and_in_a_batch(
    tokenizer: PreTrainedTokenizerBase, gemma: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    """Two layers of SmolLM2 on gemma-3-270m: code, digits and emoji, where tokens are taken back, in every way."""
    model_base, theirs = gemma
    model = attach(model_base, tokenizer, "pretrained", tokenizer_of_base=theirs)
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
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gemma: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    """Two adapters with prefixes of their own, one common network, and a row of the base: each as alone."""
    shallow = build_network(derived(), initialisation="pretrained", num_layers=2)
    prefixes = {"short": "Q: Name a city.\nA: Rome.\n\n", "long": "Q: Why is the sky blue?\nA: Air scatters light.\n\n"}
    texts = ["Q: Name a river.\nA:", "Q: What is a theorem?\nA:", "Q: Hello?\nA:", "Q: Name a colour, please.\nA:"]
    names = ["short", "long", None, "short"]
    for model_base, theirs in ((base, tokenizer), gemma):
        model = ValueAdapterForCausalLM(model_base, tokenizer=theirs).eval()
        for layers, (name, prefix) in enumerate(prefixes.items(), 1):
            deeper = build_network(derived(), initialisation="pretrained", num_layers=2 + layers)
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


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")  # TRL's own arguments
def test_trl_trains_the_network_towards_the_answers(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """`SFTTrainer` as it is: its loss is that of whole logits, falls, and its checkpoint loads to the same model."""
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    network = build_network(derived(), num_layers=2)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/derived")
    model.add_adapter(adapter, "default", is_trainable=True)
    rows = [{"prompt": f"Q: What is {n} and {n}?\nA:", "completion": f" It is {2 * n}."} for n in range(8)]
    how = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 4}
    args = SFTConfig(str(tmp_path), **how, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = model.eval()(**batch).loss
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected, atol=1e-4, rtol=0)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(float(expected), abs=1e-3)
    assert losses[-1] < losses[0] - 0.1
    loaded = ValueAdapterForCausalLM.from_pretrained(base, tmp_path / "checkpoint-4", tokenizer=tokenizer)
    with torch.no_grad():
        assert torch.equal(loaded(batch["input_ids"]).logits, model.eval()(batch["input_ids"]).logits)


@torch.no_grad()
def test_peft_surface_on_a_real_base(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Weighted, swapped, counted, refused: what tiny models show holds on SmolLM2, and unloading gives it back."""
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    alone = base(ids).logits.clone()
    made = {
        name: ValueAdapter.from_networks(
            [build_network(derived(), initialisation="pretrained", num_layers=layers)],
            tokenizer,
            base_model_name_or_path="alice/derived",
        )
        for name, layers in (("a", 1), ("b", 2))
    }
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer, strict=True).eval()
    for name, adapter in made.items():
        model.add_adapter(adapter, name, scale=0.2)
    values = {name: adapter.networks[0](ids).logits for name, adapter in made.items()}
    model.add_weighted_adapter(["a", "b"], [0.3, 0.1], "mix")
    model.set_adapter("mix")
    torch.testing.assert_close(model(ids).logits, alone + 0.3 * values["a"] + 0.1 * values["b"], rtol=1e-3, atol=1e-3)
    assert {status.name: status.active for status in model.get_adapter_status()} == {
        "a": False,
        "b": False,
        "mix": True,
    }
    with pytest.raises(ConfigError, match="strict"):
        model.set_scale("a", -1.0)
    model.delete_adapter("mix")
    other = ValueAdapter.from_networks(
        [build_network(derived(), num_layers=2)], tokenizer, base_model_name_or_path="alice/derived"
    )
    with pytest.raises(ConfigError, match="another architecture"):
        model.hotswap_adapter(other, "a")
    again = build_network(derived(), initialisation="pretrained", num_layers=1)
    again.get_input_embeddings().weight.mul_(0.5)
    fits = ValueAdapter.from_networks([again], tokenizer, base_model_name_or_path="alice/derived")
    place = made["a"].networks[0].get_input_embeddings().weight.data_ptr()
    model.hotswap_adapter(fits, "a", scale=0.2)
    model.set_adapter("a")
    assert model.adapters["a"].networks[0].get_input_embeddings().weight.data_ptr() == place
    torch.testing.assert_close(model(ids).logits, alone + 0.2 * again(ids).logits, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.unload()(ids).logits, alone)


@torch.no_grad()
@pytest.mark.parametrize("how", ["8 bits", "offloaded", "bfloat16"])
def test_a_placed_real_base_gets_the_same_sum(how: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """SmolLM2 in 8 bits, brought layer by layer, and in another dtype than the adapter was saved in."""
    given: dict[str, object] = {"dtype": torch.bfloat16} if how == "bfloat16" else {}
    if how == "8 bits":
        given = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    base = AutoModelForCausalLM.from_pretrained(smollm2_instruct(), **given)
    if how == "offloaded":
        base = cpu_offload(base, execution_device=torch.device("cpu"))
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    alone = base(ids).logits.clone()
    model = attach(base, tokenizer, "pretrained")
    network = model.adapters["default"].networks[0]
    expected = alone.float() + 0.3 * network(ids).logits.float()
    close = {"rtol": 1e-3, "atol": 1e-3} if how == "offloaded" else {"rtol": 0.02, "atol": 0.2}
    torch.testing.assert_close(model(ids).logits.float(), expected, **close)
    answer = tokenizer.decode(model.generate(ids, **GREEDY)[0, ids.shape[1] :])
    assert answer
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, alone)
