"""The demo's notes: always the same, in a form that can be read back, and nothing of a held-out one is trained on."""

from __future__ import annotations

import re

from testkit.ledger import ACCOUNTS, CALIBRATION, HELD_OUT, TRAIN, development, ledger

ENTRY = re.compile(r" (\w+) (\d) (\d\d) (\w+) (\w+)")


def test_the_parts_are_always_the_same() -> None:
    split = ledger()
    assert split == ledger()
    assert [len(part) for part in (split.train, split.held_out, split.calibration)] == [TRAIN, HELD_OUT, CALIBRATION]
    assert split.train[0] == {
        "prompt": "For books, Schneider from Chennai gave sixty-five.\nEntry:",
        "completion": " books 7 65 Schneider India",
    }


def test_an_entry_says_what_its_note_says() -> None:
    for record in ledger().train + ledger().held_out:
        found = ENTRY.fullmatch(record["completion"])
        assert found is not None, record
        thing, account, _, name, _ = found.groups()
        assert ACCOUNTS[thing] == int(account)
        assert thing in record["prompt"]
        assert name in record["prompt"]


def test_no_name_and_no_town_of_a_held_out_note_is_trained_on() -> None:
    split = ledger()
    words = [capitals(part) for part in (split.train, split.held_out, development())]
    for index, one in enumerate(words):
        for other in words[index + 1 :]:
            assert not one & other


def capitals(records: list) -> set[str]:
    """Names and towns: the words in capitals but for those that begin a note."""
    found = {word for record in records for word in re.findall(r"\b[A-Z][a-z]+", record["prompt"].split("\n")[0])}
    return {word for word in found if word.lower() not in BEGINNINGS}


BEGINNINGS = {"for", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"}
