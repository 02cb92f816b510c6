"""What `valueadapter export --to vllm` writes and refuses; runs without vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server  # noqa: F401  # a fixture
from safetensors.torch import load_file
from served_models import BODY, PREFIX, llama, lora_adapter, on_hub, qwen3, saved, with_lora
from tiny import byte_tokenizer, tiny_model
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from testkit.full_tokenizers import FULL_SIZE_TOKENIZERS, full_size_tokenizer
from valueadapter import ValueAdapter
from valueadapter.artifact.config import Message
from valueadapter.demonstrations.encoding import prompt_ids
from valueadapter.errors import (
    ArtifactError,
    ConfigError,
    IncompatibleBaseError,
    MissingFileError,
    UnsupportedModeError,
)
from valueadapter.forward.prefix_tokens import begins_texts, prefix_ids
from valueadapter.model.served_tokenizer import ServedTokenizer
from valueadapter.model.vllm_export import GivenAdapter, VllmExport, export_to_vllm
from valueadapter.serving.directory import Served

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(qwen3(1), tmp_path / "base")


@pytest.fixture
def commit(server: Any, tmp_path: Path) -> str:  # noqa: F811
    return on_hub(llama(2), tmp_path / "body")


def export(base: Path | str, output: Path, *adapters: Path, **options: Any) -> VllmExport:
    return export_to_vllm([GivenAdapter(str(one)) for one in adapters], str(base), output, **options)


def block_of(directory: Path) -> Served:
    return Served.from_json(json.loads((directory / "config.json").read_text())["value_adapter"])


def test_the_directory_names_where_weights_lie_and_holds_the_loras(base: Path, commit: str, tmp_path: Path) -> None:
    adapter = lora_adapter(tmp_path / "adapter", commit)
    made = export(base, tmp_path / "served", adapter)
    served = block_of(made.directory)
    config = json.loads((made.directory / "config.json").read_text())
    theirs = json.loads((base / "config.json").read_text())
    assert {**config, "architectures": theirs["architectures"]}.items() >= theirs.items()
    assert (served.base.name, served.base.revision) == (str(base), None)
    assert [(one.weight, one.body and one.body.name, bool(one.lora_ranks)) for one in served.voices] == [
        (0.6, BODY, True),
        (-0.3, BODY, False),
    ]
    assert (served.base_weight, served.end_weight, served.ends) == (0.7, -2.0, (2,))
    network = ValueAdapter.from_pretrained(adapter).networks[0]
    layer = network.base_model.model.model.layers[0].mlp.up_proj  # type: ignore[union-attr]
    tensors = load_file(made.directory / "value_networks.safetensors")
    name = "lora_0/model.layers.0.mlp.up_proj"
    change = tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"]
    torch.testing.assert_close(change, layer.get_delta_weight("default"))
    assert {*tensors} == {f"lora_0/{m}.lora_{f}" for m in served.voices[0].lora_ranks for f in "AB"}


def test_settings_round_trip(base: Path, commit: str, tmp_path: Path) -> None:
    served = block_of(export(base, tmp_path / "s", lora_adapter(tmp_path / "a", commit)).directory)
    assert Served.from_json(json.loads(json.dumps(served.to_json()))) == served
    with pytest.raises(ConfigError, match="export it again"):
        Served.from_json({"version": 1, "base": {"name": "a"}})


def test_scales_of_stacked_adapters_are_in_the_weights(base: Path, commit: str, tmp_path: Path) -> None:
    a, b = (lora_adapter(tmp_path / name, commit, seed=seed) for name, seed in (("a", 5), ("b", 6)))
    given = [GivenAdapter(str(a), 0.5), GivenAdapter(str(b))]
    served = block_of(export_to_vllm(given, str(base), tmp_path / "served").directory)
    assert served.base_weight == pytest.approx(1 + 0.5 * -0.3 - 0.3)
    assert served.end_weight == pytest.approx(-3.0)
    assert [voice.weight for voice in served.voices] == pytest.approx([0.3, -0.45, 0.6])  # the body counts for both


def test_an_earlier_export_is_replaced_and_nothing_else(base: Path, commit: str, tmp_path: Path) -> None:
    adapter, output = lora_adapter(tmp_path / "adapter", commit), tmp_path / "served"
    export(base, output, adapter, draft=True)
    export(base, output, adapter)
    assert not (output / "draft").exists()
    (tmp_path / "mine").mkdir()
    for place, why in ((tmp_path / "mine", "holds something else"), (output, "'notes.md', which is none of it")):
        (place / "notes.md").write_text("keep")
        before = {path.name: path.read_bytes() for path in place.iterdir()}
        with pytest.raises(ArtifactError, match=why):
            export(base, place, adapter)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    with pytest.raises(ArtifactError, match="is a file"):
        export(base, output / "notes.md", adapter)
    assert not list(tmp_path.glob(".valueadapter*"))


def test_the_context_is_the_shortest_of_all_models(base: Path, server: Any, tmp_path: Path) -> None:  # noqa: F811
    """GPT-2 calls it `n_positions`."""
    for name, network, longest in (("gpt2", tiny_model("gpt2", seed=3), 256), ("llama", llama(3), 512)):
        adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base")
        adapter.save_pretrained(tmp_path / name)
        made = export(base, tmp_path / f"served-{name}", tmp_path / name)
        assert made.context == longest
        assert made.max_model_len == (longest if longest < 512 else None)  # the base reads 512


def test_what_cannot_be_served_is_refused_with_a_way_out(base: Path, commit: str, tmp_path: Path) -> None:
    def refused(
        error: type[Exception], match: str, adapter: Path, *more: Path, on: Path = base, **options: Any
    ) -> None:
        with pytest.raises(error, match=match):
            export(on, tmp_path / "served", adapter, *more, **options)
        assert not (tmp_path / "served").exists()

    good = lora_adapter(tmp_path / "good", commit)
    with pytest.raises(ConfigError, match="at least one"):
        export_to_vllm([], str(base), tmp_path / "served")
    apart = lora_adapter(tmp_path / "apart", commit, reads_prefix=[False, True])
    refused(UnsupportedModeError, "every network reads.*--no-base-prefix", apart)
    assert export(base, tmp_path / "ok", apart, use_prefix=False).prefix_tokens == 0
    other = lora_adapter(tmp_path / "other", commit, base_prefix="Another.")
    refused(UnsupportedModeError, "different prefixes", good, other)
    wide = llama(4, vocab_size=112)
    wide.save_pretrained(tmp_path / "wide")
    byte_tokenizer(90).save_pretrained(tmp_path / "wide")
    refused(IncompatibleBaseError, "another vocabulary.*transformers.*train an adapter", good, on=tmp_path / "wide")
    dora = with_lora(llama(2), commit, use_dora=True)
    ValueAdapter.from_networks([dora], byte_tokenizer(), base_model_name_or_path=BODY).save_pretrained(tmp_path / "d")
    refused(ConfigError, "use_dora", tmp_path / "d")
    cascade = ValueAdapter.from_networks(
        [llama(3)], byte_tokenizer(), base_model_name_or_path=BODY, connection="cascade"
    )
    cascade.save_pretrained(tmp_path / "c")
    refused(UnsupportedModeError, "'cascade'", tmp_path / "c")
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="a finite number"):
            export_to_vllm([GivenAdapter(str(good), scale)], str(base), tmp_path / "served")
    head = lora_adapter(tmp_path / "head", commit, target_modules=["lm_head", "q_proj"])
    refused(ConfigError, "'lm_head', the output head", head)
    refused(MissingFileError, "neither a directory here nor of the form", good, on=tmp_path / "none" / "such")
    stops = lora_adapter(tmp_path / "stops", commit, stop_strings=["z"])
    endless, tokenizer = saved(qwen3(1, eos_token_id=None), tmp_path / "endless"), byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(endless)
    refused(ConfigError, "names no token that ends a text", stops, on=endless)
    padded = saved(qwen3(1, vocab_size=112), tmp_path / "padded")
    refused(UnsupportedModeError, "without --draft", good, on=padded, draft=True)


def test_tokens_that_begin_with_an_end_end_answers_by_themselves(base: Path, commit: str, tmp_path: Path) -> None:
    adapter = lora_adapter(tmp_path / "adapter", commit, stop_strings=["z", "qq"])
    made = export(base, tmp_path / "served", adapter)
    ends = json.loads((made.directory / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(ends) == sorted({2, *byte_tokenizer()("z")["input_ids"]})  # not the first letter of the other one
    assert block_of(made.directory).stop_strings == ("z", "qq")


def test_settings_that_transformers_would_not_save_stay_as_they_are(base: Path, commit: str, tmp_path: Path) -> None:
    """A temperature without sampling is no reason not to serve a base."""
    given = {"eos_token_id": 2, "temperature": 0.7, "top_p": 0.9, "do_sample": False}
    (base / "generation_config.json").write_text(json.dumps(given))
    made = export(base, tmp_path / "served", lora_adapter(tmp_path / "adapter", commit))
    written = json.loads((made.directory / "generation_config.json").read_text())
    assert {key: written[key] for key in given} == {**given, "eos_token_id": [2]}


# -- the tokenizer -----------------------------------------------------------------------------------------------------
def served(tokenizer: Any, prefix: Any, place: Path) -> tuple[Any, ServedTokenizer]:
    made = ServedTokenizer(tokenizer, prefix, prefix_ids(prefix, tokenizer))
    place.mkdir()
    made.save(place, 128)
    return AutoTokenizer.from_pretrained(place), made


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def beginning_with_bos() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return tokenizer


@pytest.mark.parametrize("make", [byte_tokenizer, beginning_with_bos])
@pytest.mark.parametrize("prefix", [PREFIX, (Message("user", "a"), Message("assistant", "b"))])
def test_every_text_and_chat_begins_with_the_prefix(make: Any, prefix: Any, tmp_path: Path) -> None:
    tokenizer = make()
    own, made = served(tokenizer, prefix, tmp_path / "t")
    ids, skipped = list(made.ids), int(begins_texts(tokenizer))
    assert own("x y")["input_ids"] == [*ids, *prompt_ids("x y", tokenizer)[skipped:]]
    assert own("x y", add_special_tokens=False)["input_ids"] == prompt_ids("x y", tokenizer)[skipped:]
    messages = [{"role": "user", "content": "Why?"}]
    assert made.chats
    assert chat_ids(own, messages) == [*ids, *chat_ids(tokenizer, messages)[skipped:]]
    assert own.model_max_length == 128


def test_each_turn_may_begin_as_a_text(tmp_path: Path) -> None:
    """As in Llama 2: only the first turn's token gives its place to the prefix."""
    tokenizer = beginning_with_bos()
    turn = "{{ bos_token }}[{{ message['role'] }}] {{ message['content'] }}"
    tokenizer.chat_template = "{% for message in messages %}" + turn + "{% endfor %}"
    own, made = served(tokenizer, PREFIX, tmp_path / "t")
    messages = [{"role": role, "content": "Why?"} for role in ("user", "assistant", "user")]
    assert made.chats
    assert chat_ids(own, messages) == [*made.ids, *chat_ids(tokenizer, messages)[1:]]


@pytest.mark.real
@pytest.mark.parametrize("name", FULL_SIZE_TOKENIZERS)
def test_real_tokenizers_begin_with_the_prefix(name: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(full_size_tokenizer(name))
    prefix = "Question: 1 + 1?\nAnswer: 2\n\nQuestion: caf\u00e9 {{ x }} 'a' \\n?\nAnswer: no\n\n"
    own, made = served(tokenizer, prefix, tmp_path / "t")
    skipped = int(begins_texts(tokenizer))
    for text in ("Question: 2 + 2?\nAnswer:", " x", "\n\ny", "\u6771\u4eac"):
        assert own(text)["input_ids"] == [*made.ids, *prompt_ids(text, tokenizer)[skipped:]]
    if made.chats:
        messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        messages.append({"role": "user", "content": "And?"})
        assert chat_ids(own, messages) == [*made.ids, *chat_ids(tokenizer, messages)[skipped:]]
    ids = own("a b")["input_ids"][len(made.ids) :]
    assert own.decode(ids) == tokenizer.decode(prompt_ids("a b", tokenizer)[skipped:])
