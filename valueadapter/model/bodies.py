"""What base and attached networks have in common: weights that are held once, and bodies that speak in one pass.

Knows neither texts nor sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import is_placed
from valueadapter.adapter.shared_body import SharedBody, of_one_body, stamp, why_alone
from valueadapter.adapter.shared_tensors import in_common, make_own, share
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.one_pass import can_join

_Noted = tuple[torch.Tensor, tuple[torch.dtype, torch.device, int], torch.Tensor]
_Found = tuple[tuple[PreTrainedModel, ...], list[Any], tuple[SharedBody, ...]]


class Bodies:
    """The bodies of one model's networks, each found once while they stay as they are."""

    def __init__(self) -> None:
        self._known: dict[frozenset[int], _Found] = {}
        self._shared: list[_Noted] = []

    def __reduce__(self) -> tuple[type[Bodies], tuple[()]]:
        """A copy begins anew: its networks are others."""
        return Bodies, ()

    def of(self, networks: Iterable[PreTrainedModel]) -> Sequence[SharedBody]:
        """The bodies of those networks that are not alone, as they are now."""
        if torch.compiler.is_compiling():
            return ()
        each = {id(network): network for network in networks}
        if len(each) < 2:
            return ()
        stamps = [stamp(network) for network in each.values()]
        known = self._known.get(frozenset(each))
        if known is None or known[1] != stamps:
            own = tuple(each.values())
            known = self._known[frozenset(each)] = own, stamps, tuple(_found(own))
        return known[2]

    def hold_once(
        self, networks: Iterable[PreTrainedModel], base: PreTrainedModel, attached: Sequence[PreTrainedModel]
    ) -> None:
        """Has networks that are not trained hold what base and others hold already, and not a second time.

        Args:
            networks: those of an adapter that is being attached.
            base: the base; left alone where others place its weights, or a LoRA is in it.
            attached: the networks of other adapters.
        """
        self.check()
        alone = is_placed(base) or any(hasattr(module, "lora_A") for module in base.modules())
        others = [*([] if alone else [base]), *filter(_is_frozen, attached)]
        for network in networks:
            if not is_placed(network) and _is_frozen(network):
                share(network, [one for one in others if one is not network])
                others.append(network)
        self.note([base, *attached, *networks])

    def part(
        self, networks: Sequence[PreTrainedModel], base: PreTrainedModel, attached: Sequence[PreTrainedModel]
    ) -> None:
        """Gives networks that leave weights of their own, so that neither they nor the base change with the other.

        Args:
            networks: those of an adapter that is detached.
            base: the base.
            attached: those of the adapters that stay; one of `networks` may be among them, and stays as it is.
        """
        stay = set(map(id, attached))
        for network in networks:
            if id(network) not in stay and in_common(network, [base]):
                make_own(network)
        self._known.clear()
        before = {id(noted[0]): noted for noted in self._shared}
        self.note([base, *attached])
        self._shared = [before.get(id(noted[0]), noted) for noted in self._shared]  # what has changed stays known

    def check(self) -> None:
        """Raises where weights that several models have were changed in place, for all of them.

        Raises:
            UnsupportedModeError: they have; with what to do.
        """
        for parameter, kind, some in () if torch.compiler.is_compiling() else self._shared:
            if kind != _kind(parameter) or not torch.equal(some, _some_of(parameter)):
                raise UnsupportedModeError(
                    "weights that base and value networks, or several of these, hold in common have been changed in "
                    "place, so that all of them have changed. Change the base first (merge a LoRA into it, load other "
                    "weights), then load the adapter anew and attach it; to change a network alone, attach its adapter "
                    "with is_trainable=True"
                )

    def note(self, models: Iterable[nn.Module]) -> None:
        """Takes note of the weights that several of some models have, as they are now.

        Args:
            models: base and networks.
        """
        held = [one for model in {id(model): model for model in models}.values() for one in model.parameters()]
        counts = Counter(map(id, held))
        several = {id(one): one for one in held if counts[id(one)] > 1}.values()
        self._shared = [(one, _kind(one), _some_of(one)) for one in several]


def _kind(parameter: torch.Tensor) -> tuple[torch.dtype, torch.device, int]:
    return parameter.dtype, parameter.device, parameter._version


def _is_frozen(network: PreTrainedModel) -> bool:
    return not any(parameter.requires_grad for parameter in network.parameters())


def _some_of(parameter: torch.Tensor) -> torch.Tensor:
    """Elements from all over a tensor: a write past autograd (`.data`), as merging does, changes most of them."""
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // 16)].clone()


def why_apart(network: PreTrainedModel) -> str | None:
    """What keeps a network from speaking in one pass with others of its body; None where nothing does."""
    if (reason := why_alone(network)) is not None:
        return reason
    return None if can_join(network) else "its attention takes no masks of any form (sdpa or eager would)"


def _found(networks: Sequence[PreTrainedModel]) -> Iterable[SharedBody]:
    groups: list[list[PreTrainedModel]] = []
    for network in networks:
        if why_apart(network) is None:
            group = next((own for own in groups if of_one_body(own[0], network)), None)
            groups.append([network]) if group is None else group.append(network)
    return [body for group in groups if len(group) > 1 and (body := SharedBody(group)).goes_by_rows()]
