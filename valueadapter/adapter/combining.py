"""Several adapters of one vocabulary as one: a weighted sum of all their networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.errors import ConfigError


def combined(adapters: Sequence[ValueAdapter], weights: Sequence[float]) -> ValueAdapter:
    """One adapter whose value logits are the weighted sum of those of several; it shares their networks.

    Args:
        adapters: adapters of one vocabulary and connection.
        weights: one for each; finite and not 0.

    Raises:
        ConfigError: another vocabulary or connection, or a weight that cannot be.
    """
    first = adapters[0].config
    for other in adapters[1:]:
        for what in ("vocabulary", "connection"):
            if getattr(other.config, what) != getattr(first, what):
                raise ConfigError(
                    f"adapters of different {what} cannot become one; let them act side by side instead: "
                    "set_adapter([…]), each at its scale"
                )
    specs = [
        dataclasses.replace(spec, coefficient=weight * spec.coefficient)
        for adapter, weight in zip(adapters, weights, strict=True)
        for spec in adapter.config.networks
    ]
    named = [
        spec if spec.path is None else dataclasses.replace(spec, path=file_names.network_directory(index), sha256={})
        for index, spec in enumerate(specs)
    ]
    each = list(zip([adapter.config for adapter in adapters], weights, strict=True))
    config = dataclasses.replace(
        first,
        networks=tuple(named),
        base_weight=1 + sum(weight * (one.base_weight - 1) for one, weight in each),
        end_weight=sum(weight * one.end_weight for one, weight in each),
        scale=1.0,
        weights=(),
        training=None,
        evaluation=(),
        base_prefix=None,
        stop_strings=tuple(dict.fromkeys(text for one, _ in each for text in one.stop_strings)),
    )
    networks = [network for adapter in adapters for network in adapter.networks]
    return ValueAdapter(config, networks, adapters[0].tokenizer, adapters[0].alignments)
