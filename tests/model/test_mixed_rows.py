"""Another choice of adapters for each row: every row equals its run alone, in every decoding mode."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import KINDS, tiny_model
from vocabularies import tokenizer_of

from valueadapter import AdapterNameError, ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM

Mixed = Callable[..., ValueAdapterForCausalLM]
NAMES: list[Any] = ["a", "b", None, ["a", "b"], "a"]
IDS = torch.randint(3, 97, (5, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :3] = MASK[2, :2] = MASK[3, :1] = 0
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several answers": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "beams on a static cache": {"num_beams": 2, "cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "uncached": {"use_cache": False},
}
PREFIXES: dict[str, tuple[str | None, str | None]] = {"no prefix": (None, None), "own prefixes": ("Q:A ", "Z Y X ")}


@pytest.fixture
def mixed(tokenizer: Any) -> Mixed:
    def make(
        base: str = "llama", prefixes: tuple[str | None, str | None] = (None, None), other: bool = False
    ) -> ValueAdapterForCausalLM:
        model = ValueAdapterForCausalLM(tiny_model(base, seed=1), tokenizer=tokenizer).eval()
        for name, kind, prefix in zip("ab", ("qwen3", "gpt2"), prefixes, strict=True):
            theirs = tokenizer_of("sentencepiece") if other and name == "b" else tokenizer
            network = tiny_model(kind, seed=3 + ord(name), width=len(theirs))
            adapter = ValueAdapter.from_networks(
                [network], theirs, base_model_name_or_path="alice/base", base_prefix=prefix
            )
            model.add_adapter(adapter, name, scale=0.7)
        return model

    return make


def alone(model: ValueAdapterForCausalLM, row: int, **how: Any) -> torch.Tensor:
    """What one row gives by itself, with its adapters active."""
    names = [NAMES[row]] if isinstance(NAMES[row], str) else NAMES[row]
    inputs = {"input_ids": IDS[row : row + 1], "attention_mask": MASK[row : row + 1]}
    if names is None:
        with model.disable_adapter():
            return model.generate(**inputs, **GREEDY, **how)
    model.set_adapter(names)
    return model.generate(**inputs, **GREEDY, **how)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("base", KINDS)
@pytest.mark.parametrize("other", [False, True], ids=["one vocabulary", "two vocabularies"])
def test_each_row_equals_its_run_alone(mixed: Mixed, base: str, mode: str, other: bool) -> None:
    """Left padding, beams and all; a row without a name is the base."""
    model, how = mixed(base, other=other), MODES[mode]
    found = model.generate(IDS, attention_mask=MASK, adapter_names=NAMES, **GREEDY, **how)
    expected = torch.cat([alone(model, row, **how) for row in range(5)])
    assert torch.equal(found, expected)
    answers = [tuple(row[7:].tolist()) for row in found]
    assert len(set(answers)) >= 4  # the rows do differ


@pytest.mark.parametrize("mode", ["greedy", "beams", "static cache", "uncached"])
@pytest.mark.parametrize("base", ["llama", "gemma3"])
def test_each_row_brings_its_prefix(mixed: Mixed, base: str, mode: str) -> None:
    """Adapters whose prefixes exclude each other on one row go side by side on two; the base reads none."""
    model, how = mixed(base, PREFIXES["own prefixes"]), MODES[mode]
    names = ["a", "b", None, "b", "a"]
    found = model.generate(IDS, attention_mask=MASK, adapter_names=names, **GREEDY, **how)
    for row, name in enumerate(names):
        inputs = {"input_ids": IDS[row : row + 1], "attention_mask": MASK[row : row + 1]}
        expected = model.generate(**inputs, adapter_names=[name], **GREEDY, **how)
        assert torch.equal(found[row : row + 1], expected)
        if name is not None:
            model.set_adapter(name)
            assert torch.equal(model.generate(**inputs, **GREEDY, **how), expected)
    with pytest.raises(UnsupportedModeError, match="bring different base prefixes"):
        model.generate(IDS, adapter_names=[["a", "b"]] * 5, **GREEDY)


def test_rows_without_a_name_are_the_base_bit_for_bit(mixed: Mixed) -> None:
    """In logits, and so is a batch of nothing but such rows; PEFT's name for it serves too."""
    model = mixed()
    names = ["a", None, "__base__", None, "b"]
    rows = [1, 2, 3]
    out = model(IDS, attention_mask=MASK, adapter_names=names, output_value_logits=True)
    assert torch.equal(out.logits[rows], model.base(IDS[rows], attention_mask=MASK[rows]).logits)
    assert not out.value_logits[rows].any()
    assert out.value_logits[[0, 4]].abs().amax(dim=(1, 2)).min() > 0.1
    assert torch.equal(model(IDS, adapter_names=[None] * 5).logits, model.base(IDS).logits)


