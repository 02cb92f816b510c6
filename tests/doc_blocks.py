"""The code and the commands of the documentation, page by page, and what each needs so that it runs on tiny models."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md"] + [
    path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "tutorials"
]
_INDENTED = re.compile(r"^    (?=(?:valueadapter|vllm|pip|make) )(.+)$", re.M)
"""A command, as README.md has them."""
_FENCED = re.compile(r"^```.*?^```", re.S | re.M)
_BLOCK = re.compile(r"^```(python|console|yaml)\n(.*?)^```", re.S | re.M)
RENAMED = {
    **{f"meta-llama/Llama-3.{name}": "acme/base-model" for name in ("2-1B", "1-8B", "1-70B")},
    "alice/SmolLM2-135M-Instruct": "acme/base-model",
    "alice/ledger-value": "alice/adapter",
    "org/": "acme/",
    "user/base": "acme/base",
    "user/": "alice/",
}
"""Names on the pages -> names on the loopback Hub."""
BEFORE: dict[tuple[str, int], str] = {
    ("adapters", 2): "from valueadapter import trace, value_score; model.set_adapter('style')",
    ("adapters", 3): "model.set_base_prefix(None)",
    ("adapters", 4): "tokenizer = model.base_tokenizer; model.load_adapter('alice/facts', 'facts')",
    ("adapters", 6): (
        "model = ValueAdapterForCausalLM.from_pretrained('acme/base-model', 'alice/style')\n"
        "schema = '{\"type\": \"boolean\"}'; prompt = tokenizer('A', return_tensors='pt')"
    ),
    ("adapters", 8): (
        "from valueadapter import ValueAdapter; model = ValueAdapterForCausalLM(model.base, tokenizer=tokenizer)\n"
        "rows = [{'input_ids': [5, 6, 7], 'attention_mask': [1, 1, 1], 'labels': [5, 6, 7]}] * 8"
    ),
    ("alignment", 0): "from valueadapter import ValueAdapterForCausalLM",
    ("evaluation", 0): "train, others, held_out = records[:20], records[20:26], records[26:]",
    ("hub", 0): (
        "from valueadapter import ValueAdapter; adapter = ValueAdapter.from_pretrained('my-adapter')\n"
        "from huggingface_hub import HfApi; HfApi().delete_repo('alice/adapter')"
    ),
    ("hub", 1): "from valueadapter import ValueAdapterForCausalLM; HfApi().create_tag('alice/adapter', tag='v1')",
    ("index", 1): "labelled = records[:6]",
    ("judge", 2): (
        "import types\n"
        "def Asked(): return types.SimpleNamespace(prompt='1 + 1 =', is_solved_by=lambda text: text == '2')"
    ),
    ("prefix", 0): "import valueadapter; from valueadapter import ValueAdapterForCausalLM",
    ("training", 1): "import shutil; shutil.rmtree('out')",
    ("training", 3): (
        "model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)\n"
        "pairs = Dataset.from_list([{'prompt': 'Q ', 'chosen': 'ABC', 'rejected': 'D'}] * 8)"
    ),
    ("training", 4): "trainer.state.best_model_checkpoint = 'out/checkpoint-1'",
    ("training", 5): "tokenizer = model.base_tokenizer",
}
"""What stands before a block of Python, by page and its number there: what the page's words have said by then."""
IN_TESTS: dict[str, str] = {
    'tasks=["arc_easy"]': "tasks=[task], task_manager=none, bootstrap_iters=0",
    'reasoning_task("chain_sum").held_out': "[Asked(), Asked()]",
    "n=8, temperature": "n=2, temperature",
    'Arguments("out"': 'Arguments("out", use_cpu=True',
    'DPOConfig("out")': 'DPOConfig("out", use_cpu=True, max_steps=1)',
    'SFTConfig("out")': 'SFTConfig("out", use_cpu=True, max_steps=1)',
    "num_layers=12": "num_layers=1",
    "checkpoint-500": "checkpoint-1",
    "--limit 200": "--limit 8",
    "--calibrate 100": "--calibrate 6",
}
"""What is smaller, or of a data set that no package brings."""
ELSEWHERE: dict[str, str] = {
    "pip ": "what is installed: tests/test_distribution.py",
    "make ": "what this is part of: Makefile",
    "vllm ": "vLLM has an environment of its own: tests/serving",
    "curl ": "asks the server of the line above: tests/serving",
    "accelerate launch ": "several processes: tests/training/test_distributed.py",
    "python -m benchmarks": "measures for minutes, in `make bench`: benchmarks",
    ".venv/bin/python -m testkit.local_hub": "a server that does not end: tests/testkit",
}
"""Beginnings of commands that do not run here, and where what they do is tested."""


class Block(NamedTuple):
    """A block of a page."""

    language: str
    code: str
    number: int
    """Among those of its language on the page."""


def blocks(page: Path) -> Iterator[Block]:
    """All blocks that are to run, in their order, with names that there are on the loopback Hub."""
    counts: dict[str, int] = {}
    text = page.read_text(encoding="utf-8")
    if page.stem == "README":  # whose code runs in test_docs.py
        found = [("console", f"$ {command}") for command in _INDENTED.findall(_FENCED.sub("", text))]
    else:
        found = _BLOCK.findall(text)
    for language, code in found:
        number = counts.get(language, 0)
        counts[language] = number + 1
        for old, new in {**RENAMED, **IN_TESTS}.items():
            code = code.replace(old, new)
        yield Block(
            language, BEFORE.get((page.stem, number), "") + "\n" + code if language == "python" else code, number
        )


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a console block, those that run elsewhere left out."""
    for line in code.replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            continue
        for command in line[2:].split(" && "):
            if not any(command.startswith(beginning) for beginning in ELSEWHERE):
                yield shlex.split(command, comments=True)
