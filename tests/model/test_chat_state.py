"""Chats that change between calls: what was read before never stands for what is asked now. Arguments of templates."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from test_other_vocabulary import GREEDY, wrapped
from tiny import tiny_model
from transformers import PreTrainedTokenizerFast
from vocabularies import tokenizer_of

from valueadapter import ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.model.chat import value_ids

CHAT = [{"role": "user", "content": "What is it?"}]
MORE = [{"role": "assistant", "content": "It is there."}, {"role": "user", "content": "And then, the dog?"}]
OTHER = (
    "{% for m in messages %}<|end|>{{ m['content'] }}!{{ m['role'] }}<|turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|end|>answer: {% endif %}"
)
WITH_TOOLS = (
    "{% for t in tools or [] %}[{{ t['function']['name'] }}]{% endfor %}"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n"
    "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}({{ c['function']['name'] }}){% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% if enable_thinking is false %}quick {% endif %}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "move", "parameters": {"type": "object", "properties": {}}}}


def with_template(kind: str, template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer_of(kind))
    tokenizer.chat_template = template
    return tokenizer


def chatting(base: str | None = None, network: str | None = None, *, seed: int = 2) -> ValueAdapterForCausalLM:
    """As `wrapped`, with tokenizers of its own, whose templates may be others."""
    plain = tokenizer_of("bytes").chat_template
    theirs, mine = with_template("coarse bytes", base or plain), with_template("bytes", network or plain)
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    networks = [tiny_model("llama", seed=seed, width=len(mine))]
    model.add_adapter(ValueAdapter.from_networks(networks, mine, base_model_name_or_path="a/b"), "default")
    return model.eval()


def says(model: ValueAdapterForCausalLM, messages: Any, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**model.chat_inputs(messages, **arguments)).logits[:, -1]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def edits(messages: list[dict[str, str]]) -> list[Any]:
    """Ways in which one list is another chat at the next call."""

    def append() -> None:
        messages.extend(copy.deepcopy(MORE))

    def edit() -> None:
        messages[0]["content"] = "Who is there?"

    def rename() -> None:
        messages[0]["role"] = "system"

    def replace() -> None:
        messages[:] = copy.deepcopy(MORE[1:])

    return [append, edit, rename, replace]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("nested", [False, True])
def test_a_list_that_changes_is_the_chat_that_it_is_now(number: int, nested: bool) -> None:
    """Appended to, edited or replaced in place: as a fresh copy, in a forward pass and in every step of `generate`."""
    model, chat = chatting(), copy.deepcopy(CHAT)
    given: Any = [chat, copy.deepcopy(CHAT)] if nested else chat
    before = says(model, given)
    edits(chat)[number]()
    fresh = chatting()
    after = says(model, given)
    close(after, says(fresh, copy.deepcopy(given)))
    assert not same(after, before)
    out = model.generate(**model.chat_inputs(given), **GREEDY)
    assert torch.equal(out, fresh.generate(**fresh.chat_inputs(copy.deepcopy(given)), **GREEDY))


def test_messages_given_by_hand_may_change_too() -> None:
    """`messages` without `chat_inputs`, with and without cache, for one row and for rows of several adapters."""
    for use_cache in (False, True):
        model, chat = chatting(), copy.deepcopy(CHAT)
        model.add_adapter(chatting(seed=3).adapters["default"], "other")
        for _ in range(2):
            ids, batch = model.chat_inputs(chat)["input_ids"], model.chat_inputs([chat, chat])["input_ids"]
            expected, mixed = says(chatting(), copy.deepcopy(chat)), [["default"], None]
            with torch.no_grad():
                close(model(ids, messages=chat, use_cache=use_cache).logits[:, -1], expected)
                rows = model(batch, messages=[chat, chat], adapter_names=mixed, use_cache=use_cache).logits
            close(rows[:1, -1], expected)
            chat += copy.deepcopy(MORE)


def test_rows_of_several_adapters_follow_a_list_that_grows() -> None:
    """The conversations of each group are those of now."""
    model, chat = chatting(), copy.deepcopy(CHAT)
    model.add_adapter(chatting(seed=3).adapters["default"], "other")
    names, given = ["default", "other", None], [chat, chat, chat]
    for _ in range(2):
        inputs = model.chat_inputs(given)
        out = model.generate(**{**inputs, "messages": given}, **GREEDY, adapter_names=names)
        for row, name in enumerate(names):
            alone = model.generate(**model.chat_inputs(copy.deepcopy(chat)), **GREEDY, adapter_names=[name])
            assert torch.equal(out[row, -10:], alone[0, -10:])
        chat += copy.deepcopy(MORE)


def test_what_chat_inputs_gave_stays_what_it_was() -> None:
    """A list that goes on before `generate` is called changes nothing of the inputs made of it."""
    model, chat = chatting(), copy.deepcopy(CHAT)
    inputs = model.chat_inputs(chat)
    chat += MORE
    chat[0]["content"] = "changed"
    expected = model.generate(**model.chat_inputs(copy.deepcopy(CHAT)), **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)


def test_one_list_for_two_models() -> None:
    """Each reads it by its own templates."""
    chat = copy.deepcopy(CHAT)
    models = [chatting(), chatting(network=OTHER), chatting(base=OTHER)]
    for model, own in zip(models, [(None, None), (None, OTHER), (OTHER, None)], strict=True):
        close(says(model, chat), says(chatting(*own), copy.deepcopy(chat)))


def test_another_template_is_read_at_once() -> None:
    """After a hot swap, and where the template of either side is set anew, on the very same list."""
    model, chat = chatting(), copy.deepcopy(CHAT)
    says(model, chat)
    swapped = chatting(network=OTHER, seed=3).adapters["default"]
    model.hotswap_adapter(swapped, "default")
    close(says(model, chat), says(chatting(network=OTHER, seed=3), chat))
    swapped.tokenizer.chat_template = WITH_TOOLS
    close(says(model, chat), says(chatting(network=WITH_TOOLS, seed=3), chat))
    model.base_tokenizer.chat_template = OTHER
    close(says(model, chat), says(chatting(OTHER, WITH_TOOLS, seed=3), chat))


def test_a_chat_that_changes_on_its_cache_is_read_anew_or_refused() -> None:
    """A longer one goes on; one that was edited does not begin as what the cache holds."""
    model, chat = chatting(), copy.deepcopy(CHAT)
    first = model.chat_inputs(chat)
    with torch.no_grad():
        cache = model(**first, use_cache=True).cache
        chat.extend(MORE)
        more = model.chat_inputs(chat)["input_ids"][:, first["input_ids"].shape[1] :]
        close(model(more, cache=cache, messages=chat).logits[:, -1], says(chatting(), chat))
        chat[0]["content"] = "Who is there?"
        with pytest.raises(UnsupportedModeError, match="chat_inputs"):
            model(more[:, :1], cache=cache, messages=chat)


def test_tokens_of_the_prompt_may_be_taken_back() -> None:
    """As assistants do: the prompt is read anew when its end comes again, or as text where no chat is given."""
    model, inputs = chatting(), chatting().chat_inputs(CHAT)
    ids, expected = inputs["input_ids"], says(model, CHAT)
    with torch.no_grad():
        for back in (1, 3, ids.shape[1] - 1, ids.shape[1]):
            for steps in (1, back):
                cache = model(**inputs, use_cache=True).cache
                cache.crop(-back)
                for begin in range(ids.shape[1] - back, ids.shape[1], steps):
                    chunk = ids[:, begin : begin + steps]
                    out = model(chunk, cache=cache, messages=CHAT, use_cache=True)
                close(out.logits[:, -1], expected)
                cache = out.cache
                cache.crop(-back)
                as_text = model(ids[:, -back:], cache=cache).logits[:, -1]
                close(as_text, model(ids).logits[:, -1])


def test_a_chat_is_rendered_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding goes on from what the cache has read."""
    model, count = chatting(), []
    inputs = model.chat_inputs([CHAT, CHAT + MORE])
    own = PreTrainedTokenizerFast.apply_chat_template
    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", lambda *a, **k: count.append(1) or own(*a, **k))
    model.generate(**inputs, **{**GREEDY, "max_new_tokens": 2}, num_beams=2)
    few = len(count)
    model.generate(**inputs, **{**GREEDY, "max_new_tokens": 12}, num_beams=2)
    assert len(count) == 2 * few > 0


