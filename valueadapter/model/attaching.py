"""Attaching adapters to a wrapped base model, and detaching them; computes nothing.

Speaks PEFT's vocabulary. Every `PreTrainedModel` inherits methods of these names from transformers' PEFT integration
that would put LoRA into base and networks; all of them are overridden here.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import execution_device, is_placed, set_trainable, to_train
from valueadapter.adapter.combining import combined
from valueadapter.adapter.model_state import same_model, settings_of
from valueadapter.adapter.shared_tensors import make_own, move, swap_weights
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Weights
from valueadapter.artifact.config.number import finite
from valueadapter.artifact.config.prefix import RECORDED, GivenPrefix, Recorded, as_prefix
from valueadapter.errors import AdapterNameError, ConfigError, UnsupportedModeError
from valueadapter.forward.steps import reads_text
from valueadapter.model.adapter_names import DEFAULT, check_adapter, check_name, names_given
from valueadapter.model.choosing import ChoosingMethods
from valueadapter.model.joint_head import OutputHead
from valueadapter.model.registry import Attached
from valueadapter.model.sanity_check import check_effect
from valueadapter.model.status import StatusMethods
from valueadapter.vocabulary.bridge import VocabularyBridge

logger = logging.getLogger(__name__)

_serials = itertools.count()


class AdapterMethods(StatusMethods, ChoosingMethods):
    """The part of `ValueAdapterForCausalLM` that attaches and detaches adapters."""

    value_networks: nn.ModuleDict
    output_head: OutputHead

    # -- attaching ---------------------------------------------------------------------------------------------------
    def load_adapter(
        self,
        name_or_path: str | Path,
        adapter_name: str = DEFAULT,
        *,
        scale: float | None = None,
        base_prefix: GivenPrefix = RECORDED,
        is_trainable: bool = False,
        hotswap: bool = False,
        **download: Any,
    ) -> None:
        """Loads an adapter and attaches it. As in PEFT, it is active at once only if it is the first.

        Args:
            name_or_path: Hub ID or directory.
            adapter_name: name to give it here.
            scale: how strongly it acts; the adapter's own recommendation by default.
            base_prefix: what only the base reads before the prompt: the adapter's own by default, text or chat
                messages in its place, or None for nothing.
            is_trainable: whether its weights take gradients: those of LoRAs in networks that are added, or without
                any such LoRA all.
            hotswap: put its weights into the networks of the attached adapter of this name, see `hotswap_adapter`.
            download: `revision, subfolder, token, cache_dir, local_files_only, force_download`.

        Raises:
            AdapterNameError: the name is taken or not usable.
            IncompatibleBaseError: a vocabulary that no map leads to.
            ArtifactError, ConfigError, huggingface_hub.errors: it cannot be had or is damaged.
        """
        if hotswap:
            new = ValueAdapter.from_pretrained(name_or_path, **download)
            self.hotswap_adapter(new, adapter_name, scale=scale, base_prefix=base_prefix)
            return
        self._check_new_name(adapter_name)
        if scale is not None:
            finite(f"scale of '{adapter_name}'", scale)
        adapter = ValueAdapter.from_pretrained(name_or_path, **download)
        self.add_adapter(adapter, adapter_name, scale=scale, base_prefix=base_prefix, is_trainable=is_trainable)

    def add_adapter(
        self,
        adapter: ValueAdapter,
        adapter_name: str = DEFAULT,
        *,
        scale: float | None = None,
        base_prefix: GivenPrefix = RECORDED,
        is_trainable: bool = False,
    ) -> None:
        """Attaches a loaded adapter. The first one is active at once, later ones with `set_adapter`.

        Its networks move to the base's device and dtype, unless accelerate or a quantizer has placed them. They are not
        copied: attach `adapter.copy()` to a second base.
        A network that is attached already, with equal weights and not trained, is held and run once for both adapters;
        of one that differs from another, or from the base, in its LoRA alone, the rest is held once.
        An adapter that is not to be trained is run on a few tokens first: one that changes nothing is warned of.
        Arguments as in `load_adapter`.

        Raises:
            AdapterNameError: the name is taken or not usable.
            ConfigError: a prefix that is none, or that the base's tokenizer cannot take; nothing that could be trained.
            IncompatibleBaseError: a vocabulary that no map leads to, or the base's tokenizer is not known.
            UnsupportedModeError: a network of a kind that cannot read the base's text in tokens of its own.
            ConfigError: its value logits are NaN or infinite.
        """
        check_adapter(adapter, adapter_name)
        self._check_new_name(adapter_name)
        if scale is not None:
            self.attached.check_scale(adapter_name, scale)
        prefix = adapter.config.base_prefix if isinstance(base_prefix, Recorded) else as_prefix(base_prefix)
        if prefix is not None:
            self.attached.as_read(prefix)  # now, so that a prefix this base cannot take is not attached
        link = adapter.connect(self.attached.base_side(), self.base.name_or_path)
        if link is not None and link.reading is not None:
            _check_text_readers(adapter)
        weights, recommended = self._recommended(adapter, link)
        own = self.attached.check_scale(adapter_name, recommended) if scale is None else float(scale)
        device = execution_device(self.base)
        attached = self.attached.networks()
        held = set(map(id, attached))
        counts = [network.coefficient for network in adapter.config.networks]
        to_change = to_train(adapter.networks, counts) if is_trainable else []
        if is_trainable and not any(id(one) not in held or _takes_gradients(one) for one in to_change):
            raise ConfigError(
                f"is_trainable=True would train nothing of '{adapter_name}': an attached adapter holds what it would "
                "change, and is not trained. Attach adapter.copy()"
            )
        trained = set(map(id, to_change))
        # what another adapter holds, perhaps to train it, stays as it is
        new = [network for network in adapter.networks if id(network) not in held]
        move([network for network in new if not is_placed(network)], device=device, dtype=self.base.dtype)
        for network in new:
            if id(network) in trained:
                make_own(network)
            set_trainable(network, id(network) in trained)
        if not is_trainable:
            check_effect(adapter, adapter_name)
            adapter = self._sharing(adapter)
            self.attached.bodies.hold_once(adapter.networks, self.base, attached)
        self.value_networks[adapter_name] = nn.ModuleList(adapter.networks)
        self.attached.by_name[adapter_name] = Attached(adapter, own, next(_serials), link, weights, prefix=prefix)
        if not self.attached.active:
            self.attached.active = (adapter_name,)
        elif adapter_name not in self.attached.active:
            logger.info("attached %r; active is %s (set_adapter changes it)", adapter_name, list(self.attached.active))

    def hotswap_adapter(
        self,
        adapter: ValueAdapter,
        adapter_name: str,
        *,
        scale: float | None = None,
        base_prefix: GivenPrefix = RECORDED,
    ) -> None:
        """Puts an adapter's weights in the place of an attached one's, into the same tensors.

        Nothing that was compiled is compiled again, and no second copy of the networks stays. A cache of an earlier
        call holds what the old weights have read: start with a new one.

        Args:
            adapter: the new adapter; its networks have the architectures, and its vocabulary is that of the old one.
            adapter_name: the attached adapter, which keeps its name.
            scale: how strongly it acts; the new adapter's recommendation by default.
            base_prefix: as in `load_adapter`.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: the networks do not fit, another adapter shares them, the scale cannot be, or the new value
                logits are NaN or infinite; nothing has changed then.
        """
        check_adapter(adapter, adapter_name, method="hotswap_adapter")
        attached = self.attached.get(adapter_name)
        old = attached.adapter
        elsewhere = {id(n) for name, one in self.adapters.items() if name != adapter_name for n in one.networks}
        pairs = zip(old.networks, adapter.networks, strict=False)  # of another number it does not fit, see below
        if any(id(mine) in elsewhere and not same_model(mine, theirs) for mine, theirs in pairs):
            raise ConfigError(
                f"another adapter shares a network with '{adapter_name}', whose weights would change too; delete "
                f"'{adapter_name}' and load the new adapter under its name"
            )
        if why := _why_not_swapped(old, adapter):
            raise ConfigError(f"the new adapter does not fit '{adapter_name}': {why}; delete it and load the new one")
        prefix = adapter.config.base_prefix if isinstance(base_prefix, Recorded) else as_prefix(base_prefix)
        if prefix is not None:
            self.attached.as_read(prefix)
        weights, recommended = self._recommended(adapter, attached.link)
        own = self.attached.check_scale(adapter_name, recommended if scale is None else scale)
        check_effect(adapter, adapter_name)
        for mine, theirs in zip(old.networks, adapter.networks, strict=True):
            swap_weights(mine, theirs)
        attached.adapter = adapter.replaced(networks=old.networks)
        attached.prefix, attached.trained_behind = prefix, RECORDED
        attached.scale, attached.weights = own, weights
        self.attached.prefixes.forget(attached.serial)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
        *,
        base_prefix: GivenPrefix = RECORDED,
    ) -> None:
        """Makes one adapter of several attached ones: value logits = Σ weight · value logits, at scale 1.

        Their networks are shared, not copied, and the new adapter can be saved and pushed as any other.

        Args:
            adapters: names of attached adapters of one vocabulary and connection.
            weights: one for each, in the place of its scale; finite and not 0.
            adapter_name: the new adapter's name.
            combination_type: `linear`, the weights as they are; `average`, divided by their sum. PEFT's others combine
                matrices of LoRA, and there are none here.
            base_prefix: what the base reads; by default what they bring, which must be one prefix.

        Raises:
            AdapterNameError: unknown names, or a taken one.
            ConfigError: weights that cannot be, or adapters that cannot be one.
            UnsupportedModeError: another combination, or different prefixes.
        """
        self._check_new_name(adapter_name)
        parts = [one.adapter.with_weights(one.weights) for one in map(self.attached.get, adapters)]
        new = combined(parts, self._weights(adapters, weights, combination_type))
        prefix = self.attached.one_prefix(adapters) if isinstance(base_prefix, Recorded) else as_prefix(base_prefix)
        self.add_adapter(new.with_config(base_prefix=prefix), adapter_name, scale=1.0)

    def _weights(self, adapters: Sequence[str], weights: Sequence[float], combination: str) -> list[float]:
        if combination not in ("linear", "average"):
            raise UnsupportedModeError(
                f"combination_type must be 'linear' or 'average'; got {combination!r}. PEFT's other ways combine the "
                "matrices of LoRA, and value adapters add logits"
            )
        if len(weights) != len(adapters) or not adapters:
            raise ConfigError(f"expected one weight for each adapter; got {len(weights)} for {len(adapters)}")
        weights = [finite(f"weight of '{name}'", one) for name, one in zip(adapters, weights, strict=True)]
        if any(weight < 0 for weight in weights):
            self.attached.warn_below_zero(f"weights {list(weights)} of {list(adapters)}")
        total = sum(weights) if combination == "average" else 1.0
        if total == 0:
            raise ConfigError(f"the weights {list(weights)} add up to 0, so that there is no average; take 'linear'")
        return [weight / total for weight in weights]

    def _sharing(self, adapter: ValueAdapter) -> ValueAdapter:
        """The adapter with networks that are attached already in the place of equal ones, to be held and run once."""
        attached = self.attached.networks()
        frozen = [network for network in attached if not any(p.requires_grad for p in network.parameters())]
        networks = [next((one for one in frozen if same_model(one, own)), own) for own in adapter.networks]
        if all(one is own for one, own in zip(networks, adapter.networks, strict=True)):
            return adapter
        return adapter.replaced(networks=networks)

    def _recommended(self, adapter: ValueAdapter, link: VocabularyBridge | None) -> tuple[Weights, float]:
        """The weights and the scale that an adapter records for this base, or those for any."""
        default = adapter.config.default_weights, adapter.config.scale
        if not adapter.config.weights:
            return default
        vocabulary = adapter.config.vocabulary if link is None else link.alignment.base
        own = adapter.provenance.true_records(adapter.config, adapter.networks)
        fitted = own.weights_for(vocabulary.byte_fingerprint, self.base.name_or_path)
        if fitted is None:
            return default
        logger.info("the weights are those of '%s', %s; set_weights chooses others", fitted.base, fitted.found_on)
        return fitted.weights, fitted.scale

    def recommended_weights(self, adapter_name: str | None = None) -> tuple[Weights, float]:
        """What an adapter records for this base, or for any that nobody measured: its weights, and the scale to act at.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
        """
        attached = self.attached.get(self.only_adapter(adapter_name))
        return self._recommended(attached.adapter, attached.link)

    def base_fingerprint(self, adapter_name: str | None = None) -> str:
        """The byte fingerprint of the base's vocabulary, 64 hex, under which an adapter records scales for it."""
        attached = self.attached.get(self.only_adapter(adapter_name))
        link = attached.link
        vocabulary = attached.adapter.config.vocabulary if link is None else link.alignment.base
        return vocabulary.byte_fingerprint

    def delete_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Detaches an adapter, or several, and forgets them.

        Raises:
            AdapterNameError: no such adapter; none of several is deleted then.
        """
        names = names_given(adapter_name)
        for name in names:
            self.attached.get(name)
        for name in dict.fromkeys(names):
            self._delete(name)

    def _delete(self, adapter_name: str) -> None:
        gone = self.attached.by_name.pop(adapter_name)
        self.attached.prefixes.forget(gone.serial)
        self.attached.bodies.part(gone.adapter.networks, self.base, self.attached.networks())
        del self.value_networks[adapter_name]
        self.output_head.parts = ()  # which may still hold its networks
        if self.attached.active == (adapter_name,) and self.attached.by_name:
            logger.warning("no adapter is active now; attached are %s (set_adapter)", list(self.attached.by_name))
        self.attached.active = tuple(name for name in self.attached.active if name != adapter_name)

    def unload(self) -> PreTrainedModel:
        """Detaches every adapter and gives the base back, its weights as they came (frozen, and in eval mode).

        Raises:
            UnsupportedModeError: a trainer has given the base's memory back.
        """
        self.check_base()
        for name in list(self.attached.by_name):
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
            "wrapper (unload() gives the base back), or teach it to a LoRA on the base: distill_into_lora(model, data)"
        )

    merge_adapter = merge_and_unload

    def enable_peft_hotswap(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: it is about LoRA weights.

        Raises:
            UnsupportedModeError: always, naming what to do instead.
        """
        raise UnsupportedModeError(
            "this prepares LoRA for other ranks. Networks of one shape can be swapped without it: "
            "load_adapter(…, adapter_name, hotswap=True)"
        )

    def get_adapter_state_dict(self, adapter_name: str | None = None) -> dict[str, torch.Tensor]:
        """The weights of an adapter's networks, as `<index>.<tensor>`.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
        """
        state: dict[str, torch.Tensor] = self.value_networks[self.only_adapter(adapter_name)].state_dict()
        return state

    # -- names -------------------------------------------------------------------------------------------------------
    def _check_new_name(self, name: str) -> None:
        check_name(name)
        if name in self.attached.by_name:
            raise AdapterNameError(f"an adapter '{name}' is attached already; choose another name or delete it first")


def _takes_gradients(network: PreTrainedModel) -> bool:
    return any(parameter.requires_grad for parameter in network.parameters())


def _check_text_readers(adapter: ValueAdapter) -> None:
    for network in adapter.networks:
        if not reads_text(network):
            raise UnsupportedModeError(
                f"a {type(network).__name__} cannot read text of another vocabulary: it is not told positions, or "
                "keeps no cache of transformers' kind. Use it on a base of its vocabulary, or a network with attention"
            )


def _why_not_swapped(old: ValueAdapter, new: ValueAdapter) -> str | None:
    """What keeps the weights of one adapter from taking the place of another's; None where nothing does."""
    if old.config.vocabulary != new.config.vocabulary:
        return "it has another vocabulary"
    if old.config.connection != new.config.connection:
        return f"its connection is {new.config.connection}, not {old.config.connection}"
    if len(old.config.networks) != len(new.config.networks):
        return f"it has other networks: {len(new.config.networks)} networks, not {len(old.config.networks)}"
    for mine, theirs in zip(old.networks, new.networks, strict=True):
        if type(mine) is not type(theirs) or settings_of(mine) != settings_of(theirs):
            return "a network is of another architecture"
    return None
