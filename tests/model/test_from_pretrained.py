"""Loading by Hub ID: the recorded base at its revision, networks named by ID, LoRA networks, the Trainer's push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters_on_hub import server as server
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file, save_file
from test_calibration import other_vocabulary
from tiny import byte_tokenizer, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel, pipeline

from testkit.local_hub import LocalHub
from valueadapter import (
    ArtifactError,
    ConfigError,
    IncompatibleBaseError,
    ValueAdapter,
    ValueAdapterConfig,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    build_network,
)
from valueadapter.artifact.verification import sha256
from valueadapter.errors import UnsupportedModeError
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.bridge import alignment_name

IDS = torch.randint(3, 97, (1, 6), generator=torch.Generator().manual_seed(0))


def upload(repo_id: str, model: PreTrainedModel, folder: Path, size: int = 97) -> str:
    """Publishes a model with the byte tokenizer; the commit."""
    model.save_pretrained(folder)
    byte_tokenizer(size).save_pretrained(folder)
    HfApi().create_repo(repo_id, exist_ok=True)
    return str(HfApi().upload_folder(repo_id=repo_id, folder_path=folder).oid)


@pytest.fixture
def base(server: LocalHub, tmp_path: Path) -> str:
    return upload("alice/base", tiny_model("llama", seed=1), tmp_path / "base")


def adapter_of(*networks: PreTrainedModel | str, commit: str | None = None, **options: Any) -> ValueAdapter:
    return ValueAdapter.from_networks(
        networks, byte_tokenizer(), base_model_name_or_path="alice/base", base_model_revision=commit, **options
    )


def test_auto_model_loads_recorded_base_and_adapter(base: str, tmp_path: Path) -> None:
    """`AutoModelForCausalLM.from_pretrained("user/adapter")` and `pipeline` take the base at the recorded commit."""
    adapter_of(tiny_model("gpt2", seed=2), commit=base, scale=0.5).push_to_hub("alice/adapter")
    upload("alice/base", tiny_model("llama", seed=8), tmp_path / "base")  # the base moves on
    expected = tiny_model("llama", seed=1)(IDS).logits + 0.5 * tiny_model("gpt2", seed=2)(IDS).logits
    model = AutoModelForCausalLM.from_pretrained("alice/adapter")
    assert isinstance(model, ValueAdapterForCausalLM)
    torch.testing.assert_close(model(IDS).logits, expected)
    assert AutoModelForCausalLM.from_pretrained("alice/adapter", dtype=torch.bfloat16).dtype == torch.bfloat16
    generate = pipeline("text-generation", model="alice/adapter")
    assert generate("AB", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("AB")


def test_a_directory_of_ones_own_loads_the_same(base: str, tmp_path: Path) -> None:
    """Without the Hub for the adapter; another base by ID and a loaded base both serve."""
    adapter_of(tiny_model("llama", seed=2)).save_pretrained(tmp_path / "a")
    by_id = ValueAdapterForCausalLM.from_pretrained("alice/base", tmp_path / "a", scale=2.0)
    loaded = ValueAdapterForCausalLM.from_pretrained(by_id.base, tmp_path / "a", scale=2.0)
    assert torch.equal(by_id(IDS).logits, loaded(IDS).logits)
    assert by_id.scales == {"default": 2.0}


def test_networks_named_by_hub_id_are_pinned(base: str, tmp_path: Path) -> None:
    """An expert and a reference on the Hub: no weights in the artifact, and later commits change nothing."""
    first = upload("alice/expert", tiny_model("llama", seed=3), tmp_path / "e")
    upload("alice/reference", tiny_model("llama", seed=4), tmp_path / "r")
    adapter = adapter_of("alice/expert", "alice/reference", coefficients=[1, -1])
    assert adapter.config.networks[0].revision == first
    adapter.push_to_hub("alice/proxy")
    assert not any(name.endswith(".safetensors") for name in HfApi().list_repo_files("alice/proxy"))
    upload("alice/expert", tiny_model("llama", seed=5), tmp_path / "e")
    model = ValueAdapterForCausalLM.from_pretrained("alice/base", "alice/proxy")
    parts = [tiny_model("llama", seed=seed)(IDS).logits for seed in (1, 3, 4)]
    torch.testing.assert_close(model(IDS).logits, parts[0] + parts[1] - parts[2])


def test_a_named_network_of_another_vocabulary_is_refused(base: str, tmp_path: Path) -> None:
    """The message says what differs."""
    upload("alice/other", tiny_model("llama", seed=3, width=90), tmp_path / "o", size=90)
    with pytest.raises(IncompatibleBaseError, match="another vocabulary"):
        adapter_of("alice/other")


def test_a_lora_network_saves_and_loads(base: str, tmp_path: Path) -> None:
    """A PEFT checkpoint under value_network/, its base pinned; without a revision it is refused."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    network = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("alice/base"), lora).eval()
    network.peft_config["default"].revision = base
    adapter_of(network).save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "value_network" / "adapter_model.safetensors").exists()
    loaded = ValueAdapterForCausalLM.from_pretrained("alice/base", tmp_path / "a")
    expected = tiny_model("llama", seed=1)(IDS).logits + network(IDS).logits
    torch.testing.assert_close(loaded(IDS).logits, expected)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(loaded.generate(IDS, **greedy), loaded.generate(IDS, **greedy, use_cache=False))
    trainable = ValueAdapterForCausalLM.from_pretrained("alice/base", tmp_path / "a", is_trainable=True)
    assert {name.split(".")[-2] for name, p in trainable.named_parameters() if p.requires_grad} == {"default"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(iter(t))), "is missing"),
        (lambda t: t.update(more=torch.zeros(2)), "'more' does not belong"),
    ],
    ids=["missing tensor", "extra tensor"],
)
def test_a_damaged_lora_network_is_refused(base: str, tmp_path: Path, change: Any, message: str) -> None:
    """As for any other network: missing and extra tensors, and a base that is not pinned."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    network = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("alice/base"), lora)
    network.peft_config["default"].revision = base
    adapter_of(network).save_pretrained(tmp_path / "a")
    settings = tmp_path / "a" / "value_network" / "adapter_config.json"
    pinned = settings.read_text()
    settings.write_text(pinned.replace(base, "main"))
    with pytest.raises(ArtifactError, match="40-hex commit"):
        ValueAdapter.from_pretrained(tmp_path / "a")
    settings.write_text(pinned)
    path = settings.with_name("adapter_model.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["networks"][0]["sha256"] = {path.name: sha256(path)}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message):
        ValueAdapter.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("names", [("mine",), ("default", "mine")])
def test_the_lora_that_acts_is_saved_whatever_its_name(base: str, tmp_path: Path, names: tuple[str, ...]) -> None:
    """Alone, and as the only one that a PEFT checkpoint has; of several that act none."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    network = peft.get_peft_model(AutoModelForCausalLM.from_pretrained("alice/base"), lora, adapter_name=names[0])
    for name in names[1:]:
        network.add_adapter(name, lora)
    network.set_adapter("mine")
    for config in network.peft_config.values():
        config.revision = base
    adapter = adapter_of(network)
    adapter.save_pretrained(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a" / "value_network").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    loaded = ValueAdapter.from_pretrained(tmp_path / "a")
    assert torch.equal(loaded.networks[0](IDS).logits, network.eval()(IDS).logits)
    if len(names) > 1:
        network.base_model.set_adapter(list(names))
        with pytest.raises(ConfigError, match=r"active in it are \['default', 'mine'\]"):
            adapter.save_pretrained(tmp_path / "b")


def test_a_base_may_be_a_peft_model(tmp_path: Path) -> None:
    """Value adapters add to a base that carries a LoRA of its own."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = peft.get_peft_model(tiny_model("llama", seed=1), lora).eval()
    alone = base(IDS).logits.clone()
    model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer())
    model.add_adapter(adapter_of(tiny_model("llama", seed=2)), "default")
    torch.testing.assert_close(model(IDS).logits, alone + tiny_model("llama", seed=2)(IDS).logits)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **greedy), model.generate(IDS, **greedy, use_cache=False))


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig, peft.PromptEncoderConfig])
def test_a_base_with_virtual_tokens_is_refused(config: Any) -> None:
    """They stand in every cache and in no text, so that base and networks went on from different places."""
    base = peft.get_peft_model(tiny_model("llama", seed=1), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModeError, match="tuned prompt"):
        ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer())


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_the_trainer_publishes_the_adapter_alone(base: str, tmp_path: Path) -> None:
    """`push_to_hub=True`: weights, card and config arrive; no optimizer state, no training arguments."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    model.add_adapter(adapter_of(build_network(model.base)), "default", is_trainable=True)
    args = ValueTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        push_to_hub=True,
        hub_model_id="alice/trained",
        data_name="letters",
    )
    trainer = ValueTrainer(model, args, train_dataset=Dataset.from_list([{"prompt": "Q", "completion": "AB"}] * 8))
    trainer.train()  # pushes at every save, and at the end
    files = set(HfApi().list_repo_files("alice/trained"))
    assert files >= {"config.json", "README.md", "tokenizer.json", "value_network/model.safetensors"}
    assert not any(name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name for name in files)
    assert ModelCard.load("alice/trained").data.library_name == "valueadapter"
    loaded = ValueAdapterForCausalLM.from_pretrained("alice/base", "alice/trained")
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits)


