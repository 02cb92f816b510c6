"""Text from outside as a person may see it: what would move a cursor, hide or reorder text is spelled out instead.

Names, configurations, cards and what models say come from others. Knows neither terminals nor pages.
"""

from __future__ import annotations

import json
import re
import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners, which scripts and emoji are written with."""
_BLANK = f"{_JOINERS}\u115f\u1160\u2800\u3164\uffa0"
"""Characters of an alphabet that nobody sees."""
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}
_SPACES = re.compile("[ \n\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_SUSPECT = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u02ff]")
"""All that is not plain Latin text; nothing in those ranges is a control character."""


def visible(text: str, *, keep: str = "") -> str:
    """The text with characters that steer a terminal or a reader spelled out, as Python writes them (`\\x1b`).

    These are controls (ESC, line ends, …), formats (text direction, invisible tags, …), line and paragraph separators,
    and halves of surrogate pairs, which no file can hold.

    Args:
        text: any text.
        keep: controls that stay, such as `"\\n"`.
    """
    return _SUSPECT.sub(lambda found: _spelled(found[0], keep), text)


def signed(text: str, *, in_line: bool = False) -> str:
    """A token as it can be seen: white space and line ends by signs, and what would show nothing at all spelled out.

    Args:
        text: of the token.
        in_line: as it stands in a text, where spaces beside words can be seen and a line ends behind its sign.
    """
    if not text:
        return "∅"
    if all(one in _BLANK or unicodedata.category(one) in ("Mn", "Me") for one in text):
        return text.encode("unicode_escape").decode("ascii")
    if in_line and (text.strip() or "\n" in text):
        return visible(text.replace("\n", "⏎\n"), keep="\n\t")
    return visible(_SPACES.sub(lambda found: _SIGNS.get(found[0], "␣"), text))


def visible_json(text: str) -> str:
    """JSON text with the same characters escaped as JSON has it; line ends between values stay."""
    return _SUSPECT.sub(
        lambda found: found[0] if visible(found[0], keep="\n") == found[0] else _escaped(found[0]), text
    )


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _spelled(character: str, keep: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    return character.encode("unicode_escape").decode("ascii") if hidden and character not in keep else character
