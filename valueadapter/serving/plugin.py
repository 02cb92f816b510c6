"""What vLLM calls when it starts (entry point `vllm.general_plugins`); imports vLLM when it is called."""

from __future__ import annotations

ARCHITECTURE = "ValueAdaptedForCausalLM"
"""Of the `architectures` in the config.json that `valueadapter export --to vllm` writes."""


def register() -> None:
    """Tells vLLM which class runs such a directory. May be called again, as vLLM does in each of its processes."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from valueadapter.serving.engine_settings import EngineSettings

    ModelRegistry.register_model(ARCHITECTURE, f"valueadapter.serving.served_model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = EngineSettings
