"""Choosing among the attached adapters: which ones act, how strongly, behind which prefix; computes nothing.

Speaks PEFT's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config import Prefix, ValueAdapterConfig, Weights
from valueadapter.artifact.config.prefix import GivenPrefix, Recorded, as_prefix
from valueadapter.errors import AdapterNameError, ConfigError, UnsupportedModeError
from valueadapter.forward.alignment_modes import Centring, Mode
from valueadapter.model.adapter_names import names_given
from valueadapter.model.thread_scope import Block
from valueadapter.model.wrapped import WrappedModel


class ChoosingMethods(WrappedModel):
    """The part of `ValueAdapterForCausalLM` that chooses among attached adapters, scales and base prefixes."""

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Makes one or several attached adapters the active ones; their value logits add up.

        Raises:
            AdapterNameError: no such adapter, or one named twice.
        """
        names = names_given(adapter_name)
        for name in names:
            self.attached.get(name)
        if len(set(names)) != len(names):
            raise AdapterNameError(f"an adapter can be active once; got {list(names)}. Raise its scale instead")
        self.attached.one_prefix(names)
        self.attached.active = names
        self.attached.enabled = True

    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Sets how strongly an adapter acts: logits = base logits + scale · value logits. 0 switches it off, 1 is the
        adapter as its weights for this base say.

        A negative scale is allowed with a warning: moved away from a safety-tuned adapter, a base may lose what it was
        taught to refuse. Within `only(adapter_name, …)` the scale is the block's, and goes with it.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: not a finite number, or below 0 where the model is `strict`.
        """
        self.attached.set_scale(adapter_name, scale)

    def set_weights(self, adapter_name: str, weights: Weights, *, scale: float | None = 1.0) -> None:
        """Sets what base, networks and end of text count for, as `calibrate` finds it.

        It holds for all threads, and is not saved; record it with `Calibration.recommended`.

        Args:
            adapter_name: an attached adapter.
            weights: what each counts for at scale 1.
            scale: the scale to act at from now on; 1, as the weights say. None leaves it as it is.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: not one weight for each network, no finite scale, or one below 0 where the model is `strict`.
        """
        self.attached.set_weights(adapter_name, weights, scale)

    def set_alignment_mode(self, adapter_name: str, mode: Mode) -> None:
        """Sets how an adapter's logits come to a base of another vocabulary.

        `static` is the map alone, and the default. `chain` runs the network over the base's 24 likeliest tokens; see
        `docs/alignment.md` for what it costs and gives.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: no such mode.
            UnsupportedModeError: the adapter reads the base's ids, so that there is nothing to better; or it has
                several networks.
        """
        attached = self.attached.get(adapter_name)
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
        attached.refinement = Centring(reading.value, reading.width)

    def only(self, adapter_name: str, *, scale: float) -> Block:
        """Within the block, and in its thread only, just this adapter acts, at this scale; afterwards all is as before.

        In a generator the block holds while the generator runs, and not for the code that reads its values.

        Raises:
            AdapterNameError: no such adapter.
            ConfigError: the scale is no finite number.
            UnsupportedModeError: entered in an asynchronous generator.
        """
        self.attached.get(adapter_name)
        own = self.attached.check_scale(adapter_name, scale)
        return self.attached.scoped((adapter_name,), scales={adapter_name: own})

    def disable_adapter(self) -> Block:
        """Within the block, and in its thread only, the model is the base, bit for bit, and no network runs.

        Blocks may be nested. A thread that is started from within does not inherit the block: enter it there, or pass
        `adapter_names=[None]` to `generate`. In a generator the block holds while the generator runs, and not for the
        code that reads its values.

        Raises:
            UnsupportedModeError: entered in an asynchronous generator.
        """
        return self.attached.scoped(())

    def disable_adapters(self) -> None:
        """Switches all adapters off, for all threads, until `enable_adapters`."""
        self.attached.enabled = False

    def enable_adapters(self) -> None:
        """Switches the active adapters on again."""
        self.attached.enabled = True

    # -- the base's prefix -------------------------------------------------------------------------------------------
    def set_base_prefix(self, prefix: GivenPrefix) -> None:
        """Sets what only the base reads before the prompt, whichever adapters act; `RECORDED` gives each its own again.

        Start with a new cache afterwards. With no adapter acting the base reads no prefix.

        Args:
            prefix: text, chat messages, None for nothing, or `RECORDED`.

        Raises:
            ConfigError: empty or no prefix, or messages for a base without chat template.
        """
        given = prefix if isinstance(prefix, Recorded) else as_prefix(prefix)
        if given is not None and not isinstance(given, Recorded):
            self.attached.as_read(given)
        self.attached.given_prefix = given
        self.attached.prefixes.forget()

    @property
    def base_prefix(self) -> Prefix | None:
        """What the base reads before the prompt as the adapters stand; None while none acts.

        Raises:
            UnsupportedModeError: the acting adapters bring different prefixes.
        """
        return self.attached.base_prefix()

    def prefixed_base(self, prefix: Prefix | Sequence[Mapping[str, str]]) -> Block:
        """Within the block the model is the base after a prefix, without any adapter.

        This is what a few examples in the prompt give without us, at the cost of reading them once.

        Args:
            prefix: text or chat messages.

        Raises:
            ConfigError: as `set_base_prefix`.
        """
        given = as_prefix(prefix)
        return self.attached.scoped((), None if given is None else self.attached.as_read(given))

    # -- asking ------------------------------------------------------------------------------------------------------
    @property
    def adapters(self) -> dict[str, ValueAdapter]:
        """Name -> attached adapter."""
        return self.attached.adapters()

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act now, in the order they were activated; empty while disabled."""
        return self.attached.active_names()

    @property
    def active_adapter(self) -> str:
        """The name of the adapter that acts now, where it is one.

        Raises:
            AdapterNameError: none acts, or several do; `active_adapters` has them all.
        """
        names = self.attached.active_names()
        if len(names) != 1:
            raise AdapterNameError(
                f"active_adapter is the name of one; active are {names or 'none'}. active_adapters lists them, "
                "set_adapter(name) chooses one"
            )
        return names[0]

    @property
    def adapter_configs(self) -> Mapping[str, ValueAdapterConfig]:
        """Name -> configuration of every attached adapter, to read: what `peft_config` is on a `PeftModel`.

        It has another name because TRL and PEFT take whatever has a `peft_config` for a model of PEFT's: they unwrap
        it, and put LoRA's configurations there.
        """
        return MappingProxyType({name: one.config for name, one in self.attached.adapters().items()})

    def get_base_model(self) -> PreTrainedModel:
        """The base, which no adapter changes: `model.base`. As in PEFT; `unload` also detaches the adapters."""
        return self.base

    @property
    def scales(self) -> dict[str, float]:
        """Name -> scale of every attached adapter, as it acts here."""
        return self.attached.scales()

    @property
    def weights(self) -> dict[str, Weights]:
        """Name -> what each summand counts for at scale 1, of every attached adapter."""
        return {name: attached.weights for name, attached in self.attached.by_name.items()}

    def only_adapter(self, adapter_name: str | None = None) -> str:
        """The named adapter, or the one that is meant when there is just one.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
        """
        return self.attached.only_name(adapter_name)

    @property
    def strict(self) -> bool:
        """Whether negative scales and weights are an error."""
        return self.attached.strict

    @strict.setter
    def strict(self, strict: bool) -> None:
        self.attached.strict = strict

    @property
    def base_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The base's tokenizer; None while it was neither given nor needed."""
        return self.attached.tokenizer

    @base_tokenizer.setter
    def base_tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.attached.tokenizer = tokenizer
