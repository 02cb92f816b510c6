"""What is kept of a prefix is used while base and networks compute what they computed, and there is an end to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_other_vocabulary import ids_of
from test_prefix_networks import reading_text
from test_prefix_reading import GREEDY, IDS, PREFIX, prefixed, tokens
from tiny import byte_tokenizer, tiny_model
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedModel

from valueadapter import ValueAdapter, ValueAdapterForCausalLM

Change = Callable[[Any], object]


def with_loras(model: PreTrainedModel) -> Any:
    """The model with two LoRAs that do much, the first active."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    tuned = get_peft_model(model, config, adapter_name="one")
    tuned.add_adapter("two", config)
    return tuned.requires_grad_(False).eval()


def lora_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "scaling") and hasattr(module, "lora_A")]


def steps(model: nn.Module, count: int = 1) -> None:
    """Gradient steps on the first LoRA, as a user's own loop takes them."""
    weights = [p for name, p in model.named_parameters() if ".one." in name]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()


def scale_up(model: nn.Module) -> None:
    for layer in lora_layers(model):
        layer.scaling["one"] *= 3


@torch.no_grad()
def load_others(model: nn.Module) -> None:
    state = {name: value + 0.3 for name, value in model.state_dict().items() if "lora_" in name}
    model.load_state_dict(state, strict=False)


def past_autograd(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.2)


