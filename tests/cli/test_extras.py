"""What an extra would bring is named when it is missing, and only what needs it asks for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from valueadapter import MissingExtraError
from valueadapter.compat import require

TESTS = Path(__file__).parents[1]
BARE = """
import sys
sys.path[:0] = {paths!r}
sys.modules.update(dict.fromkeys(("datasets", "matplotlib", "pyarrow"), None))  # as if not installed
"""
GENERATE = """
import torch, transformers.utils
from tiny import byte_tokenizer, tiny_model
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, ValueTrainingArguments, calibrate, distill_into_lora
from valueadapter import ValueTrainer, trace, value_score
from valueadapter.demonstrations.tokenized import load_demonstrations

tokenizer = byte_tokenizer()
adapter = ValueAdapter.from_networks([tiny_model("llama", seed=2)], tokenizer, base_model_name_or_path="acme/base")
model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
model.add_adapter(adapter, "default")
assert model.generate(**tokenizer("a b", return_tensors="pt"), max_new_tokens=4, do_sample=False).shape[1] > 2
assert trace(model, "a b", max_new_tokens=2).steps
records = [{"prompt": "a", "completion": "b"}] * 2
assert value_score(model, "a", ["b"]) is not None
for work in (
    lambda: ValueTrainingArguments(output_dir="out"),
    lambda: distill_into_lora(model, records * 8),
    lambda: load_demonstrations("acme/questions"),
):
    try:
        work()
    except Exception as error:
        print(type(error).__name__, error)
"""


def bare(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in which no extra is installed."""
    code = BARE.format(paths=[str(TESTS), str(TESTS.parent)]) + program
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_a_missing_extra_is_named() -> None:
    """By what to install, before any work; what is there is no error."""
    require("train", "torch", "datasets")
    with pytest.raises(MissingExtraError, match=r"no_such_module not installed: pip install 'valueadapter\[train\]'"):
        require("train", "torch", "no_such_module")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "train --base b --data d --output o",
            "datasets not installed: pip install 'valueadapter[train]'",
        ),
        (
            "evaluate a --base b --data d --finetune-reference",
            "datasets not installed: pip install 'valueadapter[evaluation]'",
        ),
    ],
    ids=["train", "evaluate"],
)
def test_commands_name_the_extra_first(words: str, message: str) -> None:
    """Before anything is looked for or loaded."""
    ran = bare("import valueadapter.cli; valueadapter.cli.main()", *words.split())
    assert ran.returncode == 1
    assert message in " ".join(ran.stderr.split())


@pytest.mark.slow
def test_using_an_adapter_needs_no_extra() -> None:
    """`pip install valueadapter` loads, generates, traces and scores; what trains names the extra that it needs."""
    ran = bare(GENERATE)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "MissingExtraError datasets not installed: pip install 'valueadapter[train]'",
        "MissingExtraError datasets not installed: pip install 'valueadapter[train]'",
        "MissingExtraError datasets not installed: pip install 'valueadapter[train]'",
    ]
