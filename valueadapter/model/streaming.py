"""Shows an answer while it is generated, up to where it ends; computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, TextStreamer

from valueadapter.forward.stops import StreamedAnswer, padding, stop_tokens


class AnswerStreamer(TextStreamer):
    """A streamer for `generate` that hands over an answer piece by piece, without the text that ends it.

    Args:
        tokenizer: the base's.
        stop_strings: texts that end an answer.
        show: takes each piece; the last one ends with a line break.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str], show: Callable[[str], object]
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._answer, self._show = StreamedAnswer(stop_strings), show

    @property
    def is_over(self) -> bool:
        """Whether the answer has come to one of the texts that end it."""
        return self._answer.is_over

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by `generate` with each piece."""
        shown = self._answer.add(text, last=stream_end)
        self._show(f"{shown}\n" if stream_end else shown)


def answer_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What ends an answer and fills rows up behind it, as arguments of `generate`; many base models set neither."""
    return {"pad_token_id": padding(tokenizer), "eos_token_id": sorted(stop_tokens(model, tokenizer)) or None}
