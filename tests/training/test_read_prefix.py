"""Networks that are trained behind the prefix read it as ordinary text, as they do in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_fast_path import Make, assert_same, loss_and_gradients, make, noted, whole  # noqa: F401  # a fixture
from test_recipe import DATA as RECORDS
from test_recipe import QUICK, bases  # noqa: F401  # a fixture
from tiny import tiny_model

from valueadapter import ConfigError, ValueAdapterForCausalLM, ValueTrainer
from valueadapter.artifact import verification
from valueadapter.artifact.config import Weights
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe

PREFIX = "Q:A Q:B"
READS = {"prefix": PREFIX, "reads_prefix": [True]}
PAIR = {"prefix": PREFIX, "stands_in": True, "coefficients": [1.0, -1.0], "reads_prefix": [True, True]}


def expected(run: ValueTrainer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients where each model's text begins with the prefix, row by row."""
    batch = run.data_collator([run.train_dataset[i] for i in range(6)])
    model, network = run.model, run.model.value_networks["default"][0]
    before = torch.tensor([prefix_ids(PREFIX, model.base_tokenizer)])
    total, count = torch.zeros(()), 0
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        own, wanted = torch.cat([before, ids[mask == 1][None]], dim=1), labels[mask == 1][1:]
        here = wanted != IGNORED
        base, value = (one(own).logits[0, before.shape[1] : -1] for one in (model.base, network))
        total = total + torch.nn.functional.cross_entropy((base + 0.7 * value)[here], wanted[here], reduction="sum")
        count += int(here.sum())
    torch.autograd.backward(total / count)
    return (total / count).detach(), [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("network", ["qwen3", "gpt2", "gemma3"])
@pytest.mark.parametrize("logits", [False, True])
def test_the_prefix_is_ordinary_text(make: Make, network: str, logits: bool) -> None:  # noqa: F811
    """Loss and gradients are those of prefix and row as one text."""
    one, two = (make(network=network, **READS) for _ in range(2))
    assert one.hidden_state_loss is not None
    if logits:
        whole(one)
    for module in [*one.model.modules(), *two.model.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss, gradients = loss_and_gradients(one)
    same, theirs = expected(two)
    torch.testing.assert_close(loss, same, rtol=1e-5, atol=0)
    assert len(gradients) == len(theirs) > 10
    for mine, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * float(other.abs().max()) + 1e-8)


def test_after_a_step_the_prefix_is_read_anew(make: Make) -> None:  # noqa: F811
    """By the weights that the step has left."""
    one, two = make(**READS), make(**READS)
    loss_and_gradients(one)
    for run_ in (one, two):
        run_.model.value_networks["default"][0].get_input_embeddings().weight.data.mul_(1.5)
        run_.model.zero_grad()
    torch.testing.assert_close(loss_and_gradients(one)[0], loss_and_gradients(two)[0], rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_checkpointed_gradients_lose_no_prefix(make: Make) -> None:  # noqa: F811
    """transformers then leaves caches out."""
    one, two = make(**READS), make(**READS)
    two.model.value_networks["default"][0].gradient_checkpointing_enable()
    assert_same(two, one, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_a_body_that_reads_what_the_base_reads_stands_in_for_it(make: Make, scale: float) -> None:  # noqa: F811
    """Where the two cancel, neither runs; otherwise the base runs once for both."""
    fast, slow = (make(base=tiny_model("llama", seed=1), scale=scale, **PAIR) for _ in range(2))
    assert fast.hidden_state_loss is not None
    assert fast.hidden_state_loss.stand_ins == {1}
    ran: list[str] = []
    noted(fast.model.value_networks["default"][1].base_model, lambda: ran.append("network"))
    noted(fast.model.base.base_model, lambda: ran.append("base"))
    assert_same(fast, whole(slow), rtol=5e-6)
    assert set(ran) == (set() if scale == 1 else {"base"})


def test_a_body_that_reads_less_does_not_stand_in(make: Make) -> None:  # noqa: F811
    for reads in ([True, False], [False, False]):
        fast = make(base=tiny_model("llama", seed=1), **PAIR | {"reads_prefix": reads})
        assert fast.hidden_state_loss is not None
        assert fast.hidden_state_loss.stand_ins == frozenset()


def test_a_recipe_in_which_all_read_the_prefix(tmp_path: Path, bases: list[str]) -> None:  # noqa: F811
    """On its training base at scale 1 the adapter is its network behind the prefix, as it was trained."""
    how: dict[str, Any] = {"base_prefix_examples": 3, "arguments": QUICK}
    summary = run(Recipe(base=bases[0], data=RECORDS, output_dir=tmp_path / "out", **how), say=lambda line: None)
    config = verification.verify(tmp_path / "out" / "adapter")
    assert [one.reads_prefix for one in config.networks] == [True, True]
    model = ValueAdapterForCausalLM.from_pretrained(bases[0], str(summary["adapter"]))
    model.set_weights("default", Weights(1.0, (1.0, -1.0)))
    before = torch.tensor([prefix_ids(config.base_prefix, model.base_tokenizer)])
    ids = torch.tensor([[5, 6, 7, 8]])
    network = model.adapters["default"].networks[0]
    with torch.no_grad():
        alone = network(torch.cat([before, ids], dim=1)).logits[:, before.shape[1] :]
        torch.testing.assert_close(model(ids).logits, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="lora_reads_prefix is of a LoRA network"):
        run(
            Recipe(base=bases[0], data=RECORDS, output_dir=tmp_path / "o", network="full", lora_reads_prefix=False),
            say=lambda line: None,
        )
