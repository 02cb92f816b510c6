"""A base's tokenizer that begins every text with a prefix, for engines that have no place for one; knows no models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from valueadapter.artifact import file_names
from valueadapter.artifact.config import Prefix
from valueadapter.demonstrations.encoding import prompt_ids
from valueadapter.demonstrations.messages import render
from valueadapter.errors import ConfigError
from valueadapter.forward.prefix_tokens import begins_texts

_NAME = "prefix"
_SAMPLES = ("Question: what is it?\nAnswer:", " a b", "\n\n1. x")
_CHAT = [{"role": "user", "content": "What is it?"}]
_TURNS = [*_CHAT, {"role": "assistant", "content": "A test."}, {"role": "user", "content": "Of what?"}]


class ServedTokenizer:
    """A tokenizer, and what it begins every text with.

    Args:
        tokenizer: the base's.
        prefix: text or chat that the models read first; None for nothing.
        ids: its tokens, those that begin a text included.

    Attributes:
        ids: the same.
        chats: whether what `save` writes has a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prefix: Prefix | None, ids: tuple[int, ...]) -> None:
        self.tokenizer, self.prefix, self.ids = tokenizer, prefix, ids
        self.chats = bool(tokenizer.chat_template)

    def save(self, directory: Path, longest: int | None) -> None:
        """Writes it to a directory, where any version of transformers makes the same of it.

        Args:
            directory: an existing one.
            longest: the most tokens that the models read.

        Raises:
            ConfigError: it sets tokens around a text in a way that a prefix cannot be put into.
        """
        self.tokenizer.save_pretrained(directory)
        settings = directory / file_names.TOKENIZER_CONFIG
        found = json.loads(settings.read_text(encoding="utf-8"))
        for key in ("is_local", "local_files_only", "name_or_path"):
            found.pop(key, None)
        if longest is not None:
            found["model_max_length"] = longest
        if self.ids:
            # classes of single models set the token that begins a text by themselves, and forget ours
            found = {key: value for key, value in found.items() if key not in ("add_bos_token", "add_eos_token")}
            found["tokenizer_class"] = "PreTrainedTokenizerFast"
            self._begin_texts(directory / file_names.TOKENIZER)
        settings.write_text(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.ids:
            own = AutoTokenizer.from_pretrained(directory)
            self._check(own)
            if self.chats:
                self._begin_chats(own, directory)

    def _begin_texts(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        old = data.get("post_processor") or {"type": "Sequence", "processors": []}
        steps = old["processors"] if old["type"] == "Sequence" else [old]
        kept = [step for step in steps if step["type"] == "ByteLevel"]  # the rest sets tokens, which are in the prefix
        special = {"id": _NAME, "ids": list(self.ids), "tokens": self.tokenizer.convert_ids_to_tokens(list(self.ids))}
        begin = [{"SpecialToken": {"id": _NAME, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        template = {
            "type": "TemplateProcessing",
            "single": begin,
            "pair": [*begin, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {_NAME: special},
        }
        data["post_processor"] = {"type": "Sequence", "processors": [*kept, template]}
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")

    def _check(self, own: PreTrainedTokenizerBase) -> None:
        start = self.ids[:1] if begins_texts(self.tokenizer) else ()
        for text in _SAMPLES:
            alone = tuple(prompt_ids(text, self.tokenizer))
            if tuple(own(text)["input_ids"]) != (*self.ids, *alone[len(start) :]):
                raise ConfigError(
                    f"{type(self.tokenizer).__name__} sets tokens around a text that a prefix cannot be put into; "
                    "serve the adapter without prefix (--no-base-prefix), and begin the prompts with it"
                )

    def _begin_chats(self, own: PreTrainedTokenizerBase, directory: Path) -> None:
        """Puts the prefix before what the chat template says; no template where the two would not be tokens apart."""
        template = self.tokenizer.chat_template
        text = self.tokenizer.decode(list(self.ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        made = _after(text, template, self.tokenizer) if isinstance(template, str) else None
        own.chat_template = made
        if made is None or not all(self._is_kept_apart(own, chat) for chat in (_CHAT, _TURNS)):
            own.chat_template, self.chats = None, False
            (directory / "chat_template.jinja").unlink(missing_ok=True)
            shutil.rmtree(directory / file_names.CHAT_TEMPLATES, ignore_errors=True)
            return
        (directory / "chat_template.jinja").write_text(made, encoding="utf-8")

    def _is_kept_apart(self, own: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> bool:
        try:
            ids = _ids(self.tokenizer, chat)
        except ConfigError:  # the template has no room for such turns, with the prefix or without
            return True
        first = self.tokenizer.bos_token_id
        rest = ids[1:] if begins_texts(self.tokenizer) and ids[:1] == [first] else ids
        return _ids(own, chat) == [*self.ids, *rest]


def _after(prefix: str, template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template that says a prefix first, and does not begin the text a second time after it."""
    if not begins_texts(tokenizer):
        return f"{{{{- {json.dumps(prefix)} -}}}}{template}"
    # only the first of several: templates may begin each turn so
    begun = "value_adapter_chat.startswith(bos_token or '')"
    rest = f"{{{{- value_adapter_chat[(bos_token or '')|length:] if {begun} else value_adapter_chat -}}}}"
    said = f"{{{{- {json.dumps(prefix)} -}}}}{rest}"
    return f"{{%- set value_adapter_chat -%}}{template}{{%- endset -%}}{said}"


def _ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    text: Any = render(messages, tokenizer, generation=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
