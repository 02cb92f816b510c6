"""The adapters attached to a base: which there are, which act here and now, how strongly, and behind which prefix.

A plain object, which the model holds and whoever needs to know asks. Knows no PreTrainedModel's ways and computes no
logits; what it answers, `terms()`, is what the sum is made of.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.causal_lm import logits_width
from valueadapter.adapter.tokenizer_loading import side_of
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Prefix, Weights
from valueadapter.artifact.config.number import finite
from valueadapter.artifact.config.prefix import RECORDED, Recorded
from valueadapter.errors import AdapterNameError, ConfigError, UnsupportedModeError
from valueadapter.forward.alignment_modes import Centring
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.stops import stop_tokens
from valueadapter.forward.value_logits import Term
from valueadapter.model.bodies import Bodies
from valueadapter.model.loading import find_tokenizer
from valueadapter.model.prefix_memory import PrefixMemory
from valueadapter.model.thread_scope import Block, Names, Scope, current_scope, scoped
from valueadapter.vocabulary.bridge import VocabularyBridge
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

logger = logging.getLogger(__name__)


@dataclass
class Attached:
    """An adapter on this base, and how strongly it acts."""

    adapter: ValueAdapter
    scale: float
    serial: int
    """Tells apart adapters that bore one name at different times, so that a cache of the first is not taken for one of
    the second."""
    link: VocabularyBridge | None
    """None where the base has the adapter's vocabulary."""
    weights: Weights
    """What each summand counts for on this base."""
    refinement: Centring | None = None
    """In mode `chain`, where the map's values are bettered: what is needed for it."""
    prefix: Prefix | None = None
    """What the base reads before the prompt while this adapter acts."""
    trained_behind: Prefix | Recorded | None = RECORDED
    """What the base read when its weights last took gradients; RECORDED while they have not."""

    def shared_reading_key(self) -> tuple[Any, ...]:
        """What its networks read, but for the prefix: two adapters with equal ones have a common network read once."""
        own = self.adapter
        return self.refinement, own.config.connection, own.config.vocabulary, own.tokenizer.chat_template

    def parts(self, name: str) -> tuple[str, ...]:
        """Names of its networks in a cache, for an adapter of this name."""
        return tuple(f"{name}.{self.serial}.{index}" for index in range(len(self.adapter.networks)))