def test_a_base_named_by_a_path_is_not_published(server: LocalHub, tmp_path: Path) -> None:
    """Nobody else has that path."""
    adapter = ValueAdapter.from_networks(
        [tiny_model("llama", seed=2)], byte_tokenizer(), base_model_name_or_path=str(tmp_path)
    )
    with pytest.raises(ConfigError, match="Hub ID"):
        adapter.push_to_hub("alice/a")


def test_another_vocabulary_is_said_before_loading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What to expect comes before the weights, and nothing is said where the vocabulary is the same."""
    model = other_vocabulary()
    for part in (model.base, model.base_tokenizer):
        part.save_pretrained(tmp_path / "base")
    model.adapters["default"].save_pretrained(tmp_path / "adapter")
    loaded = ValueAdapterForCausalLM.from_pretrained(tmp_path / "base", tmp_path / "adapter")
    assert "has another vocabulary than the adapter: static map" in caplog.text
    ids = torch.tensor([[7, 8, 9]])
    torch.testing.assert_close(
        loaded(ids).logits, model.base(ids).logits + loaded(ids, output_value_logits=True).value_logits
    )
    (tmp_path / "base" / "model.safetensors").unlink()
    caplog.clear()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        ValueAdapterForCausalLM.from_pretrained(tmp_path / "base", tmp_path / "adapter")
    assert "has another vocabulary" in caplog.text


def test_a_map_that_the_adapter_brings_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared with the map of the two tokenizers, and nothing is written beside the Hub's cache."""
    model = other_vocabulary()
    for part in (model.base, model.base_tokenizer):
        part.save_pretrained(tmp_path / "base")
    adapter, theirs = model.adapters["default"], model.attached.base_side()
    adapter.alignments[alignment_name(theirs)] = VocabularyAlignment.build(adapter.side, theirs)
    adapter.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = ValueAdapterForCausalLM.from_pretrained(tmp_path / "base", tmp_path / "adapter")
    assert (loaded.attached.terms()[0].link.alignment.source == model.attached.terms()[0].link.alignment.source).all()
    assert not (tmp_path / "valueadapter").exists()


