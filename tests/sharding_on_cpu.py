"""Has accelerate shard over CPU processes what it shards over GPUs: it asks for a GPU, which gloo does not need."""

from __future__ import annotations

import functools
import os
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow() -> None:
    """From here on a process that `accelerate launch` has started on a CPU with FSDP or DeepSpeed shards with it."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _allow_fsdp()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)  # type: ignore[method-assign]


def _allow_fsdp() -> None:
    own = AcceleratorState.__init__

    @functools.wraps(own)
    def with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        own(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp  # type: ignore[method-assign]  # what no setting of accelerate's does
