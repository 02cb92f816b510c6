"""Fixtures: a small tokenizer, tiny models whose broken caches show.

Only tests marked `real` download anything: packages, once.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

import import_arrows
import switched_off

# no test reads or fills the user's cache
os.environ.update(switched_off.of_the_run(), HF_HOME=tempfile.mkdtemp(prefix="valueadapter-tests-"))

import pytest
import torch
from tiny import TinyModel, byte_tokenizer, tiny_model
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.compat import installed

transformers_logging.disable_progress_bar()
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_configure(config: pytest.Config) -> None:
    if installed("peft") < (0, 21):  # which warns where nothing is wrong
        for line in (
            "ignore:Could not find a config file in  -:UserWarning",
            "ignore:The PEFT config's .base_model_name_or_path. was renamed:UserWarning",
            "ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning",
        ):
            config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # files that take long go first, so that one of two processes does not end with them while the other waits
    long = {item.path for item in items if item.get_closest_marker("real") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = import_arrows.between_packages()
    terminalreporter.write_line(f"{len(found)} import arrows between the library's packages")


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


@pytest.fixture
def by_lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files move by LFS in this test, for what Xet's client cannot be made to meet."""
    switched_off.without_xet(monkeypatch)


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
