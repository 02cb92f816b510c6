"""There is an end to what is kept of prefixes: few of them, and nothing of one that nobody has."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from test_prefix_reading import GREEDY, IDS, prefixed, tokens
from test_prefix_states import lengths_read
from tiny import byte_tokenizer, tiny_model

from valueadapter import RECORDED, ValueAdapter
from valueadapter.model.prefix_memory import PREFIXES_KEPT


def kept(length: int) -> int:
    """Tensors that are keys or values of one prefix of this length."""
    gc.collect()
    everything = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.dim() == 4]
    return sum(1 for x in everything if x.shape[0] == 1 and x.shape[2] == length)


def bare(seed: int = 4, prefix: Any = None, **how: Any) -> ValueAdapter:
    return ValueAdapter.from_networks(
        [tiny_model("gpt2", seed=seed)], byte_tokenizer(), base_model_name_or_path="a/b", base_prefix=prefix, **how
    )


TEXTS = [f"{number:03d} is the number\n" for number in range(100)]
LENGTH = len(byte_tokenizer()(TEXTS[0])["input_ids"])


@pytest.mark.parametrize("how", ["set", "blocks", "attached", "swapped"])
@torch.no_grad()
def test_of_many_prefixes_few_are_kept(how: str) -> None:
    """A hundred of them, one after another: memory is bounded, and each gives what it gives alone."""
    model = prefixed(prefix=None)
    for number, text in enumerate(TEXTS):
        if how == "blocks":
            with model.prefixed_base(text):
                model(IDS)
            continue
        if how == "set":
            model.set_base_prefix(text)
        elif how == "swapped" and number:
            model.hotswap_adapter(bare(prefix=text), "swapped")
        else:
            name = "swapped" if how == "swapped" else f"n{number}"
            model.add_adapter(bare(prefix=text), name)
            model.set_adapter(name)
        model(IDS)
    per_prefix = (
        2 * 2 * (2 if how == "set" else 1)
    )  # layers, keys and values; the base, and a network that reads it too
    assert 0 < kept(LENGTH) <= PREFIXES_KEPT * per_prefix
    if how == "attached":
        model.set_adapter("n0")
        before = torch.cat([tokens(model, TEXTS[0]).expand(2, -1), IDS], dim=1)
        network = model.adapters["n0"].networks[0]
        torch.testing.assert_close(model(IDS).logits, model.base(before).logits[:, -7:] + network(IDS).logits)


@pytest.mark.parametrize("how", ["deleted", "swapped", "unset", "unloaded"])
@torch.no_grad()
def test_memory_comes_back_when_nobody_has_the_prefix(how: str) -> None:
    """Of the base's keys and values and of the networks'."""
    model = prefixed(prefix=None if how == "unset" else TEXTS[0])
    if how == "unset":
        model.set_base_prefix(TEXTS[0])
    model(IDS)
    assert kept(LENGTH) == 8
    if how == "swapped":
        new = prefixed(prefix=None).adapters["default"]
        model.hotswap_adapter(new, "default")
    elif how == "unset":
        model.set_base_prefix(RECORDED)
    elif how == "unloaded":
        model.unload()
    else:
        model.delete_adapter("default")
    assert kept(LENGTH) == 0


@torch.no_grad()
def test_a_prefix_that_another_adapter_has_stays() -> None:
    """And what only the other's networks read goes."""
    model = prefixed(prefix=TEXTS[0])
    model.add_adapter(bare(prefix=TEXTS[0]), "other")
    seen = lengths_read(model)
    model(IDS)
    assert kept(LENGTH) == 8
    model.delete_adapter("default")
    assert kept(LENGTH) == 4
    model.set_adapter("other")
    model(IDS)
    assert seen == [LENGTH, IDS.shape[1], IDS.shape[1]]


@torch.no_grad()
def test_rows_behind_many_prefixes_read_each_once() -> None:
    """More in one batch than are kept: no prefix is read twice for one answer, and rows are as alone."""
    model = prefixed(prefix=None)
    names = [f"n{number}" for number in range(PREFIXES_KEPT + 3)]
    for name, text in zip(names, TEXTS, strict=False):
        model.add_adapter(bare(prefix=text), name)
    ids = IDS[:1].expand(len(names), -1)
    seen = lengths_read(model)
    found = model.generate(ids, **GREEDY, adapter_names=names)
    assert seen.count(LENGTH) == len(names)
    for row in (0, len(names) - 1):
        model.set_adapter(names[row])
        assert torch.equal(model.generate(IDS[:1], **GREEDY)[0], found[row])


@torch.no_grad()
def test_a_base_put_in_its_place_reads_the_prefix_itself() -> None:
    """Keys and values belong to the base that computed them, and no other base's are kept or read."""
    model, fresh = prefixed(), prefixed()
    before = model(IDS).logits
    for one in (model, fresh):
        one.base = tiny_model("llama", seed=31).eval()
    assert torch.equal(model(IDS).logits, fresh(IDS).logits)
    assert torch.equal(model.generate(IDS, **GREEDY), fresh.generate(IDS, **GREEDY))
    assert not torch.allclose(model(IDS).logits, before, atol=1e-2)
    assert model.attached.base is model.base
    assert {known.base.base for known in model.attached.prefixes.known.values()} == {model.base}


@torch.no_grad()
def test_a_shallow_copy_chooses_for_itself() -> None:
    """Which adapters act, at which scale of a block and behind which prefix: as with an object of attributes."""
    model = prefixed()
    twin, alone = copy.copy(model), model(IDS).logits
    twin.disable_adapters()
    assert (model.active_adapters, twin.active_adapters) == ([*model.adapters], [])
    twin.enable_adapters()
    twin.set_base_prefix("Z ")
    assert model.base_prefix != twin.base_prefix == "Z "
    with twin.disable_adapter():
        assert torch.equal(model(IDS).logits, alone)
        assert torch.equal(twin(IDS).logits, model.base(IDS).logits)
