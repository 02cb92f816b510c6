"""LoRA networks: a base with a LoRA, whose value logits are what the LoRA changes; knows no trainer."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from valueadapter.artifact.config.number import whole
from valueadapter.artifact.config.parts import COMMIT
from valueadapter.errors import ConfigError


def build_lora_network(
    source: PreTrainedModel,
    *,
    rank: int,
    name: str,
    revision: str | None = None,
    alpha: int | None = None,
    target_modules: Sequence[str] | None = None,
) -> PreTrainedModel:
    """Makes a value network of which only a LoRA is trained and, where `revision` pins the rest, saved: a few MB.

    Its logits are those of `source` until it is trained, so an adapter holds it at +1 and `source` at -1: together they
    are 0 at first, and afterwards what the training moved (as in proxy-tuning, Liu et al. 2024, arXiv 2401.08565).

    Args:
        source: the causal language model that the LoRA is for. It is copied.
        rank: of the LoRA, on every linear layer of the body; at least 1.
        name: Hub ID of `source`, for the record in the LoRA's own configuration.
        revision: its commit, 40 hex digits; without one the network is saved whole, with the LoRA in its weights.
        alpha: what the LoRA is scaled by, times the rank; twice the rank by default.
        target_modules: names of the linear layers that it is on, as `q_proj`; by default every one of the body.

    Raises:
        ConfigError: a rank below 1, or a name that no linear layer of the body has.
    """
    rank = whole("the rank of a LoRA", rank, least=1)
    own = copy.deepcopy(source)
    own.generation_config = GenerationConfig()
    for module in own.modules():  # what someone hung on the source is not the network's
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    network = with_lora(own, rank, revision=revision, alpha=alpha, target_modules=target_modules)
    network.peft_config["default"].base_model_name_or_path = name
    return network.eval()


def with_lora(
    model: PreTrainedModel,
    rank: int,
    *,
    revision: str | None = None,
    alpha: int | None = None,
    target_modules: Sequence[str] | None = None,
) -> Any:
    """The model as a `PeftModel` with a new LoRA; by default on every linear layer of its body, scaled by 2.

    Args:
        model: a causal language model; it is changed in place.
        rank: of the LoRA, at least 1.
        revision: commit of the model, for the LoRA's record.
        alpha: as in `build_lora_network`.
        target_modules: as in `build_lora_network`.
    """
    from peft import LoraConfig, get_peft_model  # slow to import, and few adapters need it

    if target_modules is not None:
        _check_targets(model, target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules="all-linear" if target_modules is None else [*target_modules],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's linear layers
        task_type="CAUSAL_LM",
        revision=revision,
    )
    with quiet_peft():
        return get_peft_model(model, config)


def _check_targets(model: PreTrainedModel, wanted: Sequence[str]) -> None:
    """PEFT takes a name that no layer has for nothing, as long as another one is found."""
    head = model.get_output_embeddings()
    layers = [
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]
    known = sorted({name.split(".")[-1] for name in layers})
    for name in wanted:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            raise ConfigError(
                f"{type(model).__name__} has no linear layer '{name}' to put a LoRA on; it has {', '.join(known)}"
            )


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks models by a name that transformers 5.24 renames; the warning is for PEFT, not for our users."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def has_injected_layers(network: PreTrainedModel) -> bool:
    """Whether PEFT has replaced layers of a network that is no `PeftModel` itself."""
    if isinstance(getattr(network, "peft_config", None), dict):
        return False
    return any(hasattr(module, "base_layer") for module in network.modules())


def described(network: PreTrainedModel) -> str:
    """A network in a few words, for people: its class, and its LoRA."""
    if (rank := rank_of(network)) is None:
        return type(network).__name__
    return f"{type(cast(Any, network).get_base_model()).__name__} with a LoRA of rank {rank}"


def rank_of(network: PreTrainedModel) -> int | None:
    """The rank of a network's LoRA, or None where it has none."""
    configs = getattr(network, "peft_config", None)
    return next((one.r for one in configs.values() if hasattr(one, "r")), None) if isinstance(configs, dict) else None


def is_unpinned(network: PreTrainedModel) -> bool:
    """Whether a network is a LoRA (a `PeftModel`) whose base is not named at a commit."""
    configs = getattr(network, "peft_config", None)
    if not isinstance(configs, dict):
        return False
    return not all(COMMIT.fullmatch(str(config.revision)) for config in configs.values())


def active_lora(network: PreTrainedModel) -> str:
    """The name of the LoRA with which a `PeftModel` computes.

    Raises:
        ConfigError: it computes with several.
    """
    names = list(cast(Any, network).active_adapters)
    if len(names) != 1:
        raise ConfigError(f"a network is saved with one LoRA; active in it are {names}. Choose it with set_adapter")
    return str(names[0])


def check_switched_on(network: PreTrainedModel) -> None:
    """Refuses to save a LoRA that does nothing now, and would once it is loaded.

    Raises:
        ConfigError: it is switched off.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) and module.disable_adapters for module in network.modules()):
        raise ConfigError(
            "the LoRA of this network is switched off (disable_adapter_layers), and would act where it is loaded; "
            "switch it on first (enable_adapter_layers), or save the network without it (unload)"
        )


def merged(network: PreTrainedModel) -> PreTrainedModel:
    """A LoRA network as an ordinary one, with the LoRA in its weights; another network as it is."""
    if not isinstance(getattr(network, "peft_config", None), dict):
        return network
    untie(cast(Any, network).get_base_model())
    plain: PreTrainedModel = network.merge_and_unload()
    if plain.get_input_embeddings().weight is plain.get_output_embeddings().weight:  # trained as one weight
        plain.config.get_text_config().tie_word_embeddings = True
    return plain.eval()


def untie(model: PreTrainedModel) -> None:
    """Gives each layer that PEFT has replaced a weight of its own where it is tied to another layer's, so that what was
    trained can be put into it alone; embedding and head are then saved as two.

    Args:
        model: a causal language model; it is changed in place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    held = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for module in list(model.modules()):
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        layer: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        weight: Any = getattr(layer, "weight", None)
        if held[id(weight)] > 1:
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            model.config.get_text_config().tie_word_embeddings = False
