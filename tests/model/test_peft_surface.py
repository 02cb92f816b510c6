"""What PEFT's users type on a `PeftModel`: the same answer, or the right call in the error."""

from __future__ import annotations

import copy
import pydoc
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from valueadapter import (
    AdapterNameError,
    ConfigError,
    UnsupportedModeError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    build_lora_network,
)
from valueadapter.model.adapter_names import INSTEAD

PREFIX = "Q: A\n\n" * 8


def pair(*networks: Any) -> ValueAdapter:
    settings: dict[str, Any] = {"coefficients": [1, -1], "base_prefix": PREFIX, "reads_prefix": [True, True]}
    return ValueAdapter.from_networks(networks, byte_tokenizer(), base_model_name_or_path="alice/base", **settings)


@pytest.fixture
def model() -> ValueAdapterForCausalLM:
    """A network less the base, both behind the prefix; and one more."""
    base = tiny_model("llama", seed=1)
    model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer()).eval()
    model.add_adapter(pair(tiny_model("llama", seed=4), base))
    other = ValueAdapter.from_networks([tiny_model("gpt2", seed=2)], byte_tokenizer(), base_model_name_or_path="a/b")
    model.add_adapter(other, "style", scale=0.5)
    return model


# -- what is the same --------------------------------------------------------------------------------------------------
def test_the_base_is_had_as_from_peft(model: ValueAdapterForCausalLM) -> None:
    """The object itself, with no adapter taken off."""
    assert model.get_base_model() is model.base
    assert list(model.adapters) == ["default", "style"]


def test_the_active_adapter_is_a_name(model: ValueAdapterForCausalLM) -> None:
    """One name; where that would leave something out, an error says where all are."""
    assert model.active_adapter == "default"
    model.set_adapter("style")
    assert model.active_adapter == "style"
    model.set_adapter(["default", "style"])
    with pytest.raises(AdapterNameError, match=r"active are \['default', 'style'\]. active_adapters lists them"):
        _ = model.active_adapter
    with model.disable_adapter(), pytest.raises(AdapterNameError, match="active are none"):
        _ = model.active_adapter


def test_configurations_are_had_by_name_and_to_read(model: ValueAdapterForCausalLM) -> None:
    """Those of the adapters as they stand; nobody can put one in."""
    assert {name: one is model.adapters[name].config for name, one in model.adapter_configs.items()} == {
        "default": True,
        "style": True,
    }
    with pytest.raises(TypeError, match="does not support item assignment"):
        model.adapter_configs["new"] = model.adapter_configs["style"]  # type: ignore[index]
    model.delete_adapter("style")
    assert list(model.adapter_configs) == ["default"]


def test_a_wrapper_is_no_peft_model(model: ValueAdapterForCausalLM) -> None:
    """By what transformers, TRL and PEFT look for; so `get_peft_model` takes it, and puts its own configurations in."""
    assert not hasattr(model, "peft_config")
    assert not model._hf_peft_config_loaded
    target = r"value_networks\.style\.0\..*c_attn"
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target, fan_in_fan_out=True))
    assert list(model.peft_config) == ["default"]
    assert tuned.get_base_model() is model


# -- what cannot be ----------------------------------------------------------------------------------------------------
def test_names_of_pefts_say_what_to_call(model: ValueAdapterForCausalLM) -> None:
    """With the text of every other missing attribute before it, so that `hasattr` and `getattr` go on as ever."""
    for name, call in INSTEAD.items():
        with pytest.raises(AttributeError, match=f"no attribute '{name}': ") as found:
            getattr(model, name)
        assert call in str(found.value)
        assert getattr(model, name, None) is None
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        _ = model.nonsense


LORA = peft.LoraConfig()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (LORA,),
            r"got a LoraConfig .*build_lora_network\(.*from_networks\(.*add_adapter\(adapter, \"default\", is_tr",
        ),
        (("new", LORA), r"add_adapter\(adapter, \"new\", is_trainable=True\).*get_peft_model\(.*networks\\\.new\\\.0"),
        ((LORA, "new"), r"add_adapter\(adapter, \"new\", is_trainable=True\)"),
        (("alice/adapter", "new"), r"load_adapter\('alice/adapter', 'new'\)"),
        ((tiny_model("llama", seed=3), "new"), r"got a model alone \(a LlamaForCausalLM\).*from_networks\(\[model\]"),
        ((None, "new"), r"got NoneType. ValueAdapter.from_pretrained"),
    ],
    ids=["config", "name, config", "config, name", "Hub ID", "network", "none"],
)
def test_what_is_no_adapter_is_answered_with_the_call(
    model: ValueAdapterForCausalLM, given: tuple[Any, ...], message: str
) -> None:
    """As PEFT and transformers have the order of arguments, too; nothing is attached."""
    with pytest.raises(ConfigError, match=message):
        model.add_adapter(*given)
    assert list(model.adapters) == ["default", "style"]


