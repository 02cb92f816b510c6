"""Chats as records give them, on templates as strict as published ones: what is trained on, scored and asked."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from vocabularies import tokenizer_of

from valueadapter import ConfigError
from valueadapter.artifact.config.prefix import as_prefix
from valueadapter.demonstrations.messages import render
from valueadapter.demonstrations.responses import (
    question,
    response_bytes,
    response_texts,
    responses,
    same_demonstration,
)
from valueadapter.demonstrations.tokenized import IGNORED, as_context, encode
from valueadapter.evaluation.metrics import _with_response
from valueadapter.forward.prefix_tokens import prefix_ids

SYSTEM = {"role": "system", "content": "It is brief."}
ASKED = {"role": "user", "content": "What is it?"}
AGAIN = {"role": "user", "content": "What is it again?"}
SAID = {"role": "assistant", "content": "the dog"}
SAID_AGAIN = {"role": "assistant", "content": "the fox"}
TURNS = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
OPENS = "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
STRICT = (  # as Qwen3.5
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}{% endfor %}"
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ raise_exception('no user turn') }}{% endif %}" + TURNS + OPENS
)
ALTERNATES = (  # as Gemma
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + TURNS + OPENS
)
TAKES_PARTS = (  # as models that see pictures
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}|{% endfor %}{% endif %}<|end|>\n{% endfor %}" + OPENS
)
WRITES_JSON = TURNS.replace("m.content", "m.content | tojson if m.content is not string else m.content") + OPENS
ONLY_TEXT = TURNS.replace("{{ m.content }}", "{% if m.content is string %}{{ m.content }}{% endif %}") + OPENS
WITH_TOOLS = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% for d in documents or [] %}[{{ d.text }}]{% endfor %}{% if brief %}[brief]{% endif %}"
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content + '' }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<|end|>\n{% endfor %}" + OPENS
)
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "move", "arguments": {"x": 0, "y": 1}}}],
}
TOOL = {"type": "function", "function": {"name": "move", "parameters": {"type": "object", "properties": {}}}}
RESULT = {"role": "tool", "content": "done"}


def speaking(template: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with this chat template."""
    tokenizer = copy.deepcopy(tokenizer_of("bytes"))
    tokenizer.chat_template = template
    return tokenizer


def learned(row: dict[str, list[int]], tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != IGNORED]))


def whole(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, **more: Any) -> list[int]:
    """What transformers makes of a chat."""
    return list(tokenizer.apply_chat_template(messages, **more)["input_ids"])


@pytest.mark.parametrize("template", [STRICT, TURNS + OPENS])
@pytest.mark.parametrize("before", [[], [SYSTEM], [SAID], [SYSTEM, SAID]])
def test_answers_of_any_conversation_that_the_template_renders_are_learned(
    template: str, before: list[dict[str, str]]
) -> None:
    """Ids as transformers gives them, labels on every answer and its end; no beginning is rendered that is refused."""
    tokenizer = speaking(template)
    messages = [*before, ASKED, SAID, AGAIN, SAID_AGAIN]
    row = encode({"messages": messages}, tokenizer)
    greeting = "the dog<|end|>" * (SAID in before)
    assert row["input_ids"] == whole(messages, tokenizer)
    assert learned(row, tokenizer) == f"{greeting}the dog<|end|>\nthe fox<|end|>\n"
    asked = question({"messages": messages}, tokenizer)
    assert asked == whole(messages[:-1], tokenizer, add_generation_prompt=True) == row["input_ids"][: len(asked)]
    assert question({"messages": [*before, SAID]}, speaking(TURNS + OPENS)) is None


def test_what_a_template_refuses_is_said() -> None:
    """The roles of the chat and the template's own reason, as an error of this library."""
    for messages, template in (([SAID, ASKED, SAID], ALTERNATES), ([ASKED, SYSTEM, SAID], STRICT), ([SAID], STRICT)):
        reason = ".*assistant.*(roles must alternate|system must come first|no user turn)"
        with pytest.raises(ConfigError, match=f"chat template refuses a chat of {reason}"):
            encode({"messages": messages}, speaking(template))
    with pytest.raises(ConfigError, match="a chat needs a chat template, and the tokenizer has none"):
        encode({"messages": [ASKED, SAID]}, speaking(None))


