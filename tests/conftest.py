"""Fixtures: a Hub on loopback, a small tokenizer, tiny models whose broken caches show.

The Hub's address must be in the environment before huggingface_hub is first imported, so it starts here, at import.
"""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from valueadapter.testing.local_hub import LocalHub

_root = tempfile.TemporaryDirectory()
_hub = LocalHub(Path(_root.name, "server"))
_hub.__enter__()
os.environ.update(_hub.env(token="hf_alice", home=Path(_root.name, "home")))
os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")


@atexit.register
def _stop_hub() -> None:
    _hub.__exit__(None, None, None)
    _root.cleanup()


import pytest  # noqa: E402
import torch  # noqa: E402
from tiny import TinyModel, byte_tokenizer, tiny_model  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from valueadapter import ValueAdapter, ValueAdapterForCausalLM  # noqa: E402

transformers_logging.disable_progress_bar()
torch.set_num_threads(2)


class _DeprecationIsAnError(logging.Handler):
    """transformers announces renamed arguments in its log, not as warnings; here that fails the test."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # generate() itself passes both to an assistant model, which no caller can avoid
        if "deprecated" in message and "`generation_config` together" not in message:
            raise AssertionError(f"transformers deprecates what we do: {message}")


@pytest.fixture(autouse=True)
def _no_deprecated_calls() -> Iterator[None]:
    handler = _DeprecationIsAnError()
    logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="session")
def hub() -> LocalHub:
    return _hub


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture
def model() -> TinyModel:
    return tiny_model


@pytest.fixture
def tiny_adapter(tokenizer: PreTrainedTokenizerFast) -> Callable[..., ValueAdapter]:
    def make(kind: str = "llama", seed: int = 2, width: int = 97) -> ValueAdapter:
        network = tiny_model(kind, seed=seed, width=width)
        return ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base")

    return make


@pytest.fixture
def wrapped(
    tokenizer: PreTrainedTokenizerFast, tiny_adapter: Callable[..., ValueAdapter]
) -> Callable[..., ValueAdapterForCausalLM]:
    def make(base: str = "llama", network: str = "llama", scale: float = 1.0) -> ValueAdapterForCausalLM:
        wrapper = ValueAdapterForCausalLM(tiny_model(base, seed=1), tokenizer=tokenizer)
        wrapper.add_adapter(tiny_adapter(network), "default", scale=scale)
        return wrapper.eval()

    return make