class Message(dict[str, str]):
    """A message that can be watched."""


def test_chats_are_not_kept() -> None:
    """What was answered is forgotten with its inputs."""
    model, watched = chatting(), []
    for number in range(8):
        message = Message(role="user", content=f"What is {number}?")
        watched.append(weakref.ref(message))
        says(model, [message])
        with torch.no_grad():
            model(model.chat_inputs([message])["input_ids"], messages=[message])
        model.generate(**model.chat_inputs([message]), **GREEDY)
    del message
    gc.collect()
    assert not any(reference() is not None for reference in watched)


def test_threads_with_chats_of_their_own() -> None:
    """Many at once, each with a list that grows."""
    model, wrong = chatting(), []
    chats = [[{"role": "user", "content": f"What is {'the dog ' * number}{number}?"}] for number in range(4)]
    expected = [[says(chatting(), chat), says(chatting(), chat + MORE)] for chat in chats]

    def talk(number: int) -> None:
        for _ in range(4):
            chat = copy.deepcopy(chats[number])
            for turn in range(2):
                if not same(says(model, chat), expected[number][turn]):
                    wrong.append((number, turn))
                chat += copy.deepcopy(MORE)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_several_answers_and_beams_to_several_chats() -> None:
    """Each row of a prompt reads that prompt."""
    model = chatting()
    inputs = model.chat_inputs([CHAT, CHAT + MORE])
    out = model.generate(**inputs, **GREEDY, num_beams=2, num_return_sequences=2)
    for row, chat in enumerate([CHAT, CHAT + MORE]):
        alone = model.generate(**model.chat_inputs(chat), **GREEDY, num_beams=2, num_return_sequences=2)
        assert torch.equal(out[2 * row : 2 * row + 2, -10:], alone[:, -10:])


