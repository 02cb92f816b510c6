"""The adapters of a wrapped base model: which are attached, which are active, at which scale; computes nothing.

Speaks PEFT's vocabulary. Every `PreTrainedModel` inherits methods of these names from transformers' PEFT integration
that would put LoRA into base and networks; all of them are overridden here.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter import ValueAdapter
from valueadapter.alignment import Side
from valueadapter.base_prefix import PrefixMethods, network_prefixes
from valueadapter.config import Prefix
from valueadapter.errors import AdapterNameError, ConfigError, UnsupportedModeError
from valueadapter.link import Link
from valueadapter.network import set_trainable
from valueadapter.prefix import RECORDED, BasePrefix, GivenPrefix, Recorded, as_prefix
from valueadapter.refinement import ByteEvents, Mode
from valueadapter.value_logits import Term

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class Attached:
    """An adapter on this base, and how strongly it acts."""

    adapter: ValueAdapter
    scale: float
    serial: int
    """Tells apart adapters that bore one name at different times, so that a cache of the first is not taken for one of
    the second."""
    link: Link | None
    """None where the base has the adapter's vocabulary."""
    refinement: tuple[Mode, ByteEvents] | None = None
    """Where the map's values are bettered: how, and what is needed for it."""
    prefix: Prefix | None = None
    """What the base reads before the prompt while this adapter acts."""
    read: dict[Prefix, tuple[BasePrefix | None, ...]] = field(default_factory=dict)
    """A prefix -> how each of its networks reads it."""

    def parts(self, name: str) -> tuple[str, ...]:
        """Names of its networks in a cache, for an adapter of this name."""
        return tuple(f"{name}.{self.serial}.{index}" for index in range(len(self.adapter.networks)))


_serials = itertools.count()


