"""What a served adapter costs beside its base in vLLM, and beside our `generate`.

`.venv-vllm/bin/python -m benchmarks.served` (`make test-vllm` makes it). SmolLM2-135M with the default adapter (a LoRA
of rank 16 less its body; random weights cost what trained ones do) in fp32, 32 tokens to each of 1 and of 8 prompts
behind an adapter's prefix. CPU time, all threads together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import interval
from testkit.local_hub import LocalHub
from testkit.reference_models import smollm2_derived, smollm2_instruct

PREFIX = "Question: In which year did the committee first meet in the capital?\nAnswer: 1905\n\n" * 8
PROMPTS = [f"Question: Who explained on day {n} why the bridge had been closed?\nAnswer:" for n in range(8)]
BODY = "alice/body"
TOKENS, ROUNDS, BATCHES = 32, 7, (1, 8)
WAYS = ("base in vLLM", "served in vLLM", "base in transformers", "adapter in transformers")


def main() -> None:
    """Measures each way in a process of its own, and prints ratios with their 90 % interval."""
    with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder, "hub")) as hub:
        environment = {**os.environ, **hub.env(token="hf_alice"), "VLLM_CPU_KVCACHE_SPACE": "2"}
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
        found = {}
        for way in ("prepare", *WAYS):
            print(f"{way} …", file=sys.stderr)
            command = [sys.executable, "-m", "benchmarks.served", way, folder]
            out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[way] = json.loads(out.splitlines()[-1])
    print("| CPU time per token | batch 1 | batch 8 |\n| --- | --- | --- |")
    pairs = ((WAYS[1], WAYS[0]), (WAYS[3], WAYS[2]), (WAYS[1], WAYS[3]))
    for over, under in pairs:
        cells = []
        for batch in map(str, BATCHES):
            middle, low, high = interval([a / b for a, b in zip(found[over][batch], found[under][batch], strict=True)])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"| {over} / {under} | {' | '.join(cells)} |")


def prepare(folder: Path) -> None:
    """Publishes the body, makes the adapter and exports it."""
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from valueadapter import ValueAdapter
    from valueadapter.adapter.lora import build_lora_network
    from valueadapter.model.vllm_export import GivenAdapter, export_to_vllm

    api = HfApi()
    api.create_repo(BODY)
    commit = api.upload_folder(repo_id=BODY, folder_path=smollm2_derived()).oid
    network = build_lora_network(
        AutoModelForCausalLM.from_pretrained(smollm2_derived()), rank=16, name=BODY, revision=commit
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.01, generator=generator)
    adapter = ValueAdapter.from_networks(
        [network, f"{BODY}@{commit}"],
        AutoTokenizer.from_pretrained(smollm2_derived()),
        base_model_name_or_path=BODY,
        coefficients=[1.0, -1.0],
        base_prefix=PREFIX,
        reads_prefix=[True, True],
    )
    adapter.save_pretrained(folder / "adapter")
    export_to_vllm([GivenAdapter(str(folder / "adapter"))], str(smollm2_instruct()), folder / "served")


def measure(way: str, folder: Path) -> None:
    """Prints CPU seconds per token, a list for each batch."""
    run = _in_vllm(way, folder) if "vLLM" in way else _in_transformers(way, folder)
    found = {}
    for batch in BATCHES:
        run(PROMPTS[:batch])
        seconds = []
        for _ in range(ROUNDS):
            begun = time.process_time()
            run(PROMPTS[:batch])
            seconds.append((time.process_time() - begun) / TOKENS / batch)
        found[batch] = seconds
    print(json.dumps(found))


def _in_vllm(way: str, folder: Path) -> Callable[[list[str]], object]:
    from vllm import LLM, SamplingParams

    served = way.startswith("served")
    llm = LLM(str(folder / "served" if served else smollm2_instruct()), dtype="float32", max_model_len=1024)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    begin = "" if served else PREFIX  # the served tokenizer sets it by itself
    return lambda prompts: llm.generate([begin + prompt for prompt in prompts], params, use_tqdm=False)


def _in_transformers(way: str, folder: Path) -> Callable[[list[str]], object]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from valueadapter import ValueAdapterForCausalLM

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_instruct(), padding_side="left")
    if way.startswith("base"):
        model, begin, more = AutoModelForCausalLM.from_pretrained(smollm2_instruct()), PREFIX, {}
    else:
        model = ValueAdapterForCausalLM.from_pretrained(str(smollm2_instruct()), str(folder / "adapter")).eval()
        begin, more = "", {"stop_strings": None}
    lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}

    def run(prompts: list[str]) -> object:
        inputs = tokenizer([begin + prompt for prompt in prompts], return_tensors="pt", padding=True)
        return model.generate(**inputs, **lengths, **more)

    return run


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
        print("{}")
    else:
        measure(sys.argv[1], Path(sys.argv[2]))