def test_a_network_runs_for_the_rows_that_need_it(mixed: Mixed) -> None:
    """And for no others, at every step."""
    model, seen = mixed(), []
    network = model.adapters["b"].networks[0]
    network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    model.generate(IDS, adapter_names=["a", "b", None, "a", "b"], **{**GREEDY, "max_new_tokens": 3})
    assert seen == [2, 2, 2]


def test_labels_and_gradients(mixed: Mixed) -> None:
    """The loss over the rows in their order; gradients reach the networks of the rows that have them."""
    model = mixed()
    network = model.adapters["a"].networks[0].requires_grad_(True)
    out = model(IDS, attention_mask=MASK, labels=IDS, adapter_names=NAMES, use_cache=False)
    expected = model.loss_function(logits=out.logits, labels=IDS, vocab_size=97)
    assert torch.equal(out.loss, expected)
    torch.autograd.backward(out.loss)
    assert network.get_input_embeddings().weight.grad.abs().max() > 0


def test_a_cache_goes_on_with_the_same_names_only(mixed: Mixed) -> None:
    """Step by step equals all at once; other names, or a plain cache, are refused."""
    model = mixed(prefixes=PREFIXES["own prefixes"])
    names = ["a", "b", None, "b", "a"]
    whole = model(IDS, adapter_names=names).logits
    cache, parts = None, []
    for begin in (0, 3, 4):
        chunk = IDS[:, begin : {0: 3, 3: 4, 4: 7}[begin]]
        out = model(chunk, adapter_names=names, cache=cache, use_cache=True)
        cache = out.cache
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=2e-5)
    assert cache.get_seq_length() == 7
    for wrong in (["b", "a", None, "b", "a"], ["a"] * 5, None):
        with pytest.raises(UnsupportedModeError):
            model(IDS[:, :1], adapter_names=wrong, cache=cache)
    cache.crop(-2)
    out = model(IDS[:, 5:], adapter_names=names, cache=cache)
    torch.testing.assert_close(out.logits, whole[:, 5:], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["c"] * 5, "there is no adapter 'c'"),
        (["a", "b", "a"], "one entry for each of the 5 rows"),
        ("a", "one entry for each"),
        ([], "one entry for each"),
        ([["a", "a"]] * 5, "can act once on a row"),
    ],
)
def test_names_that_cannot_be(mixed: Mixed, names: Any, message: str) -> None:
    """Unknown, too few, or one twice."""
    with pytest.raises(AdapterNameError, match=message):
        mixed().generate(IDS, adapter_names=names, **GREEDY)


def test_what_is_active_otherwise_does_not_matter(mixed: Mixed) -> None:
    """Names given with a call go before set_adapter and disable_adapter, and leave both as they were."""
    model = mixed()
    expected = model.generate(IDS, adapter_names=NAMES, **GREEDY)
    model.set_adapter(["a", "b"])
    assert torch.equal(model.generate(IDS, adapter_names=NAMES, **GREEDY), expected)
    with model.disable_adapter():
        assert torch.equal(model.generate(IDS, adapter_names=NAMES, **GREEDY), expected)
        assert model.active_adapters == []
    assert model.active_adapters == ["a", "b"]


