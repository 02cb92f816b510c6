"""The model that users hold: a frozen base whose logits its adapters' value networks add to.

    logits = base + Σ scale · ((w_base - 1) · base + Σ w_i · network_i + w_end · [end of text])

Composition, as a `PreTrainedModel` of its own: training, scoring and every mode of generation call the one `forward`
that computes the sum. Knows nothing of how adapters are trained, stored or found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from valueadapter.adapter.causal_lm import check_no_virtual_tokens
from valueadapter.adapter.injected_lora import check_no_lora_on_lora
from valueadapter.adapter.shared_tensors import is_shared, together
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import MODEL_TYPE
from valueadapter.artifact.config.number import finite
from valueadapter.artifact.config.prefix import RECORDED, GivenPrefix
from valueadapter.compat import cache_by_any_name
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.forward.one_pass import run_together
from valueadapter.forward.sum import Apart
from valueadapter.model.adapter_names import DEFAULT, check_name
from valueadapter.model.attaching import AdapterMethods
from valueadapter.model.call import Call
from valueadapter.model.chat import ChatMethods, Messages
from valueadapter.model.generation import NO_IDS, GenerationMethods
from valueadapter.model.joint_head import HeadMethods, OutputHead
from valueadapter.model.loading import load_both
from valueadapter.model.mixed_rows import LOSS_ARGUMENTS, AdapterNames, forward_rows
from valueadapter.model.outputs import ValueAdapterModelConfig, ValueAdapterOutput
from valueadapter.model.registry import AttachedAdapters
from valueadapter.model.saving import SavingMethods

ValueLoss = Callable[..., torch.Tensor]
"""A loss of one adapter's `Term` and ids, mask and positions of (batch, seq); the last two may be None."""


