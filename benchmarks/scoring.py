"""What evaluation and calibration cost beside one bare pass over the positions of the responses (P16).

Models of gemma-3-270m's and SmolLM2's widths with few layers and random weights, a vocabulary of 262,144 tokens. The
bare pass runs each row's bodies once, multiplies the hidden states at its response positions with both heads, and takes
their cross-entropy. Knows nothing of how ratios are taken or shown.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.harness import Measured, peak_memory, ratios
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, calibrate
from valueadapter.adapter.heads import last_hidden_state
from valueadapter.demonstrations.responses import responses
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.evaluation.metrics import evaluate

Step = Callable[[], object]
VOCABULARY, ROWS = 262_144, 6
SHAPES = ({"hidden_size": 640, "intermediate_size": 2048}, {"hidden_size": 576, "intermediate_size": 1536})
RECORDS = [{"prompt": "def f(x):" * 20, "completion": "return x" * (4 + 2 * row)} for row in range(ROWS)]


def scoring() -> Measured:
    """P16: time and peak memory of likelihoods and of a calibration, each / one bare pass; answers are left out."""
    variants = ("pass", "evaluate", "calibrate")
    time = ratios({name: scoring_step(name) for name in variants}, number=3)
    memory = {name: peak_memory(scoring_step, name).peak for name in variants}
    measured: Measured = {}
    for name in variants[1:]:
        measured[f"P16 {name}, time / one pass over response positions"] = (time[name], 1.2)
        measured[f"P16 {name}, memory / one pass"] = ((memory[name] / memory["pass"],) * 3, 1.2)
    return measured


GROUPS = (scoring,)


def scoring_step(variant: str) -> Step:
    """One of the three ways over six responses of 32 to 112 tokens."""
    torch.set_num_threads(1)
    tokenizer = _tokenizer()
    base, network = (_model(shape) for shape in SHAPES)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
    model.add_adapter(adapter, "default", scale=0.5)
    model.eval()
    if variant == "evaluate":
        return lambda: evaluate(model, tokenizer, RECORDS, generate=False)
    if variant == "calibrate":
        return lambda: calibrate(model, RECORDS)
    return lambda: [_bare_pass(base, network, tokenizer, record) for record in RECORDS]


@torch.no_grad()
def _bare_pass(
    base: PreTrainedModel, network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, record: dict[str, str]
) -> torch.Tensor:
    """The nats of a response under the sum, from logits at its positions alone."""
    batch = responses([record], tokenizer)
    here, labels = batch.labels != IGNORED, batch.labels
    read = {key: value for key, value in batch.inputs.items() if key != "logits_to_keep"}
    states = [last_hidden_state(one, **read, use_cache=False)[:, -labels.shape[1] - 1 : -1] for one in (base, network)]
    logits, added = (one.get_output_embeddings()(h[here]) for one, h in zip((base, network), states, strict=True))
    logits.add_(added, alpha=0.5)
    del added
    return cross_entropy(logits, labels[here], reduction="sum")


def _model(shape: dict[str, int]) -> PreTrainedModel:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 6, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, vocab_size=VOCABULARY)).eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and as many tokens as the vocabulary has that no text holds."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE({**vocabulary, "</s>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