def test_arguments_in_pefts_order(model: ValueAdapterForCausalLM) -> None:
    """The name first; and a name where an adapter goes."""
    with pytest.raises(ConfigError, match=r"the adapter comes first: add_adapter\(adapter, 'new'\)"):
        model.add_adapter("new", model.adapters["style"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"hotswap_adapter takes .* load_adapter\('a/b', 'style', hotswap=True\)"):
        model.hotswap_adapter("a/b", "style")  # type: ignore[arg-type]
    with pytest.raises(AdapterNameError, match="expected the name of an adapter, or a list of names; got None"):
        model.set_adapter(None)  # type: ignore[arg-type]


def test_scales_are_numbers(model: ValueAdapterForCausalLM) -> None:
    """Wherever one is given, before anything is loaded; a bool would act at 1."""
    again, load = model.adapters["style"].copy(), ValueAdapterForCausalLM.from_pretrained
    calls: list[Callable[[Any], Any]] = [
        lambda bad: model.set_scale("style", bad),
        lambda bad: model.only("style", scale=bad),
        lambda bad: model.add_weighted_adapter(["style"], [bad], "mix"),
        lambda bad: model.add_adapter(again, "again", scale=bad),
        lambda bad: model.load_adapter("no/where", "again", scale=bad),
        lambda bad: load("no/where", "no/adapter", scale=bad),
    ]
    for call in calls:
        for bad in (True, "0.5", float("inf")):
            with pytest.raises(ConfigError, match="must be a finite number; got"):
                call(bad)
    assert model.scales == {"default": 1.0, "style": 0.5}
    model.set_scale("style", torch.tensor(0.25))  # type: ignore[arg-type]
    assert model.scales["style"] == 0.25


def test_a_chat_or_text_is_no_ids(model: ValueAdapterForCausalLM) -> None:
    """Both are answered with what makes ids of them."""
    for prompt in ("Q", [{"role": "user", "content": "Q"}]):
        with pytest.raises(ConfigError, match=r"For a chat: generate\(\*\*model.chat_inputs\(messages\)\)"):
            model.generate(prompt)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"chat_inputs takes a chat.*got str. For a prompt as text"):
        model.chat_inputs("Q")  # type: ignore[arg-type]


# -- what a person reads -----------------------------------------------------------------------------------------------
def test_a_model_is_shown_in_a_few_lines() -> None:
    """Base, adapters, scales, weights, bodies and prefix."""
    base = tiny_model("llama", seed=1)
    model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer()).eval()
    model.add_adapter(pair(build_lora_network(base, rank=2, name="alice/base"), copy.deepcopy(base)))
    other = ValueAdapter.from_networks([tiny_model("gpt2", seed=2)], byte_tokenizer(), base_model_name_or_path="a/b")
    model.add_adapter(other, "style", scale=0.5)
    assert repr(model).splitlines() == [
        "ValueAdapterForCausalLM(",
        "  base: LlamaForCausalLM, float32, cpu",
        "  adapter 'default': active, scale 1: base 1, networks +1 -1",
        "    2 networks of 1 body (the base's); a prefix of 24 tokens for the base and 2 networks",
        "  adapter 'style': not active, scale 0.5: base 1, networks +1",
        "    1 network",
        ")",
    ]
    model.set_base_prefix("Q")
    with model.only("style", scale=2.0):
        shown = str(model)
    assert "prefix, for all adapters: 1 tokens" in shown
    assert "'default': not active" in shown
    assert "'style': active, scale 2" in shown


def test_showing_runs_and_loads_nothing(model: ValueAdapterForCausalLM) -> None:
    """No model runs, no tokenizer is asked for; and it goes in every state, a half-made one too."""
    for module in (model.base, *model.attached.networks()):
        module.register_forward_pre_hook(lambda *args: pytest.fail("a model ran"))
    model.base_tokenizer = None
    model.attached.prefixes.known.clear()
    assert "a prefix of 48 characters for the base and 2 networks" in repr(model)
    assert model.base_tokenizer is None
    assert repr(ValueAdapterForCausalLM.__new__(ValueAdapterForCausalLM)) == "ValueAdapterForCausalLM()"
    assert "no adapter" in repr(ValueAdapterForCausalLM(tiny_model("llama", seed=1)))
    assert repr(copy.copy(model)) == repr(model)
    model.to("meta")
    assert "meta" in repr(model)


def test_an_adapter_and_its_configuration_are_shown_in_a_few_lines() -> None:
    """What it is made of; digests and records are for `repr` of the configuration."""
    base = tiny_model("llama", seed=1)
    adapter = pair(build_lora_network(base, rank=2, name="alice/base"), base)
    lines = repr(adapter).splitlines()
    assert lines[1:4] == [
        "  trained on: alice/base",
        "  scale 1: base 1, networks +1 -1",
        "  network 0: LlamaForCausalLM with a LoRA of rank 2, value_network, reads the prefix",
    ]
    assert lines[5] == "  prefix: 48 characters, 'Q: A\\n\\nQ: A\\n\\nQ: A\\n\\nQ: A\\n\\nQ: A\\n\\nQ: A\\n\\nQ: A'…"
    assert len(str(adapter.config).splitlines()) == 7


@pytest.mark.parametrize("known", [ValueAdapterForCausalLM, ValueAdapter])
def test_help_begins_with_what_there_is(known: type) -> None:
    """The first screen names the methods; every one of them is there, and says in a line what it does."""
    text = pydoc.plain(pydoc.render_doc(known))
    first = "\n".join(text.splitlines()[:24])
    assert "`from_pretrained" in first
    assert "save_pretrained" in first
    for name in vars(known):
        if not name.startswith("_") and callable(getattr(known, name)):
            assert (getattr(known, name).__doc__ or "").strip(), name
    assert "Initializing with a config file" not in pydoc.plain(pydoc.render_doc(known.__init__))  # transformers' own


def test_merging_is_answered(model: ValueAdapterForCausalLM) -> None:
    """Every way of PEFT's to merge."""
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UnsupportedModeError, match="cannot be merged"):
            merge()
