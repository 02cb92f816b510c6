"""What vLLM changes in its settings for a served directory, before it plans anything."""

from __future__ import annotations

import logging

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from valueadapter.errors import ConfigError
from valueadapter.serving.directory import KEY, Served

STOPPING = "valueadapter.serving.stopping:StopsOfTheAdapter"

logger = logging.getLogger(__name__)


class EngineSettings(VerifyAndUpdateConfig):
    """Called by vLLM for our architecture, in each of its processes."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Checks the context, and has answers end at the adapters' texts.

        The logits processor is named here, and not by an entry point, so that vLLM knows of it: it then waits for the
        tokens that the processor looks at, also where it schedules ahead.

        Raises:
            ConfigError: the engine's context is longer than one of the models reads, or it is to give something else
                than tokens, or to read something else.
        """
        model = vllm_config.model_config
        if model.runner_type != "generate" or model.enable_prompt_embeds:
            what = "reads embeddings" if model.runner_type == "generate" else f"is a {model.runner_type} runner"
            raise ConfigError(
                f"base and value networks generate tokens from tokens, and the engine {what}; start it without "
                "--runner, --convert and --enable-prompt-embeds, or serve the base alone for that"
            )
        served = Served.from_json(getattr(model.hf_config, KEY))
        if served.context is not None and model.max_model_len > served.context:
            raise ConfigError(
                f"the engine would read {model.max_model_len:,} positions, and a model of the sum reads "
                f"{served.context:,} at most; start it with --max-model-len {served.context}"
            )
        if not served.stop_strings:
            return
        if vllm_config.speculative_config is None:
            model.logits_processors = [*(model.logits_processors or ()), STOPPING]
        else:
            logger.warning(
                "with speculative decoding vLLM runs no logits processors, so that answers do not end at %s by "
                "themselves; name it in the requests: stop=%s",
                " or ".join(map(repr, served.stop_strings)),
                list(served.stop_strings),
            )
