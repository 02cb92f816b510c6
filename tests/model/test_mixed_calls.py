"""The choice of adapters by row holds for everything within `generate`, and is for as many prompts as there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import LogitsProcessor, LogitsProcessorList

from valueadapter import AdapterNameError, ValueAdapter, ValueAdapterForCausalLM

NAMES: list[Any] = ["a", "b", None, ["a", "b"], "a"]
IDS = torch.randint(3, 97, (5, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[0, :3] = MASK[3, :1] = 0
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def mixed(prefix: str | None = None) -> ValueAdapterForCausalLM:
    tokenizer = byte_tokenizer()
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    for name, kind in zip("ab", ("qwen3", "gpt2"), strict=True):
        network = tiny_model(kind, seed=3 + ord(name))
        adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base")
        model.add_adapter(adapter, name, scale=0.7, base_prefix=prefix if name == "b" else None)
    return model


class Again(LogitsProcessor):
    """A processor of the user's own: runs the model once more, and takes half of what it says."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return scores + self.model(input_ids[:, -3:]).logits[:, -1] / 2  # type: ignore[no-any-return]


@pytest.mark.parametrize("active", [[], ["a", "b"]], ids=["none active", "both active"])
@pytest.mark.parametrize(
    "how",
    [
        {"guidance_scale": 1.7},
        {"guidance_scale": 1.7, "use_cache": False},
        {"guidance_scale": 0.4, "negative_prompt_ids": True},
        {"logits_processor": True},
        {"logits_processor": True, "num_beams": 2, "num_return_sequences": 2},
    ],
    ids=["guidance", "guidance uncached", "negative prompts", "own processor", "own processor, beams"],
)
@pytest.mark.parametrize("prefix", [None, "Q:A "], ids=["no prefix", "a row with a prefix"])
def test_passes_within_generate_run_the_rows_adapters(how: dict[str, Any], active: list[str], prefix: Any) -> None:
    """Transformers' second pass without the prompt, and a user's: each row as alone, whatever is active otherwise."""
    model = mixed(prefix)
    model.set_adapter(active[:1] if prefix else active)

    def run(rows: list[int]) -> torch.Tensor:
        asked = dict(how)
        if asked.pop("negative_prompt_ids", False):
            asked["negative_prompt_ids"] = IDS[rows].flip(1)
        if asked.pop("logits_processor", False):
            asked["logits_processor"] = LogitsProcessorList([Again(model)])
        names = [NAMES[row] for row in rows]
        if prefix:
            names = [name if isinstance(name, str | None) else "b" for name in names]
        found = model.generate(IDS[rows], attention_mask=MASK[rows], adapter_names=names, **GREEDY, **asked)
        return found.view(len(rows), -1, found.shape[1])

    together = run([0, 1, 2, 3, 4])
    for row in range(5):
        assert torch.equal(together[row : row + 1], run([row]))
    assert len({tuple(answer[0, 7:].tolist()) for answer in together}) > 2
    assert model.active_adapters == (active[:1] if prefix else active)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_as_many_names_as_prompts(count: int) -> None:
    """In `generate` and in `forward`, also where the number of rows is a multiple of that of names."""
    model, ids = mixed(), IDS[:4] if count != 4 else IDS
    names = (NAMES * 2)[:count]
    with pytest.raises(AdapterNameError, match=f"one entry for each of the {len(ids)} rows"):
        model.generate(ids, adapter_names=names, **GREEDY)
    with pytest.raises(AdapterNameError, match=f"one entry for each of the {len(ids)} rows"):
        model.generate(input_ids=ids, adapter_names=names, num_beams=2, num_return_sequences=2, **GREEDY)
    with pytest.raises(AdapterNameError, match=f"one entry for each of the {len(ids)} rows"):
        model(ids, adapter_names=names)


def test_a_pass_over_other_rows_names_its_own_adapters() -> None:
    """Within `generate` of mixed rows nobody can guess whose a lone row is; a call that says so is believed."""
    model = mixed()

    def other(**names: Any) -> LogitsProcessorList:
        return LogitsProcessorList([Again(lambda ids: model(ids[:1], **names))])

    model.generate(IDS, adapter_names=NAMES, logits_processor=other(adapter_names=["b"]), **GREEDY)
    with pytest.raises(AdapterNameError, match="one entry for each of the 1 rows"):
        model.generate(IDS, adapter_names=NAMES, logits_processor=other(), **GREEDY)
    assert model.active_adapters == ["a"]