class AttachedAdapters:
    """The registry of one model.

    Args:
        modules: the model's own modules; `base` among them is the frozen base, whichever it is when it is asked for.
        tokenizer: the base's tokenizer; found by the base's name when it is first needed by default.
        strict: whether negative weights are an error.

    Attributes:
        by_name: name -> adapter, in the order of attaching.
        active: names of the active ones, in the order they were activated.
        enabled: False while `disable_adapters` holds.
        given_prefix: the one prefix for all, or RECORDED where each adapter brings its own.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module | None],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.modules, self.tokenizer, self.strict = modules, tokenizer, strict
        self.by_name: dict[str, Attached] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.given_prefix: Prefix | Recorded | None = RECORDED
        self.prefixes = PrefixMemory(self._prefixes_in_use)
        self.bodies = Bodies()
        self.told_of_stop_strings = False
        self._side: ModelVocabulary | None = None
        self._side_of: tuple[Any, ...] | None = None  # the tokenizer, how many tokens it has, its end, the base's width

    @property
    def base(self) -> PreTrainedModel:
        """The base as the model has it now."""
        return cast(PreTrainedModel, self.modules["base"])

    def for_copy(self, modules: Mapping[str, nn.Module | None]) -> AttachedAdapters:
        """The registry of a shallow copy of the model: the same adapters, but a choice among them of its own.

        Args:
            modules: the copy's.
        """
        twin = copy.copy(self)
        twin.modules, twin.prefixes = modules, PrefixMemory(twin._prefixes_in_use)
        return twin

    # -- which there are ---------------------------------------------------------------------------------------------
    def get(self, name: str) -> Attached:
        """An adapter by its name.

        Raises:
            AdapterNameError: no such adapter.
        """
        if name not in self.by_name:
            raise AdapterNameError(f"there is no adapter '{name}'; attached are {list(self.by_name) or 'none'}")
        return self.by_name[name]

    def only_name(self, name: str | None = None) -> str:
        """The named adapter, or the one that is meant when there is just one.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
        """
        if name is not None:
            self.get(name)
            return name
        if len(self.by_name) != 1:
            raise AdapterNameError(f"name the adapter with adapter_name=; attached are {list(self.by_name) or 'none'}")
        return next(iter(self.by_name))

    def adapters(self) -> dict[str, ValueAdapter]:
        """Name -> adapter."""
        return {name: attached.adapter for name, attached in self.by_name.items()}

    def networks(self) -> list[PreTrainedModel]:
        """Those of all adapters, one that several have more than once."""
        return [network for attached in self.by_name.values() for network in attached.adapter.networks]

    # -- which act, and how strongly ---------------------------------------------------------------------------------
    def scope(self) -> Scope | None:
        """What a block such as `disable_adapter()` says to the code that asks; None outside all blocks."""
        return current_scope(self)

    def scoped(
        self,
        names: tuple[str, ...],
        prefix: BasePrefix | None = None,
        *,
        scales: Mapping[str, float] | None = None,
        rows: Names | None = None,
    ) -> Block:
        """A block within which just these adapters act; see `thread_scope.scoped`."""
        return scoped(self, names, prefix, scales=scales, rows=rows)

    def active_names(self) -> list[str]:
        """Names of the adapters that act now, in the order they were activated; empty while disabled."""
        if (scope := self.scope()) is not None:
            return [name for name in scope.names if name in self.by_name]
        return list(self.active) if self.enabled else []

    def scales(self) -> dict[str, float]:
        """Name -> scale of every attached adapter, as it acts here."""
        own = {name: attached.scale for name, attached in self.by_name.items()}
        if (scope := self.scope()) is not None:
            own |= {name: scale for name, scale in scope.scales.items() if name in own}
        return own

    def set_scale(self, name: str, scale: float) -> None:
        """Sets a scale: a block's own where one holds for this adapter, else the adapter's.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: not a finite number, or below 0 in strict mode.
        """
        attached = self.get(name)
        scale = self.check_scale(name, scale)
        scope = self.scope()
        for scales in scope.scales.maps if scope is not None else []:
            if name in scales:
                scales[name] = scale
                return
        attached.scale = scale

    def check_scale(self, name: str, scale: float) -> float:
        """The scale as it is kept; warns of one below 0.

        Raises:
            ConfigError: not a finite number, or below 0 in strict mode.
        """
        kept = float(finite(f"scale of '{name}'", scale))
        if kept < 0:
            self.warn_below_zero(f"scale {kept:g} of '{name}'")
        return kept

    def warn_below_zero(self, what: str) -> None:
        """Says what a negative weight can do.

        Raises:
            ConfigError: in strict mode.
        """
        danger = (
            f"{what} moves the base away from what the adapter was trained to do; this can undo safety training "
            "(emulated disalignment, Zhou et al. 2024, arXiv 2402.12343)"
        )
        if self.strict:
            raise ConfigError(
                f"{danger}, and this model is strict. Take a weight of 0 or more, or load it without strict"
            )
        logger.warning("%s", danger)

    def terms(self) -> list[Term]:
        """The adapters of the sum as it stands: active, with a scale that is not 0.

        A network that several of them have, and read alike, bears one name in all, under which it runs once.
        """
        scales = self.scales()
        known: dict[tuple[Any, ...], tuple[str, BasePrefix | None]] = {}
        found = []
        for name in self.active_names():
            if scales[name] == 0:
                continue
            attached = self.by_name[name]
            own = attached.adapter
            readings = self._prefix_readings(name, attached)
            parts = []
            for index, part in enumerate(attached.parts(name)):
                prefix = readings[index] if readings else None
                read_alike = (id(own.networks[index]), prefix is not None, *attached.shared_reading_key())
                parts.append(known.setdefault(read_alike, (part, prefix)))
            found.append(
                Term(
                    name=name,
                    parts=tuple(part for part, _ in parts),
                    networks=own.networks,
                    weights=attached.weights,
                    scale=scales[name],
                    link=attached.link,
                    refinement=attached.refinement,
                    connection=own.config.connection,
                    prefixes=tuple(prefix for _, prefix in parts) if readings else (),
                    tokenizer=own.tokenizer,
                    ends=self.ends() if attached.weights.end else (),
                )
            )
        return found

    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text of the base: its tokenizer's end of sequence and those it is set to stop at."""
        width = logits_width(self.base)
        return tuple(sorted(token for token in stop_tokens(self.base, self.tokenizer) if token < width))

    def stop_strings(self, names: Collection[str] | None = None) -> tuple[str, ...]:
        """The texts that end an answer, besides the base's tokens: what the acting adapters record.

        Args:
            names: the adapters that are asked for; by default those that are active.
        """
        scales = self.scales()
        acting = [name for name in (self.active_names() if names is None else names) if scales[name] != 0]
        found = dict.fromkeys(text for name in acting for text in self.by_name[name].adapter.config.stop_strings)
        if found and not self.told_of_stop_strings:
            self.told_of_stop_strings = True
            logger.info(
                "answers end at %s, which stands between the examples of the prefix; stop_strings=[] switches that off",
                " or ".join(map(repr, found)),
            )
        return tuple(found)

    def set_weights(self, name: str, weights: Weights, scale: float | None = None) -> None:
        """Sets what each summand counts for at scale 1, and perhaps the scale.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: not one weight for each network.
        """
        attached = self.get(name)
        if not isinstance(weights, Weights):
            raise ConfigError(f"expected Weights(base, networks, end) for '{name}'; got {weights!r}")
        if len(weights.networks) != (count := len(attached.adapter.networks)):
            raise ConfigError(f"expected one weight for each of {count} networks of '{name}'; got {weights}")
        if scale is not None:
            self.set_scale(name, scale)
        attached.weights = weights

    def note_training(self) -> None:
        """Takes note of what the base reads while networks take gradients: it is recorded with what they learn."""
        for name in self.active_names() if torch.is_grad_enabled() and not torch.compiler.is_compiling() else ():
            attached = self.by_name[name]
            if attached.scale != 0 and any(network.training for network in attached.adapter.networks):
                attached.trained_behind = self.base_prefix()

    # -- behind which prefix -----------------------------------------------------------------------------------------
    def base_prefix(self) -> Prefix | None:
        """What the base reads before the prompt as the adapters stand; None while none acts.

        Raises:
            UnsupportedModeError: the acting adapters bring different prefixes.
        """
        scales = self.scales()
        acting = [name for name in self.active_names() if scales[name] != 0]
        return self.one_prefix(acting) if acting else None

    def one_prefix(self, names: Sequence[str]) -> Prefix | None:
        """The prefix that is set for all, or the one that these adapters bring.

        Raises:
            UnsupportedModeError: they bring different ones.
        """
        if not isinstance(self.given_prefix, Recorded):
            return self.given_prefix
        own = {name: self.by_name[name].prefix for name in names}
        different = {prefix: name for name, prefix in own.items() if prefix is not None}
        if len(different) > 1:
            raise UnsupportedModeError(
                f"the adapters {' and '.join(map(repr, different.values()))} bring different base prefixes, and the "
                "base can read one. Choose it with set_base_prefix(model.adapters[name].config.base_prefix), or "
                "none with set_base_prefix(None)"
            )
        return next(iter(different), None)

    def acting_prefix(self) -> BasePrefix | None:
        """The same as the base reads it, or what a block gives it to read in its place.

        Raises:
            UnsupportedModeError: as `base_prefix`.
        """
        if (scope := self.scope()) is not None and scope.prefix is not None:
            return scope.prefix
        prefix = self.base_prefix()
        return None if prefix is None else self.as_read(prefix)

    def as_read(self, prefix: Prefix) -> BasePrefix:
        """A prefix as this base reads it; computed once.

        Raises:
            ConfigError: the base's tokenizer cannot take it.
        """
        return self.prefixes.of(prefix, self.base, self.base_tokenizer()).base

    def _prefix_readings(self, name: str, attached: Attached) -> tuple[BasePrefix | None, ...]:
        """What each network of an adapter reads before the prompt; empty where none reads anything."""
        prefix = self.base_prefix() if attached.adapter.reads_prefix else None
        if prefix is None:
            return ()
        known = self.prefixes.of(prefix, self.base, self.base_tokenizer())
        return known.of_networks(
            attached.adapter, attached.parts(name), serial=attached.serial, link=attached.link, prefix=prefix
        )

    def _prefixes_in_use(self) -> Collection[Prefix]:
        own = [attached.prefix for attached in self.by_name.values()]
        return {one for one in (self.given_prefix, *own) if one is not None and not isinstance(one, Recorded)}

    # -- the base's vocabulary ---------------------------------------------------------------------------------------
    def base_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, found by the base's name where it was not given.

        Raises:
            IncompatibleBaseError: it is not found.
        """
        if self.tokenizer is None:
            self.tokenizer = find_tokenizer(self.base.name_or_path)
        return self.tokenizer

    def base_side(self) -> ModelVocabulary:
        """The base's vocabulary; read anew where the tokenizer is not as it was.

        Raises:
            IncompatibleBaseError: as `base_tokenizer`.
        """
        tokenizer, width = self.base_tokenizer(), logits_width(self.base)
        now = tokenizer, len(tokenizer), tokenizer.eos_token, width
        if self._side is None or self._side_of not in (None, now):
            self._side = side_of(tokenizer, width)
        self._side_of = now
        return self._side

    def take_side(self, side: ModelVocabulary) -> None:
        """Takes the vocabulary that was read while the base was found, if it is as wide as the base's logits."""
        if side.width == logits_width(self.base):
            self._side = side