@pytest.mark.parametrize("systems", [(SYSTEM, SYSTEM), (SYSTEM, {**SYSTEM, "content": "the"}), (None, SYSTEM)])
def test_examples_before_a_prompt_have_their_system_message_first_or_not_at_all(systems: Any) -> None:
    """One that all share stands first, once; strict templates render the rest."""
    chats = [[*([system] if system else []), ASKED, SAID] for system in systems]
    found = as_context([{"messages": chat} for chat in chats])
    shared = [SYSTEM] if systems[0] == systems[1] else []
    assert found == [*shared, ASKED, SAID, ASKED, SAID]
    tokenizer = speaking(STRICT)
    assert list(prefix_ids(as_prefix(found), tokenizer)) == whole([*shared, ASKED, SAID, ASKED, SAID], tokenizer)


@pytest.mark.parametrize("template", [STRICT, TURNS + OPENS])
def test_a_context_of_chats_is_read_and_not_scored(template: str) -> None:
    """Under the record's own system message; only its own answers count."""
    tokenizer = speaking(template)
    record, context = {"messages": [SYSTEM, AGAIN, SAID_AGAIN]}, [{"messages": [SYSTEM, ASKED, SAID]}]
    batch = responses([record], tokenizer, context=context)
    assert batch.inputs["input_ids"].tolist() == [whole([SYSTEM, ASKED, SAID, AGAIN, SAID_AGAIN], tokenizer)]
    assert tokenizer.decode(batch.labels[0][batch.labels[0] != IGNORED]) == "the fox<|end|>\n"
    asked = question(record, tokenizer, context=context)
    assert asked == whole([SYSTEM, ASKED, SAID, AGAIN], tokenizer, add_generation_prompt=True)


def test_a_context_has_the_shape_of_its_record() -> None:
    """Texts before texts, chats before chats."""
    chat, text = {"messages": [ASKED, SAID]}, {"prompt": "What is it?", "completion": "the dog"}
    for record, context in ((chat, text), (text, chat)):
        with pytest.raises(ConfigError, match=r"the context of a (text|chat) must be (texts|chats).*one shape"):
            responses([record], speaking(STRICT), context=[context])


def test_a_conversational_completion_alone_is_learned() -> None:
    """Answers within the prompt are read."""
    tokenizer = speaking(STRICT)
    row = encode({"prompt": [SYSTEM, ASKED, SAID, AGAIN], "completion": [SAID_AGAIN]}, tokenizer)
    assert row["input_ids"] == whole([SYSTEM, ASKED, SAID, AGAIN, SAID_AGAIN], tokenizer)
    assert learned(row, tokenizer) == "the fox<|end|>\n"


def in_parts(message: dict[str, Any], *texts: str) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize("template", [TURNS + OPENS, WRITES_JSON, ONLY_TEXT, STRICT, ALTERNATES, TAKES_PARTS])
def test_content_in_parts_is_its_text(template: str) -> None:
    """Whatever the template prints of parts that it does not know; where it takes parts, it is given parts."""
    tokenizer = speaking(template)
    record = {"messages": [in_parts(ASKED, "What is ", "it?"), in_parts(SAID, "the dog")]}
    given = record["messages"] if template == TAKES_PARTS else [ASKED, SAID]
    assert encode(record, tokenizer)["input_ids"] == whole(given, tokenizer)
    assert question(record, tokenizer) == whole(given[:1], tokenizer, add_generation_prompt=True)
    assert response_texts(record) == ["the dog"]
    assert response_bytes([record]) == 7
    assert same_demonstration(record) == same_demonstration({"messages": [ASKED, SAID]})
    assert as_context([record]) == [ASKED, SAID]
    assert as_prefix([in_parts(ASKED, "What is ", "it?")]) == as_prefix([ASKED])


