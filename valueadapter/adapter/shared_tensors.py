"""Tensors that several models have are held once: the models stay apart, and their equal parameters are one object.

A body with a LoRA and the same body without it have all weights but the LoRA's in common; so have a body and the base
that it is.
What is shared must not be written to for one of them alone: `make_own` comes first. Knows nothing of adapters.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

_PEFT = ("base_model.model.", "base_layer.")
"""What PEFT puts before the names of a model that it wraps, and into those of the layers that it replaces."""
_SHARED = "_held_by_several_models"
"""An attribute of parameters that several models have, or had: twins alone, or models that were loaded apart."""
_TWINS, _MODELS = "twins", "models"
_together: ContextVar[bool] = ContextVar("valueadapter_together", default=False)
_Model = TypeVar("_Model", bound=nn.Module)


def twin(model: _Model) -> _Model:
    """Modules of their own that hold the same tensors."""
    kept = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for parameter in of_body(model).values():
        setattr(parameter, _SHARED, getattr(parameter, _SHARED, _TWINS))
    found = copy.deepcopy(model, kept)  # what is in the memo is not copied
    guard(model)
    guard(found)
    return found


@torch.no_grad()
def share(model: nn.Module, others: Sequence[nn.Module]) -> None:
    """Puts the parameters of another model in the place of a model's, where the two are one but for a LoRA.

    All of them have an equal one of the same name there, apart from what PEFT adds, or none is touched; only ordinary
    parameters that take no gradients.

    Args:
        model: what is changed; what it computes stays the same to the last bit.
        others: models that hold theirs already; the first that is the same gives them.
    """
    mine = of_body(model)
    for other in others:
        theirs = of_body(other)
        if mine.keys() == theirs.keys() and all(_same(own, theirs[name]) for name, own in mine.items()):
            for parameter in theirs.values():
                setattr(parameter, _SHARED, _MODELS)
            _replace(model, {id(own): theirs[name] for name, own in mine.items()})
            guard(model)
            guard(other)
            return


@torch.no_grad()
def make_own(module: nn.Module) -> None:
    """Gives a model, or one of its modules, copies of the parameters that other models have as well."""
    copies = {
        id(own): nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
        for own in module.parameters()
        if is_shared(own)
    }
    _replace(module, copies)


@torch.no_grad()
def swap_weights(model: nn.Module, other: nn.Module) -> None:
    """Puts a model's weights in the place of another's, into the same tensors, but for those that a third one has.

    Args:
        model: what is changed.
        other: of the same architecture.
    """
    new = other.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, new[name].to(tensor))}
    if any(is_shared(one) for name, one in _named(model) if name in changed):
        make_own(model)
    for name, tensor in model.state_dict().items():
        if name in changed:
            tensor.copy_(new[name])


def guard(model: nn.Module) -> None:
    """Has a model take weights of its own before a LoRA is merged into it, or it is moved or cast alone."""
    for whole in {id(one): one for one in (model, getattr(model, "get_base_model", lambda: model)())}.values():
        vars(whole)["_apply"] = functools.partial(_applied_apart, whole)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            vars(module)["merge"] = functools.partial(_merged_apart, module)


def copy_of_its_own(model: nn.Module) -> Any:
    """A copy that shares nothing, need not be guarded, and is gone as soon as nobody holds it."""
    found = copy.deepcopy(model)
    for module in found.modules():
        for name in ("_apply", "merge"):
            vars(module).pop(name, None)
    return found


def move(models: Sequence[nn.Module], **where: Any) -> None:
    """Moves or casts models that belong together, which go on sharing what they share with nobody else.

    Args:
        models: the models.
        where: as for `torch.nn.Module.to`.
    """
    among_them = all(getattr(one, _SHARED, _TWINS) == _TWINS for model in models for one in model.parameters())
    with together() if among_them else nullcontext():
        for model in models:
            model.to(**where)


@contextmanager
def together() -> Iterator[None]:
    """Within the block all models that share tensors are moved or cast, so that they go on sharing them."""
    token = _together.set(True)
    try:
        yield
    finally:
        _together.reset(token)


def copied(what: Any, models: Iterable[nn.Module], memo: dict[int, Any]) -> Any:
    """A deep copy of something that holds models, in which what these share is known to be shared.

    Args:
        what: anything but a model.
        models: the models.
        memo: of the copying.
    """
    found = copy.deepcopy(what, memo)
    for parameter in (one for model in models for one in model.parameters()):
        if is_shared(parameter) and (other := memo.get(id(parameter))) is not None:
            setattr(other, _SHARED, getattr(parameter, _SHARED))
    return found


def is_shared(parameter: nn.Parameter) -> bool:
    """Whether several models have a parameter, or had it."""
    return hasattr(parameter, _SHARED)


def in_common(model: nn.Module, others: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of a model that others hold as well."""
    theirs = {id(parameter) for other in others for parameter in other.parameters()}
    return [own for own in model.parameters() if id(own) in theirs]


def held_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of the parameters and buffers of some models; what they have in common counts once."""
    found = {id(tensor): tensor for model in models for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in found.values())


def of_body(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name, apart from what PEFT adds -> parameter, but for those of a LoRA."""
    return {plain_name(name): one for name, one in _named(model) if ".lora_" not in name}


def plain_name(name: str) -> str:
    """A parameter's name, or a module's, as it is in a model that PEFT has not changed."""
    for part in _PEFT:
        name = name.replace(part, "")
    return name


def _named(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)  # a tied one under each of its names


def _same(a: nn.Parameter, b: nn.Parameter) -> bool:
    """One parameter, or two equal ones neither quantized, offloaded nor trained: one can stand for the other."""
    if a is b:
        return True
    ordinary = all(
        type(one) is nn.Parameter
        and not (one.is_meta or one.is_inference() or one.requires_grad)
        and one.is_contiguous()
        for one in (a, b)
    )
    alike = a.dtype == b.dtype and a.device == b.device and a.shape == b.shape
    return ordinary and alike and torch.equal(a, b)


def _replace(model: nn.Module, replacements: dict[int, nn.Parameter]) -> None:
    """Wherever a parameter stands in the model: a tied one stands in several places."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in replacements:
                module._parameters[name] = replacements[id(parameter)]


def _merged_apart(layer: Any, *args: Any, **kwargs: Any) -> None:
    make_own(layer.get_base_layer())
    type(layer).merge(layer, *args, **kwargs)


def _applied_apart(model: Any, *args: Any, **kwargs: Any) -> Any:
    if not _together.get():
        make_own(model)
    return type(model)._apply(model, *args, **kwargs)