@pytest.mark.parametrize("arguments", [{"tools": [TOOL]}, {"enable_thinking": False}, {"continue_final_message": True}])
def test_arguments_reach_both_templates(arguments: dict[str, Any]) -> None:
    """Base and network read what a template of theirs makes of them, as written out by hand."""
    model = chatting(WITH_TOOLS, WITH_TOOLS)
    adapter, chat = model.adapters["default"], [*CHAT, MORE[0]] if "continue_final_message" in arguments else CHAT
    generation = "continue_final_message" not in arguments

    def own_ids(tokenizer: Any) -> torch.Tensor:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation, **arguments)
        return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])

    inputs = model.chat_inputs(chat, **arguments)
    assert torch.equal(inputs["input_ids"], own_ids(model.base_tokenizer))
    with torch.no_grad():
        value = adapter.networks[0](own_ids(adapter.tokenizer)).logits[:, -1]
        expected = model.base(inputs["input_ids"]).logits[:, -1] + model.attached.terms()[0].link.alignment.project(
            value
        )
        close(model(**inputs).logits[:, -1], expected)
    plain = model.chat_inputs(CHAT)
    assert not torch.equal(plain["input_ids"], inputs["input_ids"])
    batch = model.generate(**model.chat_inputs([chat, chat], **arguments), **GREEDY, adapter_names=["default", None])
    assert torch.equal(batch[:1], model.generate(**inputs, **GREEDY))


def move(distance: int) -> None:
    """Moves.

    Args:
        distance: how far
    """


def test_functions_are_tools() -> None:
    """As transformers takes them."""
    model = chatting(WITH_TOOLS, WITH_TOOLS)
    close(says(model, CHAT, tools=[move]), says(model, CHAT, tools=[TOOL]))


