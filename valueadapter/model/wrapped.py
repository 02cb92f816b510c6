"""What all parts of the wrapped model have: a frozen base, and the registry of what is attached to it."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from transformers import GenerationMixin, PreTrainedModel

from valueadapter.adapter.causal_lm import execution_device
from valueadapter.errors import UnsupportedModeError
from valueadapter.model.adapter_names import INSTEAD
from valueadapter.model.registry import AttachedAdapters


class WrappedModel(PreTrainedModel, GenerationMixin):
    """The ground of `ValueAdapterForCausalLM`, whose methods are grouped by what they are for.

    Attributes:
        base: the model that is never trained here.
        attached: which adapters there are, which act, how strongly and behind which prefix.
        base_released: whether the base's weights are gone, all but its output head's (`release_base` of the trainer).
    """

    base: PreTrainedModel
    attached: AttachedAdapters
    base_released = False

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.attached = self.attached.for_copy(twin._modules)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin.attached.bodies.note([twin.base, *twin.attached.networks()])
        return twin

    def __getattr__(self, name: str) -> Any:
        """Modules, parameters and buffers, as torch has it; what only PEFT has is answered with the right call."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name in INSTEAD:
                raise AttributeError(f"{error}: {INSTEAD[name]}") from None
            raise

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the base's, and where accelerate has offloaded it, where it runs."""
        return execution_device(self.base)

    def check_base(self) -> None:
        """Raises where the base cannot compute any more.

        Raises:
            UnsupportedModeError: a trainer has given its weights back.
        """
        if self.base_released:
            raise UnsupportedModeError(
                "the base's weights were given back after caching its hidden states (release_base), so that this model "
                "only trains; save the adapter, and attach it to a base that is loaded anew"
            )
