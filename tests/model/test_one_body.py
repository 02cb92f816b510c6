"""Networks of one body hold its weights once and speak in one pass, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from bodies import lora_on, pair_of
from kinds import model_of
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import OPTConfig, OPTForCausalLM
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.shared_body import SharedBody
from valueadapter.artifact.config.prefix import as_prefix
from valueadapter.compat import cache_in
from valueadapter.model import mixed_rows
from valueadapter.model.bodies import Bodies

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "chunks": {"prefill_chunk_size": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
}


Make = Callable[..., ValueAdapterForCausalLM]


@pytest.fixture
def make(tokenizer: Any) -> Make:
    """As `pair_of`, of tiny models."""

    def made(base: str = "llama", body: str = "qwen3", *, other: bool = False, prefix: str | None = None) -> Any:
        theirs = tokenizer_of("sentencepiece") if other else tokenizer
        return pair_of(tiny_model(base, seed=1), tokenizer, theirs, tiny_model(body, seed=9, width=len(theirs)), prefix)

    return made


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on each network speaks in a pass of its own."""
    monkeypatch.setattr(Bodies, "of", lambda self, networks: ())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", ["qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"other": True}, {"prefix": "Q:A "}, {"prefix": "Q:A ", "other": True}])
def test_one_pass_changes_no_token(
    make: Make, body: str, mode: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every mode, vocabulary and architecture, rows of several lengths, behind a prefix or not."""
    rows = (IDS[:1], None) if mode == "lookup" else (IDS, PADDED)
    model = make(body=body, **changes)

    def said() -> Any:
        torch.manual_seed(3)
        return model.generate(
            rows[0], attention_mask=rows[1], **GREEDY | MODES[mode], output_logits=True, return_dict_in_generate=True
        )

    together = said()
    assert cache_in(together).bodies
    apart(monkeypatch)
    each = said()
    assert not cache_in(each).bodies
    assert torch.equal(together.sequences, each.sequences)
    for mine, theirs in zip(together.logits, each.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def counted(model: ValueAdapterForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the number of networks of each pass that several have in common, while the test runs."""
    numbers: list[int] = []
    speaking = SharedBody.speaking

    def noted(self: SharedBody, networks: Any, rows: Any) -> Any:
        numbers.append(len(networks))
        return speaking(self, networks, rows)

    model.generate(IDS, **GREEDY)  # so that the bodies are known
    monkeypatch.setattr(SharedBody, "speaking", noted)
    return numbers


def test_a_body_runs_once_for_each_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many adapters are of it; and a network that two of them have is one of its voices."""
    model = make()
    numbers = counted(model, monkeypatch)
    model.generate(IDS, **GREEDY)
    assert numbers == [3] * 6  # two LoRAs, and the body that both are less
    numbers.clear()
    with model.only("b", scale=1.0):
        model.generate(IDS, **GREEDY)
    assert numbers[-6:] == [2] * 6
    numbers.clear()
    model.set_adapter([])
    model.generate(IDS, **GREEDY)
    assert numbers == []


def test_one_network_read_in_two_ways_is_two_voices(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the prefix in one adapter and without it in the other."""
    model = make(prefix="Q:A ")
    own = model.adapters["a"]
    twice = ValueAdapter.from_networks(
        own.networks, own.tokenizer, base_model_name_or_path="x/y", base_prefix="Q:A ", reads_prefix=[True, False]
    )
    model.add_adapter(twice, "c", scale=0.4)
    model.set_adapter(["a", "c"])
    numbers = counted(model, monkeypatch)
    together = model.generate(IDS, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert set(numbers) == {4}
    apart(monkeypatch)
    each = model.generate(IDS, **GREEDY, output_logits=True, return_dict_in_generate=True)
    for mine, theirs in zip(together.logits, each.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_threads_have_voices_of_their_own(make: Make) -> None:
    """Two threads that run other adapters of one body at a time get what each gets alone."""
    model = make()

    def said(name: str) -> torch.Tensor:
        with model.only(name, scale=1.0):
            return cast(torch.Tensor, model.generate(IDS, **GREEDY | {"max_new_tokens": 24}))

    alone = {name: said(name) for name in ("a", "b")}
    with ThreadPoolExecutor(4) as pool:
        together = [(name, pool.submit(said, name)) for name in ("a", "b") * 8]
    assert all(torch.equal(answer.result(), alone[name]) for name, answer in together)
    assert not torch.equal(alone["a"], alone["b"])


def hooked(network: Any) -> None:
    """Somebody's own function after a layer."""
    network.get_base_model().model.layers[0].register_forward_hook(lambda module, inputs, output: output * 1.01)


def switched_off(network: Any) -> None:
    """The LoRA does not act."""
    network.base_model.disable_adapter_layers()


def second_lora(network: Any) -> None:
    """Two LoRAs act at once."""
    network.add_adapter("more", network.peft_config["default"])
    network.base_model.set_adapter(["default", "more"])


def in_training(network: Any) -> None:
    """Dropout may act."""
    network.train()


@pytest.mark.parametrize("change", [hooked, switched_off, second_lora, in_training])
def test_what_cannot_speak_with_others_speaks_alone(
    make: Make, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a network between two texts is seen, and the sum is that of the changed network."""
    model = make()
    numbers = counted(model, monkeypatch)
    change(model.adapters["a"].networks[0])
    together = model.generate(IDS, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert set(numbers) == {2}
    apart(monkeypatch)
    each = model.generate(IDS, **GREEDY, output_logits=True, return_dict_in_generate=True)
    for mine, theirs in zip(together.logits, each.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [hooked, switched_off, in_training])
def test_a_change_within_a_text_is_seen(make: Make, change: Callable[[Any], None]) -> None:
    """The next token is that of the changed network, as it is when each speaks alone."""
    logits = []
    for together in (True, False):
        model = make()
        with torch.no_grad():
            cache = model(IDS, use_cache=True).cache
            change(model.adapters["a"].networks[0])
            cache.bodies = cache.bodies if together else ()
            logits.append(model(IDS[:, :1], cache=cache).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["phi3", "opt"])
def test_models_that_count_for_themselves(tokenizer: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose rotary embeddings turn by the longest row, and one whose positions come from the mask: in `generate`,
    in rows with choices of their own, and in a loop that says no positions."""
    shape = {"vocab_size": 97, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    opt = OPTConfig(**shape, max_position_embeddings=256, word_embed_proj_dim=16, init_std=0.3)
    torch.manual_seed(4)
    body = model_of("phi3", seed=9) if kind == "phi3" else OPTForCausalLM(opt).eval()
    model = pair_of(copy.deepcopy(body), tokenizer, tokenizer, body, "Question: A ")

    def said() -> list[torch.Tensor]:
        how = GREEDY | {"max_new_tokens": 20, "output_logits": True, "return_dict_in_generate": True}
        found = []
        for names in (None, ["a", ["a", "b"]]):
            found += model.generate(IDS, attention_mask=PADDED, **how, adapter_names=names).logits
            with torch.no_grad():
                out, mask = model(IDS, attention_mask=PADDED, use_cache=True, adapter_names=names), PADDED
                for _ in range(3):
                    mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
                    out = model(IDS[:, :1], attention_mask=mask, cache=out.cache, adapter_names=names)
                    found.append(out.logits[:, -1])
        return found

    together = said()
    apart(monkeypatch)
    monkeypatch.setattr(mixed_rows, "run_together", lambda passes, bodies: {})
    for mine, theirs in zip(together, said(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_rows_get_the_hidden_states_that_the_configuration_asks_for(make: Make) -> None:
    """Those of every row; a base that gives more than logits is run group by group."""
    model = make()
    model.base.config.output_hidden_states = True
    with torch.no_grad():
        out = model(IDS, adapter_names=["a", "b"], use_cache=True)
        alone = model.base(IDS)
    for mine, theirs in zip(out.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_weights_of_another_kind_speak_alone(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DoRA, and layers that are not given a batch row by row."""
    body = tiny_model("qwen3", seed=9)
    dora = get_peft_model(copy.deepcopy(body), LoraConfig(r=2, target_modules="all-linear", use_dora=True)).eval()
    flat = copy.deepcopy(body)
    flat.model.layers[0].mlp.__class__ = type("Flat", (type(flat.model.layers[0].mlp),), {"forward": by_tokens})
    for networks in ([dora, body], [lora_on(flat, 5), copy.deepcopy(flat)]):
        model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
        model.add_adapter(ValueAdapter.from_networks(networks, tokenizer, base_model_name_or_path="x/y"), "a")
        with monkeypatch.context() as patch:
            numbers = counted(model, patch)
            assert model.generate(IDS, **GREEDY).shape == (2, 13)
            assert numbers == []


def by_tokens(self: Any, states: torch.Tensor) -> torch.Tensor:
    """A layer that reads the tokens of all rows one after another, as a mixture of experts does."""
    flat = states.flatten(0, 1)
    return cast(torch.Tensor, self.down_proj(self.act_fn(self.gate_proj(flat)) * self.up_proj(flat)).view_as(states))


@pytest.mark.parametrize("mode", ["greedy", "beams", "static cache", "sampled"])
@pytest.mark.parametrize("changes", [{}, {"other": True}, {"prefix": "Q:A "}, {"prefix": "Q:A ", "other": True}])
def test_rows_with_choices_of_their_own_run_base_and_body_once(
    make: Make, mode: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever adapters and prefixes they have, and each row gets what it gets alone."""
    model = make(**changes)
    if "prefix" in changes:
        own = model.adapters["b"].with_config(base_prefix=as_prefix("Another: one "))
        model.delete_adapter("b")
        model.add_adapter(own, "b", scale=0.7)
    choices: list[Any] = ["a", None, "b", ["a", "b"]][: 3 if "prefix" in changes else 4]
    ids = torch.cat([IDS, IDS.flip(1)])[: len(choices)]
    mask = torch.cat([PADDED, PADDED.flip(0)])[: len(choices)]
    how = GREEDY | MODES[mode] | {"output_logits": True, "return_dict_in_generate": True}
    model.generate(ids, attention_mask=mask, adapter_names=choices, **how)  # the bodies and prefixes are known then
    ran: list[int] = []
    handle = model.base.register_forward_pre_hook(
        lambda module, args, given: ran.append(len(given["input_ids"])), with_kwargs=True
    )
    torch.manual_seed(3)
    together = model.generate(ids, attention_mask=mask, adapter_names=choices, **how)
    handle.remove()
    rows = [count for count in ran if count > 1]  # a base with a hook reads the prefix again, one row
    assert len(ran) - len(rows) == (2 if "prefix" in changes else 0)
    assert set(rows) == {len(together.sequences) * MODES[mode].get("num_beams", 1)}
    assert len(rows) == len(together.logits)
    monkeypatch.setattr(mixed_rows, "run_together", lambda passes, bodies: {})
    torch.manual_seed(3)
    each = model.generate(ids, attention_mask=mask, adapter_names=choices, **how)
    assert torch.equal(together.sequences, each.sequences)
    for mine, theirs in zip(together.logits, each.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
