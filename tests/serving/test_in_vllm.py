"""Served adapters have the tokens that the wrapper has; runs where vLLM is installed: `make test-vllm`."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import hub_of_alice
from safetensors.torch import load_file, save_file
from served_models import BODY, gemma3, llama, lora_adapter, on_hub, other, qwen3, saved
from tiny import byte_tokenizer

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.errors import ConfigError
from valueadapter.model.vllm_export import GivenAdapter, export_to_vllm

vllm = pytest.importorskip("vllm")
pytestmark = pytest.mark.filterwarnings("default")  # of vLLM and what it imports
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")

PROMPTS = ("Hello", "What is the answer to it all? " * 3, "x", "One two three four five six seven")
Engine = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For all tests: vLLM keeps the client that it made first."""
    with pytest.MonkeyPatch.context() as patch, hub_of_alice(tmp_path_factory.mktemp("hub"), patch):
        yield


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Makes vLLM engines in this process, one at a time."""
    from vllm.distributed import cleanup_dist_env_and_memory

    made: list[Any] = []

    def make(directory: Path, **options: Any) -> Any:
        settings = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "max_logprobs": 112, **options}
        made.append(vllm.LLM(str(directory), **settings))
        return made[-1]

    yield make
    for one in made:
        one.llm_engine.engine_core.shutdown()
    made.clear()
    gc.collect()
    cleanup_dist_env_and_memory()


def tokens(llm: Any, prompts: Sequence[str] = PROMPTS, **options: Any) -> list[list[int]]:
    """Greedy tokens of vLLM."""
    params = vllm.SamplingParams(**{"max_tokens": 20, "temperature": 0, **options})
    return [list(one.outputs[0].token_ids) for one in llm.generate(list(prompts), params, use_tqdm=False)]


def logits(llm: Any, prompt: Any, width: int = 97) -> torch.Tensor:
    """Log probabilities of the token behind a prompt, (vocab)."""
    params = vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=width)
    (said,) = llm.generate([prompt], params, use_tqdm=False)
    return torch.tensor([said.outputs[0].logprobs[0][token].logprob for token in range(width)])


def wrapped(base: Path, *adapters: Path) -> ValueAdapterForCausalLM:
    """The wrapper with all of them active."""
    model = ValueAdapterForCausalLM.from_pretrained(str(base), str(adapters[0]), adapter_name="a0")
    for index, adapter in enumerate(adapters[1:], start=1):
        model.load_adapter(str(adapter), f"a{index}")
    model.set_adapter([f"a{index}" for index in range(len(adapters))])
    return model.eval()


def expected(model: ValueAdapterForCausalLM, prompts: Sequence[str] = PROMPTS, **options: Any) -> list[list[int]]:
    """Greedy tokens of the wrapper, each prompt alone."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([byte_tokenizer()(prompt)["input_ids"]])
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **{"max_new_tokens": 20, "do_sample": False, **options},
        )
        found.append(said[0, ids.shape[1] :].tolist())
    return found


def expected_logits(model: ValueAdapterForCausalLM, prompt: str) -> torch.Tensor:
    """The same as `logits`."""
    ids = torch.tensor([byte_tokenizer()(prompt)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(-1)


def exported(tmp_path: Path, base: Path, *adapters: Path, **options: Any) -> Path:
    """The directory that vLLM serves."""
    given = [GivenAdapter(str(adapter)) for adapter in adapters]
    return export_to_vllm(given, str(base), tmp_path / "served", **options).directory


@pytest.fixture
def demo(tmp_path: Path) -> tuple[Path, Path, str]:
    """A base of another architecture than the body, an adapter, and the body's commit."""
    commit = on_hub(llama(2), tmp_path / "body")
    return saved(qwen3(1), tmp_path / "base"), lora_adapter(tmp_path / "adapter", commit), commit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 16, "max_num_seqs": 2, "enable_chunked_prefill": True},
        {"enforce_eager": False},
    ],
    ids=["plain", "no prefix caching", "chunked", "compiled"],
)
def test_tokens_and_logits_are_the_wrappers(
    demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine, options: dict[str, Any]
) -> None:
    base, adapter, _ = demo
    model = wrapped(base, adapter)
    llm = engine(exported(tmp_path, base, adapter), **options)
    for prompt in PROMPTS:
        torch.testing.assert_close(logits(llm, prompt), expected_logits(model, prompt), rtol=0, atol=1e-5)
    assert tokens(llm) == expected(model)
    assert tokens(llm) == expected(model)  # now from the cache, where there is one


