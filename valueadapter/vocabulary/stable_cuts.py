"""Where a text can be cut so that no text that follows moves the tokens before the cut; knows no vocabulary's bytes.

A cut lies at an edge of a run of white space that is complete, with text on both sides of it, or of Chinese punctuation
between letters. Normalisers and pre-tokenizers of known kinds decide about what is before such a place without looking
past it, as long as no pattern of theirs repeats something that matches both this barrier and text (`"[^"]*"`,
`(?=.*x)`). Digits that are grouped from the right, long runs of letters and the like are runs without a barrier, so a
cut never lies within one. Where nothing holds a pattern back, or a step is of an unknown kind, nothing is ever settled,
and all of the text is encoded again with each token: slow, and right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from tokenizers import PreTokenizedString, Regex, pre_tokenizers

_BOUNDED = frozenset(
    (
        *("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation", "Digits", "Metaspace"),
        *("CharDelimiterSplit", "UnicodeScripts", "Split", "Sequence"),
        *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Nmt", "Replace", "Prepend"),
        *("BertNormalizer", "Precompiled"),
    )
)
"""Kinds of normalisers and pre-tokenizers that look no farther than a barrier, patterns apart."""
_WHITE = " \n\t\r\u3000"
_TEXT = "aZ1.-_\"'<>()[]{}/|\\:;,!?@#$%&*+=~^`\u00e9\u0416\u4eac\u0e01\u0663\u20ac\U0001f469\u0301\u200b"
_LETTERS = "aZ1\u00e9\u0416\u4eac\u0e01\u0663"
_CHINESE = "\u3002\uff0c\u3001\uff01\uff1f\uff1b\uff1a"
"""Punctuation of texts that have little white space."""
_META = "\u2581"
_RUNS_AFTER = 2
"""Barriers that stand after a cut, for patterns that match several runs one after the other."""

_RUN = re.compile(rf"(?<=\S)\s+(?=\S)|(?<=[^\W\d_])[{_CHINESE}]+(?=[^\W\d_])")


def barriers(state: dict[str, Any], tokenizer: Any) -> str:
    """White space and punctuation that no step of a tokenizer looks past; none where later text may move any cut.

    Args:
        state: a parsed tokenizer.json.
        tokenizer: the `tokenizers.Tokenizer` of it.
    """
    steps = [*_steps(state.get("normalizer")), *_steps(state.get("pre_tokenizer"))]
    if any(step["type"] not in _BOUNDED for step in steps):
        return ""
    repeated = [body for step in steps for pattern in _patterns(step) for body in _repeated(pattern)]
    seen_as = {one: one for one in _WHITE + _CHINESE}
    if tokenizer.normalizer is not None:
        seen_as = {one: one + tokenizer.normalizer.normalize_str(one) for one in seen_as}
    if any(step["type"] == "Metaspace" for step in steps):
        seen_as[" "] += _META
    found = ""
    for kind, others in ((_WHITE, _TEXT), (_CHINESE, _LETTERS)):
        mixed = [body for body in repeated if _matches_any(body, others)]
        found += "".join(one for one in kind if not any(_matches_any(body, seen_as[one]) for body in mixed))
    return found


def places(text: str, held: str, margin: int) -> Iterator[int]:
    """Where a text might be cut: edges of complete runs of barriers, from the end to the beginning.

    Args:
        text: any text.
        held: what `barriers` gave.
        margin: characters at the end before which a cut must lie.
    """
    runs = [run for run in _RUN.finditer(text) if not set(held).isdisjoint(run.group())]
    for run in reversed(runs[:-_RUNS_AFTER]):
        after = run.end()
        if after < len(text) - margin and not unicodedata.combining(text[after]):
            yield after
            yield run.start()


def edges_of_pieces(tokenizer: Any, text: str) -> set[int]:
    """Where pieces begin that a `tokenizers.Tokenizer` encodes apart from what is before, as places in the text."""
    pieces = PreTokenizedString(text)
    if tokenizer.normalizer is not None:
        pieces.normalize(tokenizer.normalizer.normalize)
    tokenizer.pre_tokenizer.pre_tokenize(pieces)
    return {begin for _, (begin, _), _ in pieces.get_splits(offset_referential="original", offset_type="char")}


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is not None:
        yield step
        for part in [*step.get("normalizers", []), *step.get("pretokenizers", [])]:
            yield from _steps(part)


def _patterns(step: dict[str, Any]) -> list[str]:
    """The regular expressions of a step; a pattern that is a plain string looks no farther than it is long."""
    pattern = step.get("pattern")
    return [pattern["Regex"]] if isinstance(pattern, dict) and "Regex" in pattern else []


def _matches_any(alternatives: str, characters: str) -> bool:
    try:
        split = pre_tokenizers.Split(Regex(alternatives), "removed")
    except Exception:  # the Rust library raises bare `Exception`; what is no pattern by itself is taken for anything
        return True
    return any(not split.pre_tokenize_str(character) for character in characters)


_ATOM = re.compile(
    r"""\\[pP]\{[^}]*\} | \\[xu]\{[^}]*\} | \\x[0-9A-Fa-f]{2} | \\[gk]<[^>]*> | \\. | [\s\S]""",
    re.VERBOSE,
)
_REPEAT = re.compile(r"[*+]|\{\d*,\}")
_BOUNDED_REPEAT = re.compile(r"\{\d+(?:,\d+)?\}|\{,\d+\}")
_OPENING = re.compile(r"\((\?(?:<[A-Za-z_][^>]*>|<?[=!]|[>:|~]|[a-zA-Z-]*:|[a-zA-Z-]*(?=\))))?")


def _repeated(pattern: str) -> Iterator[str]:
    """For each part that is repeated without bound, its single characters and classes as one alternation."""
    stack: list[list[str]] = [[]]  # atoms of every group that is open
    last: list[str] = []  # atoms of what a quantifier would repeat
    at = 0
    while at < len(pattern):
        if repeat := _REPEAT.match(pattern, at):
            if last:
                yield "|".join(last)
            at = repeat.end()
        elif bounded := _BOUNDED_REPEAT.match(pattern, at):
            at = bounded.end()
        elif pattern[at] == "(":
            at = _end_of_opening(pattern, at)
            stack.append([])
            last = []
        elif pattern[at] == ")" and len(stack) > 1:
            last = stack.pop()
            stack[-1] += last
            at += 1
        elif pattern[at] == "[":
            end = _end_of_class(pattern, at)
            last = [pattern[at:end]]
            stack[-1] += last
            at = end
        else:
            atom = _ATOM.match(pattern, at)
            text = atom.group() if atom else pattern[at]
            at += len(text)
            if text not in "?|^$" and not re.fullmatch(r"\\[bBAzZG]", text):
                last = [text]
                stack[-1] += last


def _end_of_opening(pattern: str, at: int) -> int:
    opening = _OPENING.match(pattern, at)
    return opening.end() if opening else at + 1


def _end_of_class(pattern: str, at: int) -> int:
    """Behind a class in brackets, which may hold others."""
    depth, here = 0, at
    while here < len(pattern):
        if pattern[here] == "\\":
            here += 1
        elif pattern[here] == "[":
            depth += 1
        elif pattern[here] == "]" and here > at + 1 and pattern[at:here] != "[^":
            depth -= 1
            if not depth:
                return here + 1
        here += 1
    return len(pattern)