def test_arguments_that_no_template_takes_are_refused() -> None:
    """Misspelled ones, tools for templates without, what is for the tokenizer, and a template in place of both."""
    model = chatting()
    with pytest.raises(ConfigError, match="enable_thinkin"):
        model.chat_inputs(CHAT, enable_thinkin=False)
    with pytest.raises(ConfigError, match="tools"):
        model.chat_inputs(CHAT, tools=[TOOL])
    for name in ("tokenize", "return_tensors", "padding", "chat_template", "max_length"):
        with pytest.raises(ConfigError, match=name):
            model.chat_inputs(CHAT, **{name: "x"})
    with pytest.raises(ConfigError, match=r"adapter 'default' .* tools"):
        chatting(base=WITH_TOOLS).chat_inputs(CHAT, tools=[TOOL])
    with pytest.raises(ConfigError, match="no conversation"):
        model.chat_inputs([])


def test_calls_without_content_and_content_in_parts() -> None:
    """A tool call has no content; texts in parts are joined, and parts that are none refused."""
    model = chatting(WITH_TOOLS, WITH_TOOLS)
    calls = [{"function": {"name": "move", "arguments": {}}}]
    result = {"role": "tool", "content": "done"}
    spelled = says(model, [*CHAT, {"role": "assistant", "content": "", "tool_calls": calls}, result])
    close(says(model, [*CHAT, {"role": "assistant", "content": None, "tool_calls": calls}, result]), spelled)
    close(says(model, [*CHAT, {"role": "assistant", "tool_calls": calls}, result]), spelled)
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    close(says(model, [{"role": "user", "content": parts}]), says(model, CHAT))
    with pytest.raises(ConfigError, match="type text"):
        model.chat_inputs([{"role": "user", "content": [{"type": "image", "url": "x"}]}])


def test_private_use_text_reaches_both() -> None:
    """What looks like a mark of ours is text."""
    model = wrapped()
    for text in ("\ue0000\ue001", "\ue0001\ue001 </s>", "\ufdd0", "\ufdd02; <|end|>"):
        chat = [{"role": "user", "content": text}]
        inputs, adapter = model.chat_inputs(chat), model.adapters["default"]
        ids = torch.tensor([value_ids(adapter.tokenizer, chat, model.attached.terms()[0].link.reading.encoder)])
        with torch.no_grad():
            value = model.attached.terms()[0].link.alignment.project(adapter.networks[0](ids).logits[:, -1])
            close(model(**inputs).logits[:, -1], model.base(inputs["input_ids"]).logits[:, -1] + value)
        assert text in adapter.tokenizer.decode(ids[0])


ASSISTANTS = {
    "the base": lambda model: model.base,
    "another plain model": lambda model: tiny_model("gpt2", seed=7, width=len(model.base_tokenizer)),
    "a wrapper": lambda model: chatting(seed=5),
    "a wrapper with another template": lambda model: chatting(base=OTHER, seed=5),
    "a wrapper without adapters": lambda model: ValueAdapterForCausalLM(chatting().base),
}


@pytest.mark.parametrize("assistant", ASSISTANTS)
@pytest.mark.parametrize("arguments", [{}, {"adapter_names": ["default"]}, {"adapter_names": [None]}])
def test_chats_with_assistants_of_any_kind(assistant: str, arguments: dict[str, Any]) -> None:
    """Tokens are those of plain decoding, and an assistant that knows no chats is given none."""
    model = chatting()
    inputs = model.chat_inputs(CHAT + MORE)
    plain = model.generate(**inputs, **GREEDY, **arguments)
    helped = model.generate(**inputs, **GREEDY, **arguments, assistant_model=ASSISTANTS[assistant](model))
    assert torch.equal(helped, plain)
    assert torch.equal(model.generate(**inputs, **GREEDY, **arguments, prompt_lookup_num_tokens=3), plain)


def test_a_wrapper_helps_a_plain_model() -> None:
    """The other way round there is no chat to hand on."""
    model = chatting()
    ids = model.chat_inputs(CHAT)["input_ids"]
    other = tiny_model("llama", seed=9, width=len(model.base_tokenizer))
    plain = other.generate(ids, **GREEDY)
    assert torch.equal(other.generate(ids, **GREEDY, assistant_model=model), plain)
