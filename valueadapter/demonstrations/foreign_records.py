"""Records as other tools train on, recognised so that an error can say how to bring them into a shape of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ASKED = ("prompt", "instruction", "question", "query", "problem", "input", "source", "context")
_ANSWERED = ("completion", "response", "output", "answer", "solution", "target", "label")
_SHAREGPT = (
    '{"messages": [{"role": {"human": "user", "gpt": "assistant"}.get(turn["from"], turn["from"]), "content": '
    'turn["value"]} for turn in record["%s"]]}'
)


def remedy(record: Mapping[str, Any]) -> str:
    """How a record of another tool's shape becomes one of ours; empty where the shape is not known."""
    given = {key: value for key, value in record.items() if value is not None}
    for key in ("conversations", "conversation", "messages"):
        if (turns := _turns(given.get(key))) is not None:
            if {"from", "value"} <= set(turns):
                return f"these are ShareGPT's turns; write each record as {_SHAREGPT % key}"
            if key != "messages":
                return f"rename '{key}' to 'messages' (each turn an object with 'role' and 'content')"
    if {"chosen", "rejected"} <= set(given):
        return (
            "these are preferences; train on them with TRL's DPOTrainer, or on the chosen answers alone: 'prompt' and "
            "'completion', or 'messages'"
        )
    if {"instruction", "output"} <= set(given):
        asked = 'record["instruction"]' + (' + "\\n" + record["input"]' if "input" in given else "")
        return f'this is Alpaca\'s shape; write each record as {{"prompt": {asked}, "completion": record["output"]}}'
    if "input_ids" in given:
        return "these are tokens already; give them to ValueTrainer as they are, with 'input_ids' and 'labels'"
    return _renaming(given)


def _turns(value: Any) -> Mapping[str, Any] | None:
    """The first turn of what looks like a chat."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    return first if isinstance(first, Mapping) else None


def _renaming(given: Mapping[str, Any]) -> str:
    asked = next((key for key in _ASKED if key in given), None)
    answered = next((key for key in _ANSWERED if key in given), None)
    if asked is None or answered is None:
        return ""
    renamed = [(asked, "prompt"), (answered, "completion")]
    return "rename " + " and ".join(f"'{old}' to '{new}'" for old, new in renamed if old != new)
