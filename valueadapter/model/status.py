"""What is attached to a wrapped base, for people and in numbers; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from valueadapter.adapter.shared_tensors import held_bytes, of_body
from valueadapter.artifact.config import Prefix, Weights, prefix_text
from valueadapter.artifact.config.prefix import Recorded
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.model.bodies import why_apart
from valueadapter.model.registry import Attached, AttachedAdapters
from valueadapter.model.wrapped import WrappedModel


@dataclass(frozen=True)
class AdapterStatus:
    """One attached adapter."""

    name: str
    active: bool
    """Whether it acts now, here."""
    scale: float
    weights: Weights
    """What base, networks and end of text count for at scale 1."""
    vocabulary: Literal["same", "permuted", "another"]
    """The adapter's, beside the base's: the same, the same tokens under other ids, or another."""
    mode: str
    """How its logits come to the base: `same` ids, or `static` or `chain` (docs/alignment.md)."""
    connection: str
    """What its networks read."""
    networks: int
    parameters: int
    """Of its networks, those included that it shares with other adapters."""
    trainable_parameters: int
    prefix_tokens: int
    """Tokens of the prefix that it brings for the base; 0 without one."""
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    held_bytes: int
    """Of its networks' weights and buffers that neither the base nor an adapter attached before it holds."""
    passes: int
    """Of its networks per token that is generated while no other adapter acts: networks of one body speak in one."""
    apart: tuple[str, ...]
    """Why a network runs in a pass of its own, whatever the others are: `<index>: <reason>`."""


class StatusMethods(WrappedModel):
    """The part of `ValueAdapterForCausalLM` that says what is attached."""

    def __repr__(self) -> str:
        """Base and adapters in a few lines, for which nothing is loaded or computed; `model.base` has the layers."""
        base, attached = vars(self).get("_modules", {}).get("base"), vars(self).get("attached")
        if base is None or attached is None:  # not yet put together
            return f"{type(self).__name__}()"
        lines = [f"base: {_of_base(base)}"]
        if not isinstance(given := attached.given_prefix, Recorded):
            lines.append(f"prefix, for all adapters: {_length(given, attached)}")
        for name, one in attached.by_name.items():
            lines += self._lines(name, one)
        if not attached.by_name:
            lines.append("no adapter: load_adapter(…) attaches one")
        return "\n".join([f"{type(self).__name__}(", *(f"  {line}" for line in lines), ")"])

    def _lines(self, name: str, one: Attached) -> list[str]:
        """An attached adapter: how it acts, and what it is made of."""
        state = "active" if name in self.attached.active_names() else "not active"
        networks, bodies = one.adapter.networks, {_body(network) for network in one.adapter.networks}
        of = f" of {_number(len(bodies), 'body', 'bodies')}" if len(networks) > 1 else ""
        made_of = [_number(len(networks), "network") + of]
        if _body(self.attached.base) in bodies:
            made_of[0] += " (the base's)" if len(bodies) == 1 else " (one is the base's)"
        if one.prefix is not None:
            readers = sum(spec.reads_prefix for spec in one.adapter.config.networks)
            also = f" and {_number(readers, 'network')}" if readers else ""
            made_of.append(f"a prefix of {_length(one.prefix, self.attached)} for the base{also}")
        if any(p.requires_grad for network in networks for p in network.parameters()):
            made_of.append("trainable")
        acts = f"{state}, scale {self.attached.scales()[name]:g}: {one.weights}"
        return [f"adapter '{name}': {acts}", f"  {'; '.join(made_of)}"]

    def get_adapter_status(self) -> list[AdapterStatus]:
        """One entry for each attached adapter, in the order of attaching."""
        return [self._status(name) for name in self.attached.by_name]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable parameters, and of all, of base and networks; what is shared counts once."""
        networks = [network for adapter in self.attached.adapters().values() for network in adapter.networks]
        everything = {id(p): p for model in (self.base, *networks) for p in model.parameters()}.values()
        return sum(p.numel() for p in everything if p.requires_grad), sum(p.numel() for p in everything)

    def print_trainable_parameters(self) -> None:
        """Prints these numbers, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}")  # noqa: T201

    def _status(self, name: str) -> AdapterStatus:
        attached = self.attached.by_name[name]
        adapter, link, prefix = attached.adapter, attached.link, attached.prefix
        weights = {id(p): p for network in adapter.networks for p in network.parameters()}.values()
        return AdapterStatus(
            name,
            name in self.attached.active_names(),
            self.attached.scales()[name],
            attached.weights,
            "same" if link is None else "permuted" if link.reading is None else "another",
            "same" if link is None else "static" if attached.refinement is None else "chain",
            adapter.config.connection,
            len(adapter.networks),
            sum(p.numel() for p in weights),
            sum(p.numel() for p in weights if p.requires_grad),
            0 if prefix is None else len(prefix_ids(prefix, self.attached.base_tokenizer())),
            tuple(sorted({str(p.device) for p in weights})),
            tuple(sorted({str(p.dtype).removeprefix("torch.") for p in weights})),
            self._held_by(name),
            len(set(map(id, adapter.networks)))
            - sum(len(body.networks) - 1 for body in self.attached.bodies.of(adapter.networks)),
            tuple(
                f"{index}: {reason}"
                for index, network in enumerate(adapter.networks)
                if (reason := why_apart(network)) is not None
            ),
        )

    def _held_by(self, name: str) -> int:
        """Bytes that come to the base, and to the adapters before this one, with it."""
        names = list(self.attached.by_name)
        before = [self.base]
        for other in names[: names.index(name)]:
            before += self.attached.by_name[other].adapter.networks
        return held_bytes([*before, *self.attached.by_name[name].adapter.networks]) - held_bytes(before)


# -- for people --------------------------------------------------------------------------------------------------------
def _of_base(base: nn.Module) -> str:
    name, first = getattr(base, "name_or_path", ""), next(base.parameters(), None)
    where = [] if first is None else [str(first.dtype).removeprefix("torch."), str(first.device)]
    return ", ".join([f"{type(base).__name__} '{name}'" if name else type(base).__name__, *where])


def _body(model: nn.Module) -> frozenset[int]:
    """What tells the weights of a model apart from others', a LoRA aside."""
    return frozenset(map(id, of_body(model).values()))


def _length(prefix: Prefix | None, attached: AttachedAdapters) -> str:
    if prefix is None:
        return "none"
    known = attached.prefixes.known.get(prefix)
    return f"{len(prefix_text(prefix)):,} characters" if known is None else f"{len(known.base.ids):,} tokens"


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
