"""Saving and publishing an attached adapter, never the base; computes nothing.

What an artifact is, `adapter` knows; here is which of the attached it is, and in what state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from valueadapter.adapter.injected_lora import States, as_saveable
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact.config.prefix import Recorded
from valueadapter.model.wrapped import WrappedModel

logger = logging.getLogger(__name__)


class SavingMethods(WrappedModel):
    """The part of `ValueAdapterForCausalLM` that saves."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        adapter_name: str | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        **kwargs: Any,
    ) -> None:
        """Saves an adapter (never the base) as an artifact; see `ValueAdapter.save_pretrained`.

        An adapter that is being trained is saved with the weights and the scale it is trained at and the prefix it is
        trained behind, without what was measured of it before. Where PEFT has put a LoRA into a network
        (`get_peft_model` on this model), an ordinary PEFT checkpoint is written for a network that the adapter
        names by Hub ID, and a network with the LoRA in its weights for any other.

        Args:
            save_directory: new, empty, an earlier adapter's, or a Trainer's output directory, whose content stays.
            adapter_name: which one, where several are attached; by default the one that is being trained.
            is_main_process: False writes nothing.
            state_dict: weights of this wrapper to save in place of its own (gathered from shards).
            max_shard_size: weights larger than this are split over several files.
            kwargs: `push_to_hub=True` and `repo_id` also publish; any other is an error.

        Raises:
            AdapterNameError: no such adapter, or several to choose from.
            ArtifactError: the directory holds something else that would be lost.
            ConfigError: a LoRA of PEFT's that cannot be saved with one network.
        """
        push, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", None)
        if kwargs:
            raise TypeError(f"save_pretrained() got unexpected arguments: {', '.join(kwargs)}")
        if not is_main_process:
            return
        adapter, states = self._to_save(adapter_name, state_dict)
        adapter.save_pretrained(save_directory, max_shard_size=max_shard_size, state_dicts=states)
        if push:
            adapter.push_to_hub(repo_id or Path(save_directory).name)

    def push_to_hub(self, repo_id: str, *, adapter_name: str | None = None, **options: Any) -> Any:
        """Publishes an adapter (never the base), with its prefix; see `ValueAdapter.push_to_hub` for both."""
        return self._to_save(adapter_name, None)[0].push_to_hub(repo_id, **options)

    def _to_save(
        self, adapter_name: str | None, state_dict: dict[str, torch.Tensor] | None
    ) -> tuple[Any, States | None]:
        if adapter_name is None and len(self.attached.by_name) > 1:
            trained = [name for name, one in self.attached.by_name.items() if _takes_gradients(one.adapter)]
            adapter_name = trained[0] if len(trained) == 1 else None
        name = self.attached.only_name(adapter_name)
        adapter = (
            self.as_trained(name)
            if _takes_gradients(self.attached.by_name[name].adapter)
            else self.attached.by_name[name].adapter
        )
        states = None
        if state_dict is not None:
            states = [_under(state_dict, f"value_networks.{name}.{i}.") for i in range(len(adapter.networks))]
        return as_saveable(adapter, getattr(self, "peft_config", None) or {}, states)

    def as_trained(self, adapter_name: str, networks: Sequence[PreTrainedModel] = ()) -> ValueAdapter:
        """An attached adapter with the weights and scale it is trained at and the prefix that the base reads meanwhile.

        Args:
            adapter_name: an attached adapter.
            networks: whole ones, where those that are attached lie in parts.
        """
        attached = self.attached.by_name[adapter_name]
        adapter, prefix = attached.adapter.replaced(networks=networks), attached.trained_behind
        if isinstance(prefix, Recorded):  # not trained yet
            prefix = self.attached.one_prefix([adapter_name])
        if adapter.config.base_prefix is not None and prefix != adapter.config.base_prefix:
            logger.warning(
                "'%s' is trained %s, which is recorded in the place of the base prefix that it came with",
                adapter_name,
                "without a base prefix" if prefix is None else "behind another base prefix",
            )
        return adapter.with_weights(attached.weights).with_config(scale=attached.scale, base_prefix=prefix)


def _takes_gradients(adapter: ValueAdapter) -> bool:
    return any(p.requires_grad for network in adapter.networks for p in network.parameters())


def _under(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
