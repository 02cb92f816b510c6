"""An exported directory in vLLM's server, asked over HTTP; runs where vLLM is installed: `make test-vllm`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import hub_of_alice
from served_models import llama, lora_adapter, on_hub, qwen3, saved
from tiny import byte_tokenizer

from valueadapter import ValueAdapterForCausalLM
from valueadapter.model.vllm_export import GivenAdapter, export_to_vllm

pytest.importorskip("vllm")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]
PROMPT = "What is the answer to it all?"
IDS = torch.tensor([byte_tokenizer()(PROMPT)["input_ids"]])
CHAT: Any = [{"role": "user", "content": "What is it?"}]


class Served:
    """A running server, and the wrapper that it should equal."""

    def __init__(self, address: str, model: ValueAdapterForCausalLM) -> None:
        openai = pytest.importorskip("openai")
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        self.model = model
        self.name = self.client.models.list().data[0].id


def answer(model: ValueAdapterForCausalLM, ids: torch.Tensor) -> str:
    """What the wrapper says behind (1, seq) ids."""
    said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return str(byte_tokenizer().decode(said[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch, hub_of_alice(root / "hub", patch) as hub:
        commit = on_hub(llama(2), root / "body")
        base = saved(qwen3(1), root / "base")
        free = lora_adapter(root / "free", commit)
        said = answer(ValueAdapterForCausalLM.from_pretrained(str(base), str(free)).eval(), IDS)
        adapter = lora_adapter(root / "adapter", commit, stop_strings=[said[5:7]])
        export_to_vllm([GivenAdapter(str(adapter))], str(base), root / "served")
        model = ValueAdapterForCausalLM.from_pretrained(str(base), str(adapter)).eval()
        port = _free_port()
        # `vllm serve` itself asks for a package named vllm, which the build for the CPU is not
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(root / "served")]
        command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
        environment = {**os.environ, **hub.env(token="hf_alice"), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "0"}
        log = root / "log"
        with log.open("w") as file:
            server = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server, log)
            yield Served(address, model)
        finally:
            server.terminate()
            server.wait(60)


def test_completions_stream_what_the_wrapper_says(served: Served) -> None:
    pieces = [
        piece.choices[0].text
        for piece in served.client.completions.create(
            model=served.name, prompt=PROMPT, max_tokens=12, temperature=0, stream=True
        )
    ]
    assert len(pieces) > 1
    assert "".join(pieces) == answer(served.model, IDS)


def test_answers_end_at_the_adapters_texts_unless_a_request_says_otherwise(served: Served) -> None:
    request: Any = {"model": served.name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    ended = served.client.completions.create(**request).choices[0]
    assert (ended.text, ended.finish_reason) == (answer(served.model, IDS), "stop")
    assert len(ended.text) < 12
    on = served.client.completions.create(**request, extra_body={"vllm_xargs": {"value_adapter_stops": 0}}).choices[0]
    assert on.text.startswith(ended.text)
    assert len(on.text) > len(ended.text)


def test_chats_stream_what_the_wrapper_says(served: Served) -> None:
    inputs = served.model.chat_inputs(CHAT)
    pieces = [
        piece.choices[0].delta.content or ""
        for piece in served.client.chat.completions.create(
            model=served.name, messages=CHAT, max_tokens=12, temperature=0, stream=True
        )
    ]
    assert "".join(pieces) == answer(served.model, inputs["input_ids"])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    for _ in range(300):
        try:
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert server.poll() is None, log.read_text()[-5000:]
        time.sleep(1)
    raise AssertionError(log.read_text()[-5000:])
