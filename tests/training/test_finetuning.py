"""The fine-tuned reference: it learns, by seed, and leaves the base as it found it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from valueadapter import ConfigError
from valueadapter.evaluation.metrics import evaluate
from valueadapter.training.finetuning import FineTuning, finetuned

RECORDS = [{"prompt": f"{a}B", "completion": f"{a}C"} for a in "DEFGHI"]
HOW = FineTuning(epochs=16, batch_size=6, rank=4, learning_rate=0.05)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_base_is_untouched(kind: str) -> None:
    """Within the block it predicts its demonstrations better; afterwards weights, modules and flags are the base's."""
    base, tokenizer = tiny_model(kind, seed=1).requires_grad_(False), byte_tokenizer()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    modules, attributes, random = [name for name, _ in base.named_modules()], set(vars(base)), torch.get_rng_state()
    before = evaluate(base, tokenizer, RECORDS, generate=False).bits_per_byte
    with finetuned(base, tokenizer, RECORDS, how=HOW) as tuned:
        assert evaluate(tuned, tokenizer, RECORDS, generate=False).bits_per_byte < 0.9 * before
    assert evaluate(base, tokenizer, RECORDS, generate=False).bits_per_byte == before
    assert state.keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    assert [name for name, _ in base.named_modules()] == modules
    assert set(vars(base)) == attributes
    assert not base.training
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_one_seed_gives_one_reference() -> None:
    """A second run, on the same base, is the first, whatever was drawn meanwhile; another seed is another."""
    base, tokenizer = tiny_model("llama", seed=1), byte_tokenizer()
    found = []
    for seed in (0, 0, 1):
        how = FineTuning(epochs=1, batch_size=3, rank=4, learning_rate=0.02, seed=seed)
        with finetuned(base, tokenizer, RECORDS, how=how) as tuned:
            found.append(evaluate(tuned, tokenizer, RECORDS, generate=False).bits_per_byte)
        torch.rand(1)
    assert found[0] == found[1] != found[2]


def test_only_lora_on_the_body_is_trained() -> None:
    """No weight of the base, and nothing on its head; every step is told."""
    base, tokenizer = tiny_model("llama", seed=1), byte_tokenizer()
    steps: list[tuple[int, int]] = []
    with finetuned(
        base, tokenizer, RECORDS, how=HOW, on_progress=lambda done, total: steps.append((done, total))
    ) as tuned:
        trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name and "lm_head" not in name for name in trained)
    assert steps == [(step, 16) for step in range(1, 17)]


def test_a_peft_base_is_refused() -> None:
    """A second LoRA would be put on the first."""
    base, tokenizer = tiny_model("llama", seed=1), byte_tokenizer()
    with (
        finetuned(base, tokenizer, RECORDS, how=replace(HOW, epochs=0.5)) as tuned,
        pytest.raises(ConfigError, match="PEFT model already"),
        finetuned(tuned, tokenizer, RECORDS),
    ):
        pass
