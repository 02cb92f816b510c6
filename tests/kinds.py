"""Tiny models of architectures that prepare each step of generation in a way of their own, or keep another state."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny import SIZE
from transformers import PreTrainedModel

_SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_RECURRENT = {"vocab_size": SIZE, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8}
_OLD = {"vocab_size": SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 3.0, 5.0, 2.0],
    "original_max_position_embeddings": 24,
}
SWITCH = 24
"""Length at which "phi3" takes its second set of rotary factors."""
OF_THEIR_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {**_RECURRENT, "time_step_rank": 4}),
    "mamba2": ("Mamba2", {**_RECURRENT, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("FalconMamba", {**_RECURRENT, "time_step_rank": 4}),
    "phi3": ("Phi3", {**_SHAPE, "rope_parameters": _LONG, "original_max_position_embeddings": SWITCH}),
    "bamba": (
        "Bamba",
        {**_SHAPE, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "jamba": (
        "Jamba",
        {**_SHAPE, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    ),
    "bloom": ("Bloom", {"vocab_size": SIZE, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "openai-gpt": ("OpenAIGPT", _OLD),
    "ctrl": ("CTRL", {**_OLD, "dff": 32}),
    "cpmant": ("CpmAnt", {**_SHAPE, "dim_head": 8, "dim_ff": 32}),
    "rwkv": ("Rwkv", {"vocab_size": SIZE, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2}),
    "minimax": (
        "MiniMax",
        {**_SHAPE, "head_dim": 8, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "xlnet": ("XLNet", {"vocab_size": SIZE, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}),
    "xlm": ("XLM", {"n_words": SIZE, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "causal": True, "mask_token_id": 5}),
}
NO_PADDING = {"rwkv", "xlnet", "xlm"}
"""Alone, these know nothing of padding either."""
CACHED_OTHERWISE = {"cpmant", "xlm"}
"""Alone, these do not give with a cache what they give without."""
NO_BEAMS = {"rwkv"}
"""Alone, these have no beam search."""
_CLASSES = {"OpenAIGPT": "OpenAIGPTLMHeadModel", "CTRL": "CTRLLMHeadModel", "XLNet": "XLNetLMHeadModel"}
_CLASSES |= {"XLM": "XLMWithLMHeadModel"}


def model_of(kind: str, *, seed: int, width: int = SIZE) -> PreTrainedModel:
    """A model of two layers, 16 wide, with large weights, so that a broken cache shows.

    Args:
        kind: one of `OF_THEIR_OWN`.
        seed: draws the weights.
        width: columns of the logits.
    """
    name, shape = OF_THEIR_OWN[kind]
    shape = {**shape, ("n_words" if kind == "xlm" else "vocab_size"): width}
    config = getattr(transformers, f"{name}Config")(**shape, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    model: PreTrainedModel = getattr(transformers, _CLASSES.get(name, f"{name}ForCausalLM"))(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.endswith(("A_log", "dt_bias", ".D", "time_decay", "dt_proj.bias")):
                parameter.normal_(std=0.35, generator=generator)
    model.config.use_cache = True
    return model.requires_grad_(False).eval()  # as it is when wrapped: torch folds otherwise where gradients are wanted
