"""What `inspect` says to a person: counts and the first ten, and all of it when asked."""

from __future__ import annotations

from valueadapter.artifact.config import (
    EvaluationRecord,
    NetworkSpec,
    RecommendedWeights,
    ValueAdapterConfig,
    Weights,
)
from valueadapter.cli.described import compatibility_rows, described, first_ten, pair_rows
from valueadapter.vocabulary.compatibility import Compatibility
from valueadapter.vocabulary.spec import VocabularySpec

COVERAGE = {"same bytes": 46_253, "first of several": 9, "end of text": 2, "nothing": 6_270, "no token": 0}
UNUSED = tuple(f"<unused{number}>" for number in range(6_247))
FOUND = Compatibility("static", COVERAGE, 0.93, 0.92, 1.22, UNUSED)
MEASURED = tuple(
    RecommendedWeights(f"{n:064x}", f"acme/b{n}", Weights(1.0, (0.5,)), "quiz", 8, 1.5, 1.0) for n in range(12)
)
CONFIG = ValueAdapterConfig(
    "alice/base",
    (NetworkSpec(0.6, path="value_network", reads_prefix=True),),
    VocabularySpec(97, "a" * 64, "b" * 64),
    base_prefix="Question: x\nAnswer: y\n\n" * 40,
    stop_strings=("\n\n",),
    weights=MEASURED,
    evaluation=(EvaluationRecord("acme/b1", "same family", "quiz", 8, 1.0, 1.2, None, 0.9),),
)
MORE = {"map_in_artifact": False, "network_bytes": 10, "base_bytes": None}


def test_many_tokens_are_counted_and_ten_are_named() -> None:
    """6,247 control tokens without a counterpart are one line; --verbose names them all."""
    short = str(compatibility_rows(FOUND)["no_counterpart"])
    assert short.startswith("6,247 control tokens of the base")
    assert short.endswith("<unused9>, and 6,237 more (--verbose lists them)")
    assert str(compatibility_rows(FOUND, verbose=True)["no_counterpart"]).count("<unused") == 6_247
    assert first_ten(UNUSED[:10], verbose=False) == ", ".join(UNUSED[:10])


def test_a_long_adapter_is_short() -> None:
    """A prefix in one line, the first ten of twelve bases, and how many are left."""
    short, whole = described(CONFIG), described(CONFIG, verbose=True)
    prefix = str(short["base_prefix"])
    assert prefix.startswith("40 examples, 920 characters")
    assert len(prefix) < 240
    assert sum(name.startswith("weights on ") for name in short) == 10
    assert short["more"] == "2 further bases; --verbose shows them"
    assert sum(name.startswith("weights on ") for name in whole) == 12
    assert "more" not in whole
    assert str(whole["base_prefix"]).count("Answer: y") == 40
    assert {"vocabulary", "format_version"} <= whole.keys() - short.keys()


def test_what_acts_on_this_base_is_told() -> None:
    """Weights that were fitted on it, or the default ones and how to fit others."""
    there = pair_rows(CONFIG, FOUND, MORE, "acme/b3", f"{3:064x}")
    assert there["acts_here_with"] == f"{MEASURED[3].weights}: {MEASURED[3].found_on}"
    elsewhere = str(pair_rows(CONFIG, FOUND, MORE, "acme/other", "f" * 64)["acts_here_with"])
    assert "bases that nobody measured; `valueadapter calibrate` fits others" in elsewhere
