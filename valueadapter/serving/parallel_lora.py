"""A LoRA on vLLM's parallel layers: two more of them, of the rank's width, so that tensor parallelism stays vLLM's.

On a layer that splits its output the second factor is split as the layer is; on one that splits its input the first is
(as in S-LoRA, Sheng et al. 2024, arXiv 2311.03285, section 6). Several projections in one layer have a block each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from valueadapter.errors import ConfigError

_SIZES = (
    "input_size",
    "output_size",
    "output_sizes",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "v_head_size",
    "tp_size",
)
"""What models ask a layer for, to split its output."""


class LoRALinear(nn.Module):
    """A layer of vLLM's whose output a LoRA is added to.

    Args:
        linear: the layer, which may be another voice's, too.
        ranks: of each of its projections, in their order; 0 for one without LoRA.
        dtype: of the LoRA's weights.
    """

    def __init__(self, linear: LinearBase, ranks: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer: Any = linear
        self.ranks = tuple(ranks)
        self.is_fused = len(ranks) == 1 and isinstance(linear, (QKVParallelLinear, MergedColumnParallelLinear))
        options: dict[str, Any] = {"bias": False, "params_dtype": dtype, "disable_tp": linear.disable_tp}
        rank = sum(ranks)
        if isinstance(linear, RowParallelLinear):
            more = {"input_is_parallel": linear.input_is_parallel, "reduce_results": linear.reduce_results}
            self.lora_a: LinearBase = RowParallelLinear(linear.input_size, rank, **more, **options)
            self.lora_b: LinearBase = ReplicatedLinear(rank, linear.output_size, **options)
        else:
            self.lora_a = ReplicatedLinear(linear.input_size, rank, **options)
            self.lora_b = _same_split(linear, rank, options)
        for name in _SIZES:
            if hasattr(linear, name):
                setattr(self, name, getattr(linear, name))
        self.lora_b.weight.data.zero_()  # for a projection without LoRA nothing is loaded

    def forward(self, hidden_states: torch.Tensor) -> Any:
        """As the layer's own: (tokens, out), or that and a bias that was not added."""
        said = self.base_layer(hidden_states)
        change = self.lora_b(self.lora_a(hidden_states)[0])[0]
        return (said[0] + change, *said[1:]) if isinstance(said, tuple) else said + change

    def keeps_order(self, weight: torch.Tensor) -> bool:
        """Whether the layer has the rows of a tensor of the checkpoint as the LoRA's second factor is given its own.

        Args:
            weight: (out, in), or (in, out) where transformers has it so.
        """
        linear: Any = self.base_layer
        shape = (linear.output_size, linear.input_size)
        options: dict[str, Any] = {"bias": False, "params_dtype": linear.weight.dtype, "disable_tp": linear.disable_tp}
        like: Any = _same_split(linear, linear.input_size, options)
        given = weight if tuple(weight.shape) == shape else weight.T
        like.weight.weight_loader(like.weight, given.to(linear.weight.dtype))
        return torch.equal(like.weight.to(linear.weight.device), linear.weight)

    def load(self, factors: Mapping[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Loads the LoRA of each projection that has one.

        Args:
            factors: projection -> A (rank, in) and B (out, rank), scaled.
        """
        starts = list(itertools.accumulate(self.ranks, initial=0))
        blocks = {part: slice(starts[part], starts[part + 1]) for part in factors}
        whole_a = next(iter(factors.values()))[0].new_zeros(starts[-1], self.lora_a.input_size)
        for part, (a, b) in factors.items():
            whole_a[blocks[part]] = a
            whole_b = b.new_zeros(b.shape[0], starts[-1])
            whole_b[:, blocks[part]] = b
            shard = self._shard(part)
            self.lora_b.weight.weight_loader(self.lora_b.weight, whole_b, *([] if shard is None else [shard]))
        self.lora_a.weight.weight_loader(self.lora_a.weight, whole_a)

    def _shard(self, part: int) -> str | int | None:
        """How vLLM names a projection of a layer of several; None for one, and for several that are stored as one."""
        if len(self.ranks) == 1:
            return None
        return "qkv"[part] if isinstance(self.base_layer, QKVParallelLinear) else part


def _same_split(linear: LinearBase, rank: int, options: Mapping[str, Any]) -> LinearBase:
    """A layer from the rank to a layer's output, which is split over devices as that layer's is."""
    if type(linear) is QKVParallelLinear:
        heads = linear.total_num_heads, linear.total_num_kv_heads
        return QKVParallelLinear(rank, linear.head_size, *heads, v_head_size=linear.v_head_size, **options)
    if type(linear) is MergedColumnParallelLinear:
        gather = {"gather_output": linear.gather_output}
        return MergedColumnParallelLinear(rank, linear.output_sizes, **gather, **options)
    if type(linear) is ColumnParallelLinear:
        return ColumnParallelLinear(rank, linear.output_size, gather_output=linear.gather_output, **options)
    if type(linear) is ReplicatedLinear:
        return ReplicatedLinear(rank, linear.output_size, **options)
    raise ConfigError(
        f"a LoRA on vLLM's {type(linear).__name__} is not served; merge it into its body and export that, or generate "
        "with transformers"
    )
