"""Models large enough for vLLM's attention on a CPU, and adapters on them whose LoRA lies on a Hub's body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from valueadapter import ValueAdapter

BODY = "alice/body"
PREFIX = "Say it.\n\n"
_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
    "intermediate_size": 96,
}


def seeded(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model with weights of a seed, large enough for a mistake to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def llama(seed: int, **more: Any) -> PreTrainedModel:
    """Two layers, one head of keys and values, 32 wide."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return seeded(LlamaForCausalLM(LlamaConfig(**{**shape, "head_dim": 32, **_COMMON, **more})), seed)


def qwen3(seed: int, **more: Any) -> PreTrainedModel:
    """Three layers, two heads of keys and values, 64 wide."""
    shape = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
    return seeded(Qwen3ForCausalLM(Qwen3Config(**{**shape, "head_dim": 64, **_COMMON, **more})), seed)


def gemma3(seed: int, layers: int = 3) -> PreTrainedModel:
    """Layers that see a window of 16, and one that sees all."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    types = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    config = Gemma3TextConfig(**shape, num_hidden_layers=layers, sliding_window=16, layer_types=types, **_COMMON)
    return seeded(Gemma3ForCausalLM(config), seed)


def other(kind: str, seed: int, **more: Any) -> PreTrainedModel:
    """A model of two layers of another architecture, named as transformers names it."""
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**{**_COMMON, **shape, **more})
    return seeded(getattr(transformers, f"{kind}ForCausalLM")(config), seed)


def saved(model: PreTrainedModel, place: Path) -> Path:
    """A model and its tokenizer in a directory."""
    model.save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def on_hub(model: PreTrainedModel, place: Path, repo_id: str = BODY) -> str:
    """Publishes a model on the Hub of the test; its commit."""
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=saved(model, place)).oid)


def with_lora(body: PreTrainedModel, commit: str, *, seed: int = 5, repo_id: str = BODY, **more: Any) -> Any:
    """A LoRA whose change is large, on a body that lies on the Hub."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **more}
    network = get_peft_model(body, LoraConfig(task_type="CAUSAL_LM", revision=commit, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2, generator=generator)
    network.peft_config["default"].base_model_name_or_path = repo_id
    return network.eval()


def lora_adapter(place: Path, commit: str, *, body: PreTrainedModel | None = None, **more: Any) -> Path:
    """A body with a LoRA minus the body, both behind the prefix, saved."""
    own = llama(2) if body is None else body
    settings: dict[str, Any] = {
        "coefficients": [0.6, -0.3],
        "base_weight": 0.7,
        "end_weight": -2.0,
        "base_prefix": PREFIX,
        "reads_prefix": [True, True],
    }
    lora = {key: more.pop(key) for key in ("seed", "r", "rank_pattern", "target_modules", "use_rslora") if key in more}
    stops = more.pop("stop_strings", ())
    adapter = ValueAdapter.from_networks(
        [with_lora(own, commit, **lora), f"{BODY}@{commit}"],
        byte_tokenizer(),
        base_model_name_or_path=BODY,
        **{**settings, **more},
    )
    adapter.with_config(stop_strings=tuple(stops)).save_pretrained(place)
    return place
