"""Which held-out prompts are shown, and how much of them."""

from __future__ import annotations

from test_plot import report

from valueadapter.artifact.card_results import LONGEST
from valueadapter.evaluation.recording import first_prompts
from valueadapter.evaluation.report import Arm, HeldOut
from valueadapter.evaluation.score import Example, Score

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which gas?"}]},
        {"role": "assistant", "content": "Nitrogen."},
    ]
}


def test_the_first_three_that_ask_are_shown() -> None:
    """In their order, nobody chooses; plain text asks nothing; of a chat the turns before the answer."""
    asking = [{"prompt": f"{n}?", "completion": f" {n}"} for n in range(4)]
    assert first_prompts([{"text": "plain"}, CHAT, *asking]) == (
        HeldOut(1, "system: Be brief.\nuser: Which gas?", "Nitrogen."),
        HeldOut(2, "0?", " 0"),
        HeldOut(3, "1?", " 1"),
    )
    assert first_prompts([{"text": "plain"}]) == ()


def test_long_texts_are_cut_where_they_say_least() -> None:
    """A prompt asks at its end, an answer says at its beginning; both fit the card."""
    said = Score((Example({"bits_per_byte": (1.0, 1)}, (), "b" * 9999),))
    result = report().results[0]
    arms = {name: Arm(said) if name in ("base", "finetuned") else Arm() for name in result.arms}
    told = report()
    shown = [HeldOut(0, "a" * 9999 + "?", "c" * 9999)]
    results = type(told)("a", "quiz", (type(result)("x", "y", 1.0, None, 1.0, 4, arms),), 1, prompts=tuple(shown))
    ((one,),) = (each.prompts for each in results.on_card())
    assert (one.prompt[0], one.prompt[-2:], len(one.prompt)) == ("…", "a?", LONGEST)
    assert (one.expected[-1], len(one.expected)) == ("…", LONGEST)
    assert one.answers == {"base": "b" * (LONGEST - 1) + "…"}
    ((one,),) = (each["prompts"] for each in results.to_dict()["arms"])
    assert len(one["answers"]["finetuned"]) == 9999