def test_one_load_parses_config_and_maps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened and verified is handed down, and nobody reads it anew."""
    adapter, theirs = other_vocabulary().adapters["default"], tmp_path / "base"
    wrapper = other_vocabulary()
    wrapper.base.save_pretrained(theirs)
    wrapper.base_tokenizer.save_pretrained(theirs)
    side = wrapper.attached.base_side()
    adapter.alignments[alignment_name(side)] = VocabularyAlignment.build(adapter.side, side)
    adapter.save_pretrained(tmp_path / "adapter")
    parsed: list[str] = []
    for kind, name in ((ValueAdapterConfig, "from_json"), (VocabularyAlignment, "load")):
        own = getattr(kind, name).__func__
        counted = lambda cls, *args, own=own, name=name, **more: parsed.append(name) or own(cls, *args, **more)  # noqa: E731
        monkeypatch.setattr(kind, name, classmethod(counted))
    ValueAdapterForCausalLM.from_pretrained(str(theirs), tmp_path / "adapter")
    assert sorted(parsed) == ["from_json", "load"]


def test_options_that_would_have_no_effect_are_refused(tmp_path: Path) -> None:
    """Of a base that is loaded already nothing can be chosen; a configuration of PEFT's chooses nothing at all."""
    loaded = tiny_model("llama", seed=1)
    for options, message in (
        ({"dtype": torch.bfloat16}, "^dtype would have no effect: the base is loaded already"),
        ({"torch_device": "cpu", "low_cpu_mem_usage": True}, "^torch_device, low_cpu_mem_usage would have no effect"),
        ({"config": peft.LoraConfig()}, "^config is a LoraConfig of PEFT's"),
    ):
        with pytest.raises(ConfigError, match=message):
            ValueAdapterForCausalLM.from_pretrained(loaded, tmp_path / "none", **options)