class ValueAdapterForCausalLM(
    AdapterMethods,
    ChatMethods,
    GenerationMethods,
    HeadMethods,
    SavingMethods,
):
    """A base model with value adapters: logits = base logits + Σ scale · value logits.

    `from_pretrained(base, adapter)` loads both; `ValueAdapterForCausalLM(base)` is the base itself. Then

    * attach: `load_adapter`, `add_adapter`, `hotswap_adapter`, `add_weighted_adapter`, `delete_adapter`, `unload`
    * choose: `set_adapter`, `disable_adapter`, `only`, `set_scale`, `set_weights`, `set_base_prefix`
    * ask: `adapters`, `adapter_configs`, `active_adapters`, `scales`, `weights`, `get_adapter_status`, `get_base_model`
    * run: `generate`, `forward`; `chat_inputs` for chats; `adapter_names=[…]` for other adapters in each row
    * keep: `save_pretrained`, `push_to_hub`; of an adapter, never of the base

    All else is transformers' and torch's. The base is frozen and never trained here, and stays in eval mode.

    Args:
        base: a causal language model (a PEFT-wrapped one works too).
        tokenizer: the base's tokenizer, needed to compare vocabularies where the base's name does not lead to it.
        strict: refuse negative scales and weights, which can undo safety training.

    Source: Lu et al., "Transferable Post-training via Inverse Value Learning", NAACL 2025, arXiv 2410.21027.
    """

    config_class = ValueAdapterModelConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(
        self, base: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None, strict: bool = False
    ) -> None:
        """Wraps a loaded base without adapters; arguments as above."""
        check_no_virtual_tokens(base)
        own = {"name_or_path": base.config.name_or_path, "return_dict": base.config.return_dict}
        super().__init__(ValueAdapterModelConfig(text_config=base.config, **own))
        self.base = base.requires_grad_(False).eval()
        self.attached = AttachedAdapters(self._modules, tokenizer, strict=strict)
        self.value_networks = nn.ModuleDict()
        self.output_head = OutputHead()
        self._no_split_modules = set(getattr(base, "_no_split_modules", None) or ())

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | PreTrainedModel,
        adapter: str | Path | ValueAdapter | None = None,
        *,
        scale: float | None = None,
        base_prefix: GivenPrefix = RECORDED,
        revision: str | None = None,
        adapter_name: str = DEFAULT,
        tokenizer: PreTrainedTokenizerBase | None = None,
        is_trainable: bool = False,
        strict: bool = False,
        **kwargs: Any,
    ) -> ValueAdapterForCausalLM:
        """Loads base and adapter and puts them together.

        Args:
            base: a loaded model, or a Hub ID or directory. With one argument only, it names an *adapter*, and the
                base is the one recorded in it, at its recorded revision.
            adapter: Hub ID, directory, or loaded adapter.
            scale: how strongly the adapter acts; its own recommendation by default.
            base_prefix: what only the base reads before the prompt; the adapter's own by default, None for nothing.
            revision: branch, tag or commit of the adapter's repository (`base_revision` for the base's).
            adapter_name: the adapter's name on this model.
            tokenizer: the base's tokenizer; found by the base's name by default.
            is_trainable: whether the adapter's weights take gradients; see `load_adapter`.
            strict: refuse negative scales and weights.
            kwargs: `base_revision`; `subfolder`, `force_download` for the adapter; `token`, `cache_dir`,
                `local_files_only` for both; anything else goes to the base's `from_pretrained` (`dtype`, `device_map`,
                `attn_implementation`, …).

        Returns:
            The wrapper, in eval mode; the adapter has the base's device and dtype.

        Raises:
            IncompatibleBaseError: the base's vocabulary cannot be aligned with the adapter's.
            AdapterNameError: no name for an adapter; said before anything is loaded.
            ArtifactError, ConfigError: the adapter is damaged, or no adapter.
            ConfigError: an argument that would have no effect, as `dtype` for a base that is loaded already.
            huggingface_hub.errors: a repository or revision cannot be had.
        """
        check_name(adapter_name)
        if scale is not None:
            finite(f"scale of '{adapter_name}'", scale)
        found = load_both(base, adapter, revision=revision, tokenizer=tokenizer, **kwargs)
        model = cls(found.base, tokenizer=found.tokenizer, strict=strict)
        model.attached.take_side(found.side)
        model.add_adapter(found.adapter, adapter_name, scale=scale, base_prefix=base_prefix, is_trainable=is_trainable)
        model.eval()
        return model

    # -- the sum -----------------------------------------------------------------------------------------------------
    @cache_by_any_name
    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers' own is untyped
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, Any] | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_value_logits: Apart = False,
        messages: Messages | None = None,
        adapter_names: AdapterNames | None = None,
        value_loss: ValueLoss | None = None,
        **kwargs: Any,
    ) -> ValueAdapterOutput:
        """Runs the base and the networks of the active adapters and adds their logits.

        Args:
            input_ids: (batch, seq) token ids of the base's vocabulary.
            attention_mask: (batch, past + seq), 1 where there is a token, 0 where there is padding.
            position_ids: (batch, seq).
            cache: what an earlier call returned; an empty transformers cache also serves.
            inputs_embeds: (batch, seq, hidden) in place of `input_ids`, only while no adapter is active.
            labels: (batch, seq) token ids, -100 where there is no loss. The loss is in nats per token.
            use_cache: whether to return a cache; by default as `config.use_cache` says, or the base's, and not in
                training.
            logits_to_keep: compute only the last N positions, or those of an index tensor; 0 computes all.
            output_value_logits: also return what was added to the base's logits; with "each" adapter by adapter, too,
                or with "networks" what `base` and each network (`<adapter>.<index>`) say, before any weight.
            messages: the chat that `input_ids` begin with, one conversation or one per row; networks of another
                vocabulary then read it by their own chat template (see `chat_inputs`).
            adapter_names: for each prompt the adapters that act on its rows, a name, several, or None for the base
                alone, whatever is active otherwise; a network runs for the rows that need it. As in PEFT, and in
                `generate` too.
            value_loss: the trainer's: compute nothing but this loss, from the adapter and what it reads.
            kwargs: for the base (`output_hidden_states`, …) and the loss (`num_items_in_batch`); `return_dict=False`
                for a tuple of what there is: loss, logits, cache, …

        Raises:
            AdapterNameError: unknown names in `adapter_names`, or not one entry for each row.
            UnsupportedModeError: `inputs_embeds` without ids while an adapter is active, or a cache of other models.
        """
        scope = self.attached.scope()
        rows = scope.rows if adapter_names is None and scope is not None else adapter_names
        if rows is not None:
            asked = {"cache": cache, "use_cache": use_cache, "logits_to_keep": logits_to_keep, **kwargs}
            asked |= {"messages": messages, "labels": labels, "output_value_logits": output_value_logits}
            asked["repeated"] = adapter_names is None
            return forward_rows(self, rows, input_ids, attention_mask, position_ids, **asked)
        if input_ids is None and self.attached.terms():
            raise UnsupportedModeError(NO_IDS)
        for name in ("output_hidden_states", "output_attentions"):  # of the base, also where this model is set to it
            if kwargs.get(name) is None and getattr(self.config, name, False):
                kwargs[name] = True
        self.attached.note_training()
        if value_loss is not None:
            return ValueAdapterOutput(value_loss(self.attached.terms()[0], input_ids, attention_mask, position_ids))
        for_loss = {key: kwargs.pop(key) for key in LOSS_ARGUMENTS if key in kwargs}
        how = {"use_cache": use_cache, "logits_to_keep": logits_to_keep, "inputs_embeds": inputs_embeds, **kwargs}
        how |= {"output_value_logits": output_value_logits, "messages": messages}
        call = self.begin(input_ids, attention_mask, position_ids, cache=cache, **how)
        call.run_base()
        said = run_together(call.passes(), call.inputs.bodies)
        if labels is None:
            return call.finish(said)
        return call.finish(
            said,
            lambda logits: self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **for_loss),
        )

    def begin(self, *what: Any, **how: Any) -> Call:
        """A call of which no model has run yet; arguments as `forward`, but labels and rows of their own."""
        return Call(self, *what, **how)

    # -- being a PreTrainedModel -------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> ValueAdapterForCausalLM:
        """Switches the networks between training and evaluation; what is frozen stays in evaluation (no dropout).

        Raises:
            ConfigError: weights of the base take gradients, which would change nothing; or PEFT has put LoRA on LoRA.
        """
        if mode and any(parameter.requires_grad for parameter in self.base.parameters()):
            raise ConfigError(
                "weights of the base take gradients, and the base is not trained here. If peft.get_peft_model put LoRA "
                "into it, name the networks: target_modules=r'value_networks\\..*(q_proj|v_proj)'; else freeze it: "
                "model.base.requires_grad_(False)"
            )
        networks = [one for adapter in self.attached.adapters().values() for one in adapter.networks]
        if mode and any(p.requires_grad and is_shared(p) for network in networks for p in network.parameters()):
            raise ConfigError(
                "weights that several models hold in common take gradients, so that training one would change others; "
                "attach the adapter that is trained with is_trainable=True, which gives it weights of its own"
            )
        if mode and (configs := getattr(self, "peft_config", None)):
            named = [(name, enumerate(one.networks)) for name, one in self.attached.adapters().items()]
            held = {f"value_networks.{name}.{index}": one for name, own in named for index, one in own}
            check_no_lora_on_lora(held, configs)
        super().train(mode)
        self.base.eval()
        for network in networks:
            if not any(p.requires_grad for p in network.parameters()):
                network.eval()
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Moves or casts base and networks together: what they hold in common they go on holding once."""
        self.attached.bodies.check()
        with together():
            super()._apply(*args, **kwargs)
        self.attached.bodies.note([self.base, *self.attached.networks()])
        return self

    @property
    def loss_function(self) -> Any:
        """The base's loss, so that with no adapter active the loss is the base's too."""
        return self.base.loss_function

    def _get_name(self) -> str:
        """The base's class name: the Trainer shifts labels for smoothing only for names in a table of its own."""
        base = self.base.get_base_model() if hasattr(self.base, "get_base_model") else self.base
        return str(base._get_name())

    def get_input_embeddings(self) -> nn.Module:
        """The base's input embedding."""
        return cast(nn.Module, self.base.get_input_embeddings())

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: base and networks would no longer speak one vocabulary.

        Raises:
            UnsupportedModeError: always, naming what to do instead.
        """
        raise UnsupportedModeError("resize the base before attaching adapters; they speak a fixed vocabulary")


AutoConfig.register(MODEL_TYPE, ValueAdapterModelConfig)
AutoModelForCausalLM.register(ValueAdapterModelConfig, ValueAdapterForCausalLM)