def other_storage(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.2


def other_parameters(model: nn.Module) -> None:
    for layer in lora_layers(model):
        layer.base_layer.weight = nn.Parameter(layer.base_layer.weight * 1.2, requires_grad=False)


def one_element(model: nn.Module) -> None:
    lora_layers(model)[0].base_layer.weight.data[0, 0] += 20


@torch.inference_mode()
def in_inference_mode(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(1.2)


@torch.no_grad()
def buffers(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer.mul_(3)


def attribute(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1.0


def hook_of_a_layer(model: nn.Module) -> None:
    lora_layers(model)[0].register_forward_hook(lambda module, args, output: output + 1)


def forward_of_a_layer(model: nn.Module) -> None:
    layer = lora_layers(model)[0]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs) + 1


CHANGES: dict[str, Change] = {
    "another LoRA": lambda model: model.set_adapter("two"),
    "both LoRAs": lambda model: model.base_model.set_adapter(["one", "two"]),
    "LoRA off": lambda model: model.base_model.disable_adapter_layers(),
    "merged": lambda model: model.merge_adapter(["two"]),
    "scaling": scale_up,
    "optimizer": steps,
    "load_state_dict": load_others,
    "past autograd": past_autograd,
    "other storage": other_storage,
    "other parameters": other_parameters,
    "one element": one_element,
    "inference mode": in_inference_mode,
    "buffers": buffers,
    "attribute": attribute,
    "hook": hook_of_a_layer,
    "forward": forward_of_a_layer,
    "dtype": lambda model: model.to(torch.bfloat16).to(torch.float32),
}


def model_of(kind: str) -> tuple[ValueAdapterForCausalLM, torch.Tensor, Any]:
    """A prefixed base with an adapter, a prompt, and the one of its models that is to be changed: a LoRA on a Llama."""
    if kind == "base":
        tokenizer = byte_tokenizer()
        model = ValueAdapterForCausalLM(with_loras(tiny_model("llama", seed=1)), tokenizer=tokenizer)
        networks = [tiny_model("gpt2", seed=2), tiny_model("gpt2", seed=3)]
        how: Any = {"coefficients": [1.0, -0.5], "reads_prefix": [False, True]}
        adapter = ValueAdapter.from_networks(
            networks, tokenizer, base_model_name_or_path="alice/base", base_prefix=PREFIX, **how
        )
        model.add_adapter(adapter, "default")
        return model.eval(), IDS, model.base
    other = prefixed() if kind == "network" else reading_text("llama", ("coarse bytes", "bytes"))
    plain = other.adapters["default"]
    tuned = with_loras(tiny_model("llama", seed=5, width=plain.config.vocabulary.logits_width))
    model = ValueAdapterForCausalLM(other.base, tokenizer=other.base_tokenizer)
    model.add_adapter(
        plain.replaced(networks=[plain.networks[0], tuned])
        if hasattr(plain, "replaced")
        else ValueAdapter(plain.config, [plain.networks[0], tuned], plain.tokenizer),
        "default",
        scale=0.5,
    )
    return model.eval(), IDS if kind == "network" else ids_of(model, "The cat sat."), tuned


def as_fresh(model: ValueAdapterForCausalLM, ids: torch.Tensor, **how: Any) -> torch.Tensor:
    """What a new wrapper around the same models gives, which has kept nothing."""
    fresh = ValueAdapterForCausalLM(model.base, tokenizer=model.base_tokenizer)
    fresh.add_adapter(model.adapters["default"], "default", scale=model.scales["default"])
    found: torch.Tensor = fresh.eval()(ids, **how).logits
    return found


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["base", "network", "network of another vocabulary"])
@torch.no_grad()
def test_a_change_in_place_is_seen(kind: str, change: str) -> None:
    """After it the sum is that of base and networks as they are now, with a cache and without."""
    model, ids, changed = model_of(kind)
    before = model(ids).logits
    CHANGES[change](changed)
    found = [model(ids, use_cache=use_cache).logits for use_cache in (True, False)]
    expected = as_fresh(model, ids)
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-3)


@torch.no_grad()
def test_a_lora_that_is_off_for_a_block_is_off_for_the_prefix() -> None:
    """And on again behind it, also where the block was left by an error."""
    model, ids, base = model_of("base")
    on = model(ids).logits
    with pytest.raises(KeyError, match="boom"), base.disable_adapter():  # noqa: PT012
        torch.testing.assert_close(model(ids).logits, as_fresh(model, ids), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model(ids).logits, on, atol=1e-3)
        raise KeyError("boom")
    assert torch.equal(model(ids).logits, on)


@torch.no_grad()
def test_dropout_is_drawn_anew() -> None:
    """Of a base that someone has put into training mode nothing is kept, and of eval mode nothing of that."""
    model = prefixed("gpt2")
    seen, length = lengths_read(model), len(tokens(model, PREFIX))
    still = model(IDS).logits
    model.base.train()
    assert not torch.allclose(model(IDS).logits, model(IDS).logits, atol=1e-3)
    assert seen.count(length) == 3
    model.base.eval()
    torch.testing.assert_close(model(IDS).logits, still)


@torch.no_grad()
def test_another_attention_reads_the_prefix_again() -> None:
    """As a base that was loaded with it."""
    model = prefixed()
    seen = lengths_read(model)
    model(IDS)
    model.base.set_attn_implementation("eager")
    found = model(IDS, use_cache=False).logits
    assert seen == [len(tokens(model, PREFIX)), IDS.shape[1]] * 2
    torch.testing.assert_close(found, as_fresh(model, IDS), rtol=1e-5, atol=1e-5)


def lengths_read(model: ValueAdapterForCausalLM) -> list[int]:
    """A list that fills with the lengths of what the base reads."""
    seen: list[int] = []
    model.base.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("watched", ["hidden states", "generate", "gradients asked for", "moved and back"])
def test_what_changes_nothing_costs_no_second_reading(watched: str) -> None:
    """The prefix is read once for calls of every kind."""
    model = prefixed()
    seen = lengths_read(model)
    model(IDS)
    done: dict[str, Callable[[], object]] = {
        "hidden states": lambda: model(IDS, output_hidden_states=True),
        "generate": lambda: model.generate(IDS, **GREEDY),
        "gradients asked for": lambda: model.adapters["default"].networks[0].requires_grad_(True),
        "moved and back": lambda: model.to("cpu"),
    }
    done[watched]()
    model(IDS)
    assert seen.count(len(tokens(model, PREFIX))) == 1


# -- autocast --------------------------------------------------------------------------------------------------------
@contextmanager
def autocast(on: bool) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
        yield


@pytest.mark.parametrize("kind", ["prefixed base", "network", "network of another vocabulary"])
@pytest.mark.parametrize("first", [True, False], ids=["autocast first", "plain first"])
@torch.no_grad()
def test_calls_in_and_out_of_autocast_leave_each_other_alone(kind: str, first: bool) -> None:
    """Each gives what it gives alone, and its generation goes through."""
    if kind == "network of another vocabulary":
        model = reading_text("llama", ("coarse bytes", "bytes"))
        ids = ids_of(model, "The cat sat.")
    else:
        model, ids = prefixed(), IDS
    block = model.prefixed_base(PREFIX) if kind == "prefixed base" else autocast(False)
    with block:
        alone = {}
        for on in (True, False):
            fresh = ValueAdapterForCausalLM(model.base, tokenizer=model.base_tokenizer)
            fresh.add_adapter(model.adapters["default"], "default", scale=model.scales["default"])
            outer = fresh.prefixed_base(PREFIX) if kind == "prefixed base" else autocast(False)
            with outer, autocast(on):
                alone[on] = fresh.eval()(ids).logits, fresh.generate(ids, **GREEDY)
        for on in (first, not first, first):
            with autocast(on):
                logits, generated = model(ids).logits, model.generate(ids, **GREEDY)
            torch.testing.assert_close(logits, alone[on][0], rtol=0, atol=0)
            assert torch.equal(generated, alone[on][1])


@pytest.mark.parametrize("first", [True, False], ids=["autocast first", "plain first"])
@torch.no_grad()
def test_a_text_may_be_read_partly_in_autocast(first: bool) -> None:
    """A network of another vocabulary goes on in the wider dtype, as other caches do."""
    model = reading_text("llama", ("coarse bytes", "bytes"))
    ids = ids_of(model, "The cat sat.")
    with autocast(first):
        cache = model(ids[:, :5], use_cache=True).cache
    with autocast(not first):
        found = model(ids[:, 5:], cache=cache).logits
    torch.testing.assert_close(found.float(), model(ids).logits[:, 5:], rtol=0.1, atol=0.5)


# -- keys that depend on how long the text is ------------------------------------------------------------------------
def turning(rope: dict[str, Any]) -> PreTrainedModel:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 97}
    config = Phi3Config(
        **shape,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        original_max_position_embeddings=16,
        rope_parameters={"rope_theta": 1e4, "original_max_position_embeddings": 16, **rope},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Phi3ForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.35, generator=generator)
    return model.eval()


@pytest.mark.parametrize("length", [7, 30])
@pytest.mark.parametrize("padding", [0, 3])
@torch.no_grad()
def test_a_base_whose_positions_turn_with_the_length_reads_prefix_and_prompt(length: int, padding: int) -> None:
    """Phi-3's longrope: beyond the switch the keys of the prefix are others too."""
    base = turning({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 2.0]})
    model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer())
    ids = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, padding, dtype=torch.long), torch.ones_like(ids)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = base(torch.cat([tokens(model, PREFIX)[None], ids], dim=1)).logits[:, -length:]
    with model.prefixed_base(PREFIX):
        for use_cache in (True, False):
            given: Any = {"attention_mask": mask, "position_ids": positions, "use_cache": use_cache}
            found = model(padded, **given).logits[:, padding:]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_template_that_is_changed_renders_the_prefix_anew() -> None:
    """Tokens of a chat as prefix are those of the tokenizer as it is."""
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}]
    model = prefixed(prefix=turns)
    model(IDS)
    tokenizer: Any = model.base_tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("[{{", "<{{")
    torch.testing.assert_close(model(IDS).logits, as_fresh(model, IDS))