def test_parts_that_are_no_text_are_refused() -> None:
    """Nothing here sees pictures, and their place in the text would be lost."""
    picture = [{"type": "text", "text": "What is it?"}, {"type": "image", "url": "a.png"}]
    with pytest.raises(ConfigError, match=r"must be a part of the type text|must be of type text"):
        encode({"messages": [{**ASKED, "content": picture}, SAID]}, speaking(TURNS + OPENS))
    with pytest.raises(ConfigError, match="must be of type text"):
        render([{**ASKED, "content": picture}], speaking(TURNS + OPENS), generation=True)


def test_no_content_is_empty() -> None:
    """A call of a tool often has none, be it null or missing; what the call says is learned and counted."""
    tokenizer = speaking(WITH_TOOLS)
    missing = {key: value for key, value in CALLS.items() if key != "content"}
    rows = []
    for call in (CALLS, missing, {**CALLS, "content": ""}):
        record = {"messages": [ASKED, call, RESULT, SAID]}
        rows.append(encode(record, tokenizer))
        assert learned(rows[-1], tokenizer) == 'move({"x": 0, "y": 1})<|end|>\nthe dog<|end|>\n'
        assert response_texts(record) == ["", "the dog"]
        assert response_bytes([record]) == len(json.dumps(CALLS["tool_calls"])) + 7
        assert question({"messages": [ASKED, call]}, tokenizer) == whole([ASKED], tokenizer, add_generation_prompt=True)
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(ConfigError, match="one of these demonstrations calls tools"):
        as_context([record])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"tools": [TOOL]}, "[tools]"),
        ({"tools": json.dumps([TOOL])}, "[tools]"),
        ({"documents": [{"text": "foxes"}]}, "[foxes]"),
        ({"chat_template_kwargs": {"brief": True}}, "[brief]"),
        ({"tools": [TOOL], "chat_template_kwargs": {"brief": True}}, "[tools]"),
    ],
)
def test_the_template_is_given_what_a_record_has_for_it(given: dict[str, Any], shown: str) -> None:
    """In training, in scoring, in what is asked, and with another answer, as transformers renders it."""
    tokenizer = speaking(WITH_TOOLS)
    record = {"messages": [ASKED, SAID], **given}
    more = {"tools": [TOOL] if "tools" in given else None, "documents": given.get("documents")}
    more |= given.get("chat_template_kwargs", {})
    expected = whole([ASKED, SAID], tokenizer, **more)
    assert shown in tokenizer.decode(expected)
    assert encode(record, tokenizer)["input_ids"] == expected
    assert responses([record], tokenizer).inputs["input_ids"].tolist() == [expected]
    asked = whole([ASKED], tokenizer, add_generation_prompt=True, **more)
    assert question(record, tokenizer) == asked == expected[: len(asked)]
    choice = _with_response(record, "the fox")
    assert encode(choice, tokenizer)["input_ids"] == whole([ASKED, SAID_AGAIN], tokenizer, **more)


@pytest.mark.parametrize("key", ["tools", "documents"])
def test_what_a_template_leaves_out_is_refused(key: str) -> None:
    """The model would be trained without it, and nobody would know."""
    record = {"messages": [ASKED, SAID], key: [TOOL]}
    with pytest.raises(ConfigError, match=f"renders the same with and without {key}"):
        encode(record, speaking(TURNS + OPENS))
    for nothing in ([], None, "[]"):
        assert encode({**record, key: nothing}, speaking(TURNS + OPENS))


def test_one_of_several_templates_must_be_known() -> None:
    """The one for tools where there are tools, else the default; without one the names are said."""
    plain, tools = TURNS + OPENS, WITH_TOOLS
    record = {"messages": [ASKED, SAID]}
    several = speaking({"default": plain, "tool_use": tools})
    assert encode(record, several) == encode(record, speaking(plain))
    assert encode({**record, "tools": [TOOL]}, several) == encode({**record, "tools": [TOOL]}, speaking(tools))
    named = speaking({"rag": plain, "tool_use": tools})
    with pytest.raises(ConfigError, match=r"several chat templates \('rag', 'tool_use'\).*Choose one"):
        encode(record, named)
    assert encode({**record, "tools": [TOOL]}, named) == encode({**record, "tools": [TOOL]}, speaking(tools))
    assert encode({**record, "chat_template_kwargs": {"chat_template": "rag"}}, named) == encode(
        record, speaking(plain)
    )
