"""Versions beneath the library: what is refused, and that nothing hangs on a name that one of them has."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import GenerationMixin, LlamaForCausalLM

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, compat
from valueadapter.compat import cache_in, carried

IDS = torch.randint(3, 97, (2, 6), generator=torch.Generator().manual_seed(0))
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.parametrize(
    ("package", "old"), [("transformers", "5.15.3"), ("transformers", "5"), ("huggingface-hub", "0.36.0")]
)
def test_an_older_version_is_refused_at_import(package: str, old: str) -> None:
    """In a sentence, before a model passes a cache unused and says something wrong."""
    code = f"""
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: {old!r} if name == {package!r} else version(name)
import valueadapter
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    needed = ".".join(map(str, compat.OLDEST[package]))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: valueadapter needs {package} {needed} or newer, and {old} is installed")
    assert f"pip install --upgrade '{package}>={needed}'" in last


def test_the_name_that_generate_carries_is_the_installed_one() -> None:
    """By transformers' own signature, not by its version; and the wrapper's signatures say the same."""
    for function in (
        GenerationMixin.prepare_inputs_for_generation,
        ValueAdapterForCausalLM.prepare_inputs_for_generation,
        ValueAdapterForCausalLM.forward,
    ):
        assert [name for name in inspect.signature(function).parameters if name in compat.CACHE_NAMES] == [carried()]


def renamed(name: str) -> type[LlamaForCausalLM]:
    """A Llama whose `forward` and own preparation take a cache as `name`."""
    code = f"""
def forward(self, input_ids=None, attention_mask=None, position_ids=None, {name}=None, use_cache=None,
            logits_to_keep=0, **kwargs):
    kwargs = {{key: value for key, value in kwargs.items() if key not in NAMES}}  # swallowed, as such models do
    arguments = {{CARRIED: {name}, "use_cache": use_cache, "logits_to_keep": logits_to_keep, **kwargs}}
    return LlamaForCausalLM.forward(self, input_ids, attention_mask, position_ids, **arguments)

def prepare_inputs_for_generation(self, input_ids, {name}=None, **kwargs):
    made = LlamaForCausalLM.prepare_inputs_for_generation(self, input_ids, **{{CARRIED: {name}, **kwargs}})
    return {{{name!r} if key == CARRIED else key: value for key, value in made.items()}}
"""
    space: dict[str, Any] = {"LlamaForCausalLM": LlamaForCausalLM, "CARRIED": carried(), "NAMES": compat.CACHE_NAMES}
    exec(code, space)  # a parameter's name cannot be put in otherwise
    own = {key: space[key] for key in ("forward", "prepare_inputs_for_generation")}
    return type("Renamed", (LlamaForCausalLM,), own)


class Hidden(LlamaForCausalLM):
    """As one that changes something on the way: its signatures name nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> Any:
        return super().prepare_inputs_for_generation(input_ids, **kwargs)


@pytest.mark.parametrize("name", [*compat.CACHE_NAMES, None])
@pytest.mark.parametrize("prefix", [None, "Q:A "])
def test_a_model_is_given_its_cache_by_its_own_name(name: str | None, prefix: str | None) -> None:
    """As base and as network, in a call and in `generate`; by a wrong one it would read each token alone."""
    tokenizer = byte_tokenizer()

    def wrapped(other: bool) -> ValueAdapterForCausalLM:
        base, network = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
        for model in (base, network) if other else ():
            model.__class__ = renamed(name) if name else Hidden
        model = ValueAdapterForCausalLM(base, tokenizer=tokenizer).eval()
        adapter = ValueAdapter.from_networks(
            [network], tokenizer, base_model_name_or_path="a/b", base_prefix=prefix, reads_prefix=[prefix is not None]
        )
        model.add_adapter(adapter, "a")
        return model

    usual, other = wrapped(False), wrapped(True)
    told = usual.generate(IDS, **GREEDY)
    assert torch.equal(other.generate(IDS, **GREEDY), told)
    assert torch.equal(usual.generate(IDS, **GREEDY, use_cache=False), told)
    torch.testing.assert_close(other(IDS).logits, usual(IDS).logits, rtol=1e-5, atol=1e-5)
    if name is None:  # nobody can tell that it keeps a cache, so it reads the whole text
        return
    begun = other(IDS[:, :3], use_cache=True)
    rest = other(IDS[:, 3:], cache=cache_in(begun)).logits
    torch.testing.assert_close(rest, usual(IDS).logits[:, 3:], rtol=1e-5, atol=1e-5)
