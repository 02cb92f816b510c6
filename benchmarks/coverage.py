"""`python -m benchmarks.coverage`: how well maps between published vocabularies fit, as Markdown tables.

Needs `npm` for most of the tokenizers and for two of the texts; runs no model.
"""

from __future__ import annotations

import functools
import json
import time

import numpy as np
from tokenizers import Tokenizer

from testkit.full_tokenizers import FULL_SIZE_TOKENIZERS, full_size_tokenizer
from testkit.texts import sample_texts
from valueadapter.vocabulary.alignment import EXACT, FIRST, NONE, VocabularyAlignment
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.retokenizer import Retokenizer, RetokenizingRules

LENGTH = 6_000
DOMAINS = ("english", "gsm8k", "python", "chinese", "french", "markdown")
OTHERS = tuple(name for name in FULL_SIZE_TOKENIZERS if name != "smollm2")
PAIRS = (*(("smollm2", base) for base in OTHERS), ("gemma-3", "smollm2"), ("llama-3", "qwen-3"))
"""Value vocabulary and base."""
MEASURES = ("Same-event share", "Value tokens per base token", "Share of steps that take tokens back")


def main() -> None:
    """Prints the tables."""
    texts = {domain: text[:LENGTH] for domain, text in sample_texts().items()}
    print("| value → base | ordinary tokens | same bytes | first of several | nothing | seconds to build |")
    print("| --- | --- | --- | --- | --- | --- |")
    built = {pair: build(*pair) for pair in PAIRS}
    cells = {pair: [stepped(built[pair], *pair, texts[domain]) for domain in DOMAINS] for pair in PAIRS}
    for index, measure in enumerate(MEASURES):
        print(f"\n{measure}:\n\n| value → base | {' | '.join(DOMAINS)} |")
        print("| --- " * (len(DOMAINS) + 1) + "|")
        for (value, base), row in cells.items():
            print(f"| {value} → {base} | {' | '.join(cell[index] for cell in row)} |")


@functools.cache
def side(name: str) -> ModelVocabulary:
    """A published vocabulary under a head just wide enough: the highest id + 1 (a model's may be padded)."""
    folder = full_size_tokenizer(name)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    eos = json.loads(config.read_text(encoding="utf-8")).get("eos_token") if config.is_file() else "<|endoftext|>"
    width = max(Tokenizer.from_str(text).get_vocab().values()) + 1
    found = ModelVocabulary(text, width, eos["content"] if isinstance(eos, dict) else eos)
    _ = found.vocabulary, found.encoder, found.spec  # read once, outside what is timed
    return found


def build(value: str, base: str) -> VocabularyAlignment:
    """Builds one map and prints its line."""
    ends = side(value), side(base)
    begun = time.perf_counter()
    alignment = VocabularyAlignment.build(*ends)
    seconds = time.perf_counter() - begun
    kinds = alignment.kind[ends[1].vocabulary.ordinary(ends[1].width)]
    shares = " | ".join(f"{np.mean(kinds == kind):.1%}" for kind in (EXACT, FIRST))
    nothing = int((kinds == NONE).sum())
    print(f"| {value} → {base} | {len(kinds):,} | {shares} | {nothing:,} | {seconds:.1f} |", flush=True)
    return alignment


def stepped(alignment: VocabularyAlignment, value: str, base: str, text: str) -> tuple[str, str, str]:
    """The three measures of one text, read token by token."""
    aligner = Retokenizer(RetokenizingRules.between(side(value), side(base)))
    ids = side(base).encoder.encode(text, start=True)
    same = back = 0
    for token in ids:
        rollback, new = aligner.push([token])
        same += bool(not rollback and new and new[0] == alignment.source[token])
        back += bool(rollback)
    read = len(aligner.ids) - len(aligner.reading.encoder.prefix)
    return f"{same / len(ids):.1%}", f"{read / len(ids):.2f}", f"{back / len(ids):.1%}"


if __name__ == "__main__":
    main()