def test_conversations_go_with_their_rows(tokenizer: Any) -> None:
    """A network of another vocabulary reads each row's own chat, beams included."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    theirs = tokenizer_of("sentencepiece")
    theirs.chat_template = tokenizer.chat_template
    network = tiny_model("llama", seed=5, width=len(theirs))
    model.add_adapter(ValueAdapter.from_networks([network], theirs, base_model_name_or_path="alice/base"), "a")
    chats = [[{"role": "user", "content": text}] for text in ("A B", "CCC", "D")]
    for beams in (1, 2):
        how = {**GREEDY, "num_beams": beams}
        found = model.generate(**model.chat_inputs(chats), adapter_names=["a", None, "a"], **how)
        for row, name in enumerate(["a", None, "a"]):
            one = model.chat_inputs([chats[row]])
            alone_ = model.generate(**one, adapter_names=[name], **how)
            assert torch.equal(found[row, -6:], alone_[0, -6:])
    with pytest.raises(ConfigError, match="2 conversations in `messages` for 3 rows"):
        model(**{**model.chat_inputs(chats), "messages": chats[:2]}, adapter_names=["a", None, "a"])


# -- blocks and threads ------------------------------------------------------------------------------------------------
def test_a_block_holds_in_its_own_thread(mixed: Mixed, caplog: pytest.LogCaptureFixture) -> None:
    """One thread with the adapter off and one with it on, at the same time; the other thread is told once."""
    model = mixed()
    with model.disable_adapter():
        off = model(IDS).logits
    on = model(IDS).logits
    entered, done = threading.Event(), threading.Event()
    found: dict[str, torch.Tensor] = {}

    def without() -> None:
        with model.disable_adapter():
            entered.set()
            done.wait(10)
            found["off"] = model(IDS).logits

    thread = threading.Thread(target=without)
    thread.start()
    entered.wait(10)
    for _ in range(2):
        found["on"] = model(IDS).logits
    done.set()
    thread.join()
    assert torch.equal(found["on"], on)
    assert torch.equal(found["off"], off)
    assert sum("holds in its own thread only" in record.message for record in caplog.records) == 1


def test_blocks_nest_and_survive_exceptions(mixed: Mixed) -> None:
    """The innermost decides, and what was before is back however a block ends."""
    model = mixed()
    with model.disable_adapter():
        with model.only("b", scale=0.5):
            assert model.active_adapters == ["b"]
            with model.disable_adapter():
                assert model.active_adapters == []
            assert model.active_adapters == ["b"]
        assert model.active_adapters == []
        with pytest.raises(RuntimeError), model.only("b", scale=0.5):
            raise RuntimeError
        assert (model.active_adapters, model.scales["b"]) == ([], 0.7)
    with pytest.raises(RuntimeError), model.disable_adapter():
        raise RuntimeError
    assert model.active_adapters == ["a"]


def test_a_block_of_one_model_leaves_others_alone(mixed: Mixed) -> None:
    """Also within it."""
    one, two = mixed(), mixed()
    with one.disable_adapter():
        assert (one.active_adapters, two.active_adapters) == ([], ["a"])
        with two.only("b", scale=1.0):
            assert (one.active_adapters, two.active_adapters) == ([], ["b"])


def test_assisted_generation_with_names(mixed: Mixed) -> None:
    """Speculation takes back and goes on; it is for one prompt."""
    model, assistant = mixed(prefixes=PREFIXES["own prefixes"]), tiny_model("llama", seed=11)
    for names in (["b"], [None]):
        expected = model.generate(IDS[:1], adapter_names=names, **GREEDY)
        assert torch.equal(model.generate(IDS[:1], adapter_names=names, assistant_model=assistant, **GREEDY), expected)
        assert torch.equal(model.generate(IDS[:1], adapter_names=names, prompt_lookup_num_tokens=2, **GREEDY), expected)


def test_rows_of_a_cache_can_be_repeated_and_chosen(mixed: Mixed) -> None:
    """As with any cache; each row goes to its group."""
    model, names = mixed(), ["a", None, "b"]
    cache = model(IDS[:3], adapter_names=names, use_cache=True).cache
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 2, 3, 5]))
    chosen = [0, 1, 1, 2]
    out = model(IDS[chosen, :2], adapter_names=["a", None, None, "b"], cache=cache)
    expected = model(torch.cat([IDS[chosen], IDS[chosen, :2]], dim=1), adapter_names=["a", None, None, "b"]).logits
    torch.testing.assert_close(out.logits, expected[:, 7:], rtol=0, atol=2e-5)


def test_a_group_of_which_no_row_is_kept_goes(mixed: Mixed) -> None:
    """The others go on."""
    model, names = mixed(), ["a", None, "b"]
    cache = model(IDS[:3], adapter_names=names, use_cache=True).cache
    cache.batch_select_indices(torch.tensor([0, 2]))
    out = model(IDS[[0, 2], :2], adapter_names=["a", "b"], cache=cache)
    expected = model(torch.cat([IDS[[0, 2]], IDS[[0, 2], :2]], dim=1), adapter_names=["a", "b"]).logits
    torch.testing.assert_close(out.logits, expected[:, 7:], rtol=0, atol=2e-5)
