"""What one forward pass computes for a row: new tokens, and none that are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from valueadapter.forward.row_plan import Plan, Row
from valueadapter.vocabulary.retokenizer import Retokenizer


def row(ids: list[int], cached: int, *, known: bool) -> Row:
    """A row whose text is these ids, `cached` of them read before."""
    return Row(cast(Retokenizer, SimpleNamespace(ids=ids)), cached=cached, known=known)


def test_what_is_known_is_not_computed_again() -> None:
    """No new token: the logits of the last call are used again."""
    plan = Plan(row([5, 6, 7], 3, known=True))
    assert plan.next_token_node() == Plan.KEPT_LOGITS
    assert plan.nodes == []


def test_tokens_taken_back_without_new_ones_are_not_known() -> None:
    """The logits kept are those after the tokens that are gone; the last that stays is read again."""
    plan = Plan(row([5, 6, 7], 3, known=True))
    plan.row.text.ids = [5, 6]
    plan.replace(1, [])
    assert plan.next_token_node() == 0
    assert [(node.token, node.depth) for node in plan.nodes] == [(6, 1)]
    assert plan.start == 1


def test_before_any_text_there_is_nothing() -> None:
    """No logits, and no forward pass."""
    assert Plan(row([], 0, known=False)).next_token_node() == Plan.NO_TEXT


def test_tokens_taken_back_in_mid_call_leave_branches() -> None:
    """Nodes keep the parent they had, and those that follow hang on what stayed."""
    plan = Plan(row([5], 0, known=False))
    plan.replace(0, [6, 7])
    plan.replace(2, [8])
    assert [(node.token, node.depth, node.parent) for node in plan.nodes] == [
        (5, 0, -1),
        (6, 1, 0),
        (7, 2, 1),
        (8, 1, 0),
    ]
    assert plan.stack == [0, 3]
    assert not plan.plain
