"""What takes long to make is made once, and what failed is made again."""

from __future__ import annotations

import dataclasses

import pytest
from tiny import byte_tokenizer

from valueadapter.adapter.tokenizer_loading import side_of
from valueadapter.vocabulary.recent import Recent


def test_the_last_ones_are_kept() -> None:
    recent = Recent[list](2)
    first = recent.get("a", lambda: [1])
    assert recent.get("a", lambda: [2]) is first
    recent.get("b", list)
    assert recent.get("a", list) is first  # which makes it the newer one
    recent.get("c", list)
    assert recent.get("a", list) is first
    assert recent.get("b", lambda: [3]) == [3]


def test_what_fails_is_not_kept() -> None:
    recent = Recent[int](2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 7) == 7


def test_sides_of_one_tokenizer_have_its_views_in_common_and_their_own_widths() -> None:
    side = side_of(byte_tokenizer(), 300)
    other = dataclasses.replace(side, width=310)
    assert other.vocabulary is side.vocabulary
    assert other.encoder is side.encoder
    assert (side.spec.logits_width, other.spec.logits_width) == (300, 310)
    assert side_of(byte_tokenizer(), 300).vocabulary is side.vocabulary
