"""What an adapter of real size costs, computed from the shapes of models; nothing is loaded, run or measured.

`python -m benchmarks.sizes` writes the tables of docs/sizes.md. Knows the arithmetic of a decoder of Llama's kind, and
the shapes that three published models have in their config.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "sizes.md"
GB = 1e9
HALF, SINGLE = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
CONTEXT = 4096
"""Tokens of text in the tables of memory."""
RANK = 16
"""Of the default LoRA."""
BANDWIDTH, SPEED = 3.35e12, 4e14
"""Bytes and operations in a second: an H100's memory, and some 40 % of its arithmetic in bfloat16."""
TOKENS = 1000 * 300 * 2
"""Of a training: 1,000 demonstrations of 300 tokens, prefix included, in two passes."""
STEP = 8 * 300
"""Tokens of one of its steps."""


@dataclass(frozen=True)
class Shape:
    """A decoder's shape, by the names of its config.json."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of one layer's matrices: queries, keys, values, output, gate, up, down."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding; as many have the output head, which may be the same matrix."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All of them."""
        layer = sum(a * b for a, b in self.linear) + 2 * self.hidden_size
        embeddings = self.embedding * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + self.hidden_size + embeddings

    @property
    def used(self) -> int:
        """Those that each token is multiplied with and each step reads: all but a separate input embedding."""
        return self.parameters - (0 if self.tie_word_embeddings else self.embedding)

    @property
    def lora(self) -> int:
        """Of a LoRA on every linear layer of the body."""
        return self.num_hidden_layers * RANK * sum(a + b for a, b in self.linear)

    @property
    def cache(self) -> int:
        """Bytes of keys and values for one token, in bfloat16."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * HALF

    @property
    def activations(self) -> int:
        """Bytes that a LoRA's backward pass keeps of one token, without checkpointing, in bfloat16, about.

        The inputs of all matrices, queries, keys and values, both norms, and of the gated product its three parts.
        """
        keys = self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * HALF * (6 * self.hidden_size + 2 * keys + 4 * self.intermediate_size)


SMALL = Shape("Llama-3.2-1B", 2048, 16, 8192, 32, 8, 64, 128_256, True)
BASES = (
    SMALL,
    Shape("Llama-3.1-8B", 4096, 32, 14_336, 32, 8, 128, 128_256, False),
    Shape("Llama-3.1-70B", 8192, 80, 28_672, 64, 8, 128, 128_256, False),
)


def memory() -> str:
    """Weights and caches beside each base, in GB."""
    rows = []
    for base in BASES:
        own = base is SMALL  # the body is the base itself, and held once
        alone, body = base.parameters * HALF, 0 if own else SMALL.parameters * HALF
        added = body + SMALL.lora * SINGLE
        caches = CONTEXT * base.cache, 2 * CONTEXT * SMALL.cache
        total = alone + added + sum(caches)
        share = total / (alone + caches[0])
        rows.append([base.name, *(_gb(one) for one in (alone, added, *caches, total)), f"{share:.2f}"])
    head = ["base", "its weights", "the adapter's", "cache of the base", "of the adapter", "in all", "/ the base alone"]
    return _table(head, rows)


def time() -> str:
    """The least that a token can cost: bytes that are read for one row, and arithmetic where texts are long or many."""
    rows = []
    for base in BASES:
        alone = base.used * HALF
        beside = SMALL.used * HALF + SMALL.lora * SINGLE
        many = (base.used + 2 * SMALL.used) / base.used
        shown = [f"{count / BANDWIDTH * 1e3:.1f} ms" for count in (alone, alone + beside)]
        rows.append([base.name, *shown, f"{(alone + beside) / alone:.2f}", f"{many:.2f}"])
    head = ["base", "one row: alone", "with the adapter", "ratio", "long prompts, many rows: ratio"]
    return _table(head, rows)


def training() -> str:
    """What training the adapter takes, beside a LoRA on each base directly: GB, operations, seconds."""
    rows = []
    for index, shape in enumerate(BASES):
        learned = shape.lora * SINGLE * 4  # weight, gradient and two moments
        kept = STEP * shape.activations
        total = shape.parameters * HALF + learned + kept
        work = 4 * shape.used * TOKENS  # forward, and backward through weights that are frozen
        what = f"the adapter, on {shape.name}" if index == 0 else f"a LoRA on {shape.name} directly"
        shown = [_gb(one) for one in (shape.parameters * HALF, learned, kept, total)]
        rows.append([what, *shown, f"{work / 1e15:.0f}", _time(work / SPEED)])
    head = ["trained is", "frozen weights", "what is learned", "activations of a step", "in all"]
    return _table([*head, "10^15 operations", "at 400 TFLOP/s"], rows)


def models() -> str:
    """The three shapes."""
    rows = [
        [
            shape.name,
            f"{shape.parameters / 1e9:.2f} billion",
            f"{shape.num_hidden_layers} x {shape.hidden_size:,}",
            f"{shape.cache / 1e3:.0f} kB",
            f"{shape.lora / 1e6:.1f} million",
        ]
        for shape in BASES
    ]
    return _table(["model", "parameters", "layers", "cache of a token", "LoRA of rank 16"], rows)


def blocks() -> dict[str, str]:
    """Name -> table, as the page marks them."""
    return {"models": models(), "memory": memory(), "time": time(), "training": training()}


def filled(page: str) -> str:
    """The page with its tables computed anew."""
    for name, table in blocks().items():
        page = re.sub(rf"(<!-- sizes: {name} -->\n).*?(<!-- /sizes -->)", rf"\1\n{table}\n\2", page, flags=re.DOTALL)
    return page


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def _gb(count: float) -> str:
    return f"{count / GB:.2f}" if count < 10 * GB else f"{count / GB:.1f}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    for table in blocks().values():
        print(table)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
