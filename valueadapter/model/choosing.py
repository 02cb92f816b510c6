"""The attached adapters of a wrapped base model: which ones act, and how strongly; computes nothing.

Speaks PEFT's vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Prefix
from valueadapter.artifact.config.prefix import RECORDED, Recorded
from valueadapter.errors import AdapterNameError, ConfigError, UnsupportedModeError
from valueadapter.forward.alignment_modes import ByteEvents, Mode
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.value_logits import Term
from valueadapter.model.base_prefix import PrefixMethods, how_set, network_prefixes
from valueadapter.model.thread_scope import Block, acting, here
from valueadapter.vocabulary.bridge import Link

logger = logging.getLogger(__name__)


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
    trained_behind: Prefix | Recorded | None = RECORDED
    """What the base read when its weights last took gradients; RECORDED while they have not."""

    def reading(self) -> tuple[Any, ...]:
        """What its networks read, but for the prefix: two adapters with equal ones have a common network read once."""
        own = self.adapter
        return self.refinement, own.config.connection, own.config.vocabulary, own.tokenizer.chat_template

    def parts(self, name: str) -> tuple[str, ...]:
        """Names of its networks in a cache, for an adapter of this name."""
        return tuple(f"{name}.{self.serial}.{index}" for index in range(len(self.adapter.networks)))


class ChoosingMethods(PrefixMethods):
    """The part of `ValueAdapterForCausalLM` that chooses among attached adapters."""

    strict: bool
    """Whether negative weights are an error."""
    _attached: dict[str, Attached]
    _active: tuple[str, ...]
    _enabled: bool

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

        A negative scale is allowed with a warning: moved away from a safety-tuned adapter, a base may lose what it was
        taught to refuse. Within `only(adapter_name, …)` the scale is the block's, and goes with it.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: not a finite number, or below 0 where the model is `strict`.
        """
        attached = self._get(adapter_name)
        self._check_scale(adapter_name, scale)
        block = here(self)
        for scales in block.scales.maps if block is not None else []:
            if adapter_name in scales:
                scales[adapter_name] = float(scale)
                return
        attached.scale = float(scale)

    def _check_scale(self, adapter_name: str, scale: float) -> None:
        if not math.isfinite(scale):
            raise ConfigError(f"scale of '{adapter_name}' must be a finite number; got {scale}")
        if scale < 0:
            self._below_zero(f"scale {scale:g} of '{adapter_name}'")

    def _below_zero(self, what: str) -> None:
        """Says what a negative weight can do; refuses it in strict mode."""
        danger = (
            f"{what} moves the base away from what the adapter was trained to do; this can undo safety training "
            "(emulated disalignment, Zhou et al. 2024, arXiv 2402.12343)"
        )
        if self.strict:
            raise ConfigError(
                f"{danger}, and this model is strict. Take a weight of 0 or more, or load it without strict"
            )
        logger.warning("%s", danger)

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

    def only(self, adapter_name: str, *, scale: float) -> Block:
        """Within the block, and in its thread only, just this adapter acts, at this scale; afterwards all is as before.

        In a generator the block holds while the generator runs, and not for the code that reads its values.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: the scale is no finite number.
            UnsupportedModeError: entered in an asynchronous generator.
        """
        self._get(adapter_name)
        self._check_scale(adapter_name, scale)
        return acting(self, (adapter_name,), scales={adapter_name: float(scale)})

    def disable_adapter(self) -> Block:
        """Within the block, and in its thread only, the model is the base, bit for bit, and no network runs.

        Blocks may be nested. A thread that is started from within does not inherit the block: enter it there, or pass
        `adapter_names=[None]` to `generate`. In a generator the block holds while the generator runs, and not for the
        code that reads its values.

        Raises:
            UnsupportedModeError: entered in an asynchronous generator.
        """
        return acting(self, ())

    def disable_adapters(self) -> None:
        """Switches all adapters off, for all threads, until `enable_adapters`."""
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
        if (block := here(self)) is not None:
            return [name for name in block.names if name in self._attached]
        return list(self._active) if self._enabled else []

    @property
    def scales(self) -> dict[str, float]:
        """Name -> scale of every attached adapter, as it acts here."""
        own = {name: attached.scale for name, attached in self._attached.items()}
        if (block := here(self)) is not None:
            own |= {name: scale for name, scale in block.scales.items() if name in own}
        return own

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
        """The adapters of the sum as it stands: active, with a scale that is not 0.

        A network that several of them have, and read alike, bears one name in all, under which it runs once.
        """
        scales = self.scales
        acting = [(name, self._attached[name], scales[name]) for name in self.active_adapters]
        known: dict[tuple[Any, ...], tuple[str, BasePrefix | None]] = {}
        found = []
        for name, attached, scale in acting:
            if scale == 0:
                continue
            own = attached.adapter
            read = self._read_by_networks(name, attached)
            parts = []
            for index, part in enumerate(attached.parts(name)):
                prefix = read[index] if read else None
                read_alike = (id(own.networks[index]), prefix is not None, *attached.reading())
                parts.append(known.setdefault(read_alike, (part, prefix)))
            found.append(
                Term(
                    name,
                    tuple(part for part, _ in parts),
                    own.networks,
                    tuple(spec.coefficient for spec in own.config.networks),
                    scale,
                    attached.link,
                    attached.refinement,
                    own.config.connection,
                    tuple(prefix for _, prefix in parts) if read else (),
                )
            )
        return found

    def _read_by_networks(self, name: str, attached: Attached) -> tuple[BasePrefix | None, ...]:
        """What each network of an adapter reads before the prompt; empty where none reads anything."""
        prefix = self.base_prefix if attached.adapter.reads_prefix else None
        if prefix is None:
            return ()
        known, made_by = self._known_prefix(prefix), how_set(attached.adapter.tokenizer)
        found = known.networks.get(attached.serial)
        if found is None or found[0] != made_by:
            own = network_prefixes(attached.adapter, attached.parts(name), attached.link, prefix, known.base)
            found = known.networks[attached.serial] = (made_by, own)
        return found[1]

    def _note_training(self) -> None:
        """Takes note of what the base reads while networks take gradients: it is recorded with what they learn."""
        for name in self.active_adapters if torch.is_grad_enabled() and not torch.compiler.is_compiling() else ():
            attached = self._attached[name]
            if attached.scale != 0 and any(network.training for network in attached.adapter.networks):
                attached.trained_behind = self.base_prefix

    def _prefixes_in_use(self) -> Collection[Prefix]:
        given = self._given_prefix
        own = [attached.prefix for attached in self._attached.values()]
        return {one for one in (given, *own) if one is not None and not isinstance(one, Recorded)}

    def _prefix_of(self, adapter_name: str) -> Prefix | None:
        return self._attached[adapter_name].prefix

    def _tokenizer_of(self, term: Term) -> PreTrainedTokenizerBase:
        return self._attached[term.parts[0].split(".")[0]].adapter.tokenizer

    # -- names -------------------------------------------------------------------------------------------------------
    def _get(self, name: str) -> Attached:
        if name not in self._attached:
            raise AdapterNameError(f"there is no adapter '{name}'; attached are {list(self._attached) or 'none'}")
        return self._attached[name]