class AdapterMethods(PrefixMethods):
    """The part of `ValueAdapterForCausalLM` that manages adapters."""

    base: PreTrainedModel
    base_tokenizer: PreTrainedTokenizerBase | None
    value_networks: nn.ModuleDict
    _attached: dict[str, Attached]
    _active: tuple[str, ...]
    _enabled: bool

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
        """Detaches every adapter and gives the base back, its weights as they came (frozen, and in eval mode)."""
        for name in list(self._attached):
            self.delete_adapter(name)
        return self.base

    # -- choosing ----------------------------------------------------------------------------------------------------
    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Makes one or several attached adapters the active ones; their value logits add up.

        Raises:
            AdapterNameError: no such adapter, or one named twice.
        """
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        for name in names:
            self._get(name)
        if len(set(names)) != len(names):
            raise AdapterNameError(f"an adapter can be active once; got {list(names)}. Raise its scale instead")
        self._one_prefix(names)
        self._active = names
        self._enabled = True

    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Sets how strongly an adapter acts: logits = base logits + scale · value logits. 0 switches it off.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: not a finite number.
        """
        if not math.isfinite(scale):
            raise ConfigError(f"scale of '{adapter_name}' must be a finite number; got {scale}")
        self._get(adapter_name).scale = float(scale)

    def set_alignment_mode(self, adapter_name: str, mode: Mode) -> None:
        """Sets how an adapter's logits come to a base of another vocabulary.

        `static` is the map alone, and the default. `boundary` looks closer at the base's 64 likeliest tokens, and
        `chain` runs the network over the 24 likeliest; see `docs/alignment.md` for what each costs and gives.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: no such mode.
            UnsupportedModeError: the adapter reads the base's ids, so that there is nothing to better; or it has
                several networks.
        """
        attached = self._get(adapter_name)
        if mode not in get_args(Mode):
            raise ConfigError(f"alignment mode must be one of {', '.join(get_args(Mode))}; got {mode!r}")
        if mode == "static":
            attached.refinement = None
            return
        reading = attached.link.reading if attached.link is not None else None
        if reading is None or len(attached.adapter.networks) > 1:
            raise UnsupportedModeError(
                f"mode '{mode}' is for an adapter of one network on a base of another vocabulary; "
                f"'{adapter_name}' has {len(attached.adapter.networks)} and "
                f"{'another vocabulary' if reading is not None else 'the same vocabulary'}. Leave the mode at 'static'"
            )
        attached.refinement = (mode, ByteEvents(reading.value, reading.width))

    @contextlib.contextmanager
    def only(self, adapter_name: str, *, scale: float) -> Iterator[None]:
        """Within the block just this adapter acts, at this scale; afterwards all is as before.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: the scale is no finite number.
        """
        before = self._get(adapter_name).scale, self._active, self._enabled
        self.set_scale(adapter_name, scale)
        self.set_adapter(adapter_name)
        try:
            yield
        finally:
            self._attached[adapter_name].scale, self._active, self._enabled = before

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block the model is the base, bit for bit, and no network runs."""
        before = self._enabled
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = before

    def disable_adapters(self) -> None:
        """Switches all adapters off until `enable_adapters`."""
        self._enabled = False

    def enable_adapters(self) -> None:
        """Switches the active adapters on again."""
        self._enabled = True

    # -- asking ------------------------------------------------------------------------------------------------------
    @property
    def adapters(self) -> dict[str, ValueAdapter]:
        """Name -> attached adapter."""
        return {name: attached.adapter for name, attached in self._attached.items()}

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act now, in the order they were activated; empty while disabled."""
        return list(self._active) if self._enabled else []

    @property
    def scales(self) -> dict[str, float]:
        """Name -> scale of every attached adapter."""
        return {name: attached.scale for name, attached in self._attached.items()}

    def only_adapter(self, adapter_name: str | None = None) -> str:
        """The named adapter, or the one that is meant when there is just one.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
        """
        if adapter_name is not None:
            self._get(adapter_name)
            return adapter_name
        candidates = list(self._attached)
        if len(candidates) != 1:
            raise AdapterNameError(f"name the adapter with adapter_name=; attached are {candidates or 'none'}")
        return candidates[0]

    def terms(self) -> list[Term]:
        """The adapters of the sum as it stands: active, with a scale that is not 0."""
        acting = [(name, self._attached[name]) for name in self.active_adapters]
        return [
            Term(
                attached.parts(name),
                attached.adapter.networks,
                tuple(spec.coefficient for spec in attached.adapter.config.networks),
                attached.scale,
                attached.link,
                attached.refinement,
                attached.adapter.config.connection,
                self._read_by_networks(name, attached),
            )
            for name, attached in acting
            if attached.scale != 0
        ]

    def _read_by_networks(self, name: str, attached: Attached) -> tuple[BasePrefix | None, ...]:
        """What each network of an adapter reads before the prompt; empty where none reads anything."""
        prefix = self.base_prefix if attached.adapter.reads_prefix else None
        if prefix is None:
            return ()
        if prefix not in attached.read:
            base, parts = self._prefix_for_base(prefix), attached.parts(name)
            attached.read = {prefix: network_prefixes(attached.adapter, parts, attached.link, prefix, base)}
        return attached.read[prefix]

    def _prefix_of(self, adapter_name: str) -> Prefix | None:
        return self._attached[adapter_name].prefix

    def _tokenizer_of(self, term: Term) -> PreTrainedTokenizerBase:
        return self._attached[term.parts[0].split(".")[0]].adapter.tokenizer

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
    def _get(self, name: str) -> Attached:
        if name not in self._attached:
            raise AdapterNameError(f"there is no adapter '{name}'; attached are {list(self._attached) or 'none'}")
        return self._attached[name]

    def _check_new_name(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
            raise AdapterNameError(f"an adapter's name is made of letters, digits, '_' and '-'; got {name!r}")
        if name in self._attached:
            raise AdapterNameError(f"an adapter '{name}' is attached already; choose another name or delete it first")

    def _base_side(self) -> Side:
        raise NotImplementedError
