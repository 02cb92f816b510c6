"""Attaching adapters to a wrapped base model, and detaching them; computes nothing.

Speaks PEFT's vocabulary. Every `PreTrainedModel` inherits methods of these names from transformers' PEFT integration
that would put LoRA into base and networks; all of them are overridden here.
"""

from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter import ValueAdapter
from valueadapter.alignment import Side
from valueadapter.choosing import Attached, ChoosingMethods
from valueadapter.errors import AdapterNameError, UnsupportedModeError
from valueadapter.link import Link
from valueadapter.network import set_trainable
from valueadapter.prefix import RECORDED, GivenPrefix, Recorded, as_prefix

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]+")


_serials = itertools.count()


class AdapterMethods(ChoosingMethods):
    """The part of `ValueAdapterForCausalLM` that attaches and detaches adapters."""

    base: PreTrainedModel
    base_tokenizer: PreTrainedTokenizerBase | None
    value_networks: nn.ModuleDict
    base_released = False
    """Whether the base's weights are gone, all but its output head's (`release_base` of the trainer)."""

    # -- attaching ---------------------------------------------------------------------------------------------------
    def load_adapter(
        self,
        name_or_path: str | Path,
        adapter_name: str,
        *,
        scale: float | None = None,
        base_prefix: GivenPrefix = RECORDED,
        is_trainable: bool = False,
        **download: Any,
    ) -> None:
        """Loads an adapter and attaches it. As in PEFT, it is active at once only if it is the first.

        Args:
            name_or_path: Hub ID or directory.
            adapter_name: name to give it here.
            scale: how strongly it acts; the adapter's own recommendation by default.
            base_prefix: what only the base reads before the prompt: the adapter's own by default, text or chat
                messages in its place, or None for nothing.
            is_trainable: whether its weights take gradients.
            download: `revision, subfolder, token, cache_dir, local_files_only, force_download`.

        Raises:
            AdapterNameError: the name is taken or not usable.
            IncompatibleBaseError: a vocabulary that no map leads to.
            ArtifactError, ConfigError, huggingface_hub.errors: it cannot be had or is damaged.
        """
        self._check_new_name(adapter_name)
        adapter = ValueAdapter.from_pretrained(name_or_path, **download)
        self.add_adapter(adapter, adapter_name, scale=scale, base_prefix=base_prefix, is_trainable=is_trainable)

    def add_adapter(
        self,
        adapter: ValueAdapter,
        adapter_name: str,
        *,
        scale: float | None = None,
        base_prefix: GivenPrefix = RECORDED,
        is_trainable: bool = False,
    ) -> None:
        """Attaches a loaded adapter. The first one is active at once, later ones with `set_adapter`.

        Its networks move to the base's device and dtype. They are not copied: attach `adapter.copy()` to a second base.
        Arguments as in `load_adapter`.

        Raises:
            AdapterNameError: the name is taken or not usable.
            ConfigError: a prefix that is none, or that the base's tokenizer cannot take.
            IncompatibleBaseError: a vocabulary that no map leads to, or the base's tokenizer is not known.
        """
        self._check_new_name(adapter_name)
        prefix = adapter.config.base_prefix if isinstance(base_prefix, Recorded) else as_prefix(base_prefix)
        if prefix is not None:
            self._prefix_for_base(prefix)  # now, so that a prefix this base cannot take is not attached
        link = adapter.connect(self._base_side(), self.base.name_or_path)
        device = self.base.get_input_embeddings().weight.device
        for network in adapter.networks:
            network.to(device=device, dtype=self.base.dtype)
            set_trainable(network, is_trainable)
        self.value_networks[adapter_name] = nn.ModuleList(adapter.networks)
        own = self._recommended_scale(adapter, link) if scale is None else scale
        self._attached[adapter_name] = Attached(adapter, own, next(_serials), link, prefix=prefix)
        self.set_scale(adapter_name, own)
        if not self._active:
            self._active = (adapter_name,)
        elif adapter_name not in self._active:
            logger.info("attached %r; active is %s (set_adapter changes it)", adapter_name, list(self._active))

    def _recommended_scale(self, adapter: ValueAdapter, link: Link | None) -> float:
        vocabulary = adapter.config.vocabulary if link is None else link.alignment.base
        measured = adapter.config.scale_for(vocabulary.byte_fingerprint, self.base.name_or_path)
        if measured is None:
            return adapter.config.scale
        logger.warning(
            "scale %g is used, which was measured on '%s' (%.3f -> %.3f bits per byte on %d examples of %s); "
            "scale= chooses another",
            measured.scale,
            measured.base,
            measured.base_bits_per_byte,
            measured.adapted_bits_per_byte,
            measured.num_examples,
            measured.data,
        )
        return measured.scale

    def base_fingerprint(self, adapter_name: str | None = None) -> str:
        """The byte fingerprint of the base's vocabulary, 64 hex, under which an adapter records scales for it."""
        attached = self._get(self.only_adapter(adapter_name))
        link = attached.link
        vocabulary = attached.adapter.config.vocabulary if link is None else link.alignment.base
        return vocabulary.byte_fingerprint

    def delete_adapter(self, adapter_name: str) -> None:
        """Detaches an adapter and forgets it.

        Raises:
            AdapterNameError: no such adapter.
        """
        self._get(adapter_name)
        del self._attached[adapter_name]
        del self.value_networks[adapter_name]
        if self._active == (adapter_name,) and self._attached:
            logger.warning("no adapter is active now; attached are %s (set_adapter)", list(self._attached))
        self._active = tuple(name for name in self._active if name != adapter_name)

    def unload(self) -> PreTrainedModel:
        """Detaches every adapter and gives the base back, its weights as they came (frozen, and in eval mode).

        Raises:
            UnsupportedModeError: a trainer has given the base's memory back.
        """
        self._check_base()
        for name in list(self._attached):
            self.delete_adapter(name)
        return self.base

    # -- what cannot be ----------------------------------------------------------------------------------------------
    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: a sum of logits is no change of the base's weights.

        Raises:
            UnsupportedModeError: always, naming what to do instead.
        """
        raise UnsupportedModeError(
            "a value adapter cannot be merged: it is a second model, not a change of the base's weights. Keep the "
            "wrapper (unload() gives the base back), or distil base + adapter into the base by training it"
        )

    merge_adapter = merge_and_unload

    def enable_peft_hotswap(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: it is about LoRA weights.

        Raises:
            UnsupportedModeError: always, naming what to do instead.
        """
        raise UnsupportedModeError("hot-swapping is for LoRA; attach the other adapter and call set_adapter")

    def get_adapter_state_dict(self, adapter_name: str | None = None) -> dict[str, torch.Tensor]:
        """The weights of an adapter's networks, as `<index>.<tensor>`.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
        """
        state: dict[str, torch.Tensor] = self.value_networks[self.only_adapter(adapter_name)].state_dict()
        return state

    # -- names -------------------------------------------------------------------------------------------------------
    def _check_new_name(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
            raise AdapterNameError(f"an adapter's name is made of letters, digits, '_' and '-'; got {name!r}")
        if name in self._attached:
            raise AdapterNameError(f"an adapter '{name}' is attached already; choose another name or delete it first")

    def _check_base(self) -> None:
        if self.base_released:
            raise UnsupportedModeError(
                "the base's weights were given back after caching its hidden states (release_base), so that this model "
                "only trains; save the adapter, and attach it to a base that is loaded anew"
            )

    def _base_side(self) -> Side:
        raise NotImplementedError