def test_the_prefix_is_computed_once(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, _, commit = demo
    adapter = lora_adapter(tmp_path / "long", commit, base_prefix="A longer one. " * 8)
    llm = engine(exported(tmp_path, base, adapter), block_size=32)
    first, second = (llm.generate([p], vllm.SamplingParams(max_tokens=1), use_tqdm=False)[0] for p in ("ab", "cd"))
    prefix = len(second.prompt_token_ids) - 2
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == prefix // 32 * 32 >= 64


def test_a_body_is_held_once_and_so_is_the_base_where_it_is_the_body(tmp_path: Path, engine: Engine) -> None:
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    commit = on_hub(llama(2), tmp_path / "body")
    adapter = lora_adapter(tmp_path / "adapter", commit)
    model = ValueAdapterForCausalLM.from_pretrained(BODY, str(adapter), revision=commit).eval()
    given = [GivenAdapter(str(adapter))]
    made = export_to_vllm(given, BODY, tmp_path / "served", base_revision=commit)
    llm = engine(made.directory)
    assert tokens(llm) == expected(model)
    own = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    of_the_base = set(map(id, own.base.modules()))
    layers = {name: one for name, one in own.named_modules() if isinstance(one, (LinearBase, VocabParallelEmbedding))}
    beside = {name for name, one in layers.items() if id(one) not in of_the_base}
    assert beside
    assert all(".lora_" in name for name in beside)


def test_a_network_of_its_own_and_a_narrower_one(tmp_path: Path, engine: Engine) -> None:
    base = saved(qwen3(1, vocab_size=112), tmp_path / "base")
    network = llama(3, num_key_value_heads=2, tie_word_embeddings=True)
    adapter = ValueAdapter.from_networks(
        [network], byte_tokenizer(), base_model_name_or_path="alice/base", coefficients=[0.8]
    )
    adapter.save_pretrained(tmp_path / "adapter")
    model = wrapped(base, tmp_path / "adapter")
    llm = engine(exported(tmp_path, base, tmp_path / "adapter"))
    assert tokens(llm) == expected(model)
    for ids in ([40, 50, 60], [40, 100, 60, 111]):  # the network has no row for some, the base has one
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(logits(llm, {"prompt_token_ids": ids}, 112), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("windows", ["base", "body", "both"])
def test_windows(tmp_path: Path, engine: Engine, windows: str) -> None:
    body = gemma3(2, layers=2) if windows != "base" else llama(2)
    commit = on_hub(body, tmp_path / "body")
    base = saved(gemma3(1, layers=4) if windows != "body" else qwen3(1), tmp_path / "base")
    adapter = lora_adapter(tmp_path / "adapter", commit, body=gemma3(2, layers=2) if windows != "base" else llama(2))
    llm = engine(exported(tmp_path, base, adapter))
    assert tokens(llm) == expected(wrapped(base, adapter))


KINDS: dict[str, tuple[Any, Any]] = {
    # one window for all layers, which vLLM keeps beside the model
    "window of the base": (lambda: other("Mistral", 1, sliding_window=16), lambda: llama(2)),
    "window of the body": (lambda: qwen3(1), lambda: other("Mistral", 2, sliding_window=16)),
    "body by way of transformers": (lambda: qwen3(1), lambda: other("Olmo2", 2)),
    "heads of another size": (lambda: qwen3(1), lambda: other("SmolLM3", 2, num_key_value_heads=1)),
    "hidden states narrower than its layers": (
        lambda: qwen3(1),
        lambda: other("OPT", 2, ffn_dim=96, word_embed_proj_dim=32, do_layer_norm_before=False),
    ),
    "queries, keys and values in one": (lambda: qwen3(1), lambda: other("Phi3", 2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_architectures(kind: str, tmp_path: Path, engine: Engine) -> None:
    """Each with settings that vLLM keeps for one model alone."""
    base, body = KINDS[kind]
    commit = on_hub(body(), tmp_path / "body")
    place = saved(base(), tmp_path / "base")
    adapter = lora_adapter(tmp_path / "adapter", commit, body=body())
    model = wrapped(place, adapter)
    # first, since vLLM changes the classes of the models that it runs by way of transformers
    wanted, said = expected_logits(model, PROMPTS[1]), expected(model)
    llm = engine(exported(tmp_path, place, adapter))
    torch.testing.assert_close(logits(llm, PROMPTS[1]), wanted, rtol=0, atol=2e-5)
    assert tokens(llm) == said


def test_rows_in_another_order_are_refused(tmp_path: Path, engine: Engine) -> None:
    """vLLM sorts the heads of such layers anew when it loads them, and a LoRA has them as transformers has."""
    commit = on_hub(other("Bloom", 2, n_layer=2, n_head=2), tmp_path / "body")
    base = saved(qwen3(1), tmp_path / "base")
    body = other("Bloom", 2, n_layer=2, n_head=2)
    adapter = lora_adapter(tmp_path / "adapter", commit, body=body, target_modules=["query_key_value"])
    with pytest.raises(ConfigError, match="keeps in another order"):
        engine(exported(tmp_path, base, adapter))


def test_a_tokenizer_without_an_end(tmp_path: Path, engine: Engine) -> None:
    """The base's settings name one; answers end with it behind the adapter's text."""
    commit = on_hub(llama(2), tmp_path / "body")
    base, tokenizer = tmp_path / "base", byte_tokenizer()
    qwen3(1).save_pretrained(base)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(base)
    free = wrapped(base, lora_adapter(tmp_path / "free", commit))
    said = byte_tokenizer().decode(expected(free, PROMPTS[:1])[0])
    adapter = lora_adapter(tmp_path / "adapter", commit, stop_strings=[said[2:4]])
    ended = expected(wrapped(base, adapter), PROMPTS[:1])[0]
    assert tokens(engine(exported(tmp_path, base, adapter)), PROMPTS[:1])[0] == [*ended, 2]


def test_loras_of_other_shapes(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, _, commit = demo
    adapter = lora_adapter(
        tmp_path / "other",
        commit,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        rank_pattern={"v_proj": 2, "down_proj": 7},
        use_rslora=True,
    )
    llm = engine(exported(tmp_path, base, adapter))
    torch.testing.assert_close(
        logits(llm, PROMPTS[1]), expected_logits(wrapped(base, adapter), PROMPTS[1]), rtol=0, atol=1e-5
    )


def test_two_adapters_on_one_body(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, adapter, commit = demo
    other = lora_adapter(tmp_path / "other", commit, seed=9, coefficients=[0.4, -0.2], end_weight=0.5)
    directory = exported(tmp_path, base, adapter, other)
    block = json.loads((directory / "config.json").read_text())["value_adapter"]
    assert [voice["weight"] for voice in block["voices"]] == pytest.approx([0.6, -0.5, 0.4])
    assert tokens(engine(directory)) == expected(wrapped(base, adapter, other))


def test_the_scale_is_set_when_the_engine_starts(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, adapter, _ = demo
    model = wrapped(base, adapter)
    model.set_scale("a0", 0.5)
    llm = engine(exported(tmp_path, base, adapter), hf_overrides={"value_adapter_scale": 0.5})
    torch.testing.assert_close(logits(llm, PROMPTS[1]), expected_logits(model, PROMPTS[1]), rtol=0, atol=1e-5)


def test_the_tuned_network_drafts(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, adapter, _ = demo
    directory = exported(tmp_path, base, adapter, draft=True)
    drafting = {"method": "draft_model", "model": str(directory / "draft"), "num_speculative_tokens": 3}
    llm = engine(directory, speculative_config=drafting)
    assert tokens(llm) == expected(wrapped(base, adapter))


def test_answers_end_at_the_adapters_texts(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, _, commit = demo
    free = wrapped(base, lora_adapter(tmp_path / "free", commit))
    said = byte_tokenizer().decode(expected(free, PROMPTS[1:2], max_new_tokens=20)[0])
    stop = said[4:6]
    adapter = lora_adapter(tmp_path / "ends", commit, stop_strings=[stop])
    model = wrapped(base, adapter)
    llm = engine(exported(tmp_path, base, adapter))
    ended = expected(model, PROMPTS[1:2])[0]
    assert len(ended) < 20
    assert tokens(llm, PROMPTS[1:2])[0] == [*ended, 2]
    assert tokens(llm, PROMPTS[1:2], extra_args={"value_adapter_stops": 0}) == expected(free, PROMPTS[1:2])
    assert tokens(llm, PROMPTS[1:2], min_tokens=12)[0][:12] == expected(free, PROMPTS[1:2])[0][:12]
    assert tokens(llm, PROMPTS[1:2], ignore_eos=True)[0][:8] == expected(free, PROMPTS[1:2])[0][:8]


def test_chats(demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine) -> None:
    base, adapter, _ = demo
    model = wrapped(base, adapter)
    llm = engine(exported(tmp_path, base, adapter))
    messages = [{"role": "user", "content": "What is it?"}]
    inputs = model.chat_inputs(messages)
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    params = vllm.SamplingParams(max_tokens=12, temperature=0)
    (got,) = llm.chat([messages], params, use_tqdm=False)
    assert list(got.outputs[0].token_ids) == said


def test_other_models_are_served_as_before(tmp_path: Path, engine: Engine) -> None:
    """The plugin is loaded with every model of an environment."""
    base = saved(qwen3(1), tmp_path / "base")
    llm = engine(base)
    assert len(tokens(llm, ignore_eos=True)[0]) == 20


def test_what_the_engine_refuses(
    demo: tuple[Path, Path, str], tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = demo
    directory = exported(tmp_path, base, adapter)
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # without it vLLM itself says so
    with pytest.raises(Exception, match="start it with --max-model-len 512"):
        engine(directory, max_model_len=1024)
    with pytest.raises(Exception, match="generate tokens from tokens"):
        engine(directory, runner="pooling", convert="embed")
    weights = load_file(directory / "value_networks.safetensors")
    missing = "lora_0/model.layers.1.self_attn.k_proj.lora_B"
    save_file({name: one for name, one in weights.items() if name != missing}, directory / "value_networks.safetensors")
    with pytest.raises(ConfigError, match=r"for one, 'model.layers.1.self_attn.k_proj.lora_B'"):
        engine(directory)
    config = json.loads((directory / "config.json").read_text())
    config["value_adapter"]["version"] = 9
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="has version 9"):
        engine(directory)
