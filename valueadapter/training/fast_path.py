"""The trainer's loss from hidden states: where it can be had, what it needs, and the call that computes it.

Knows nothing of checkpoints or of the Hub; the loss from whole logits is `trainer`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from valueadapter.adapter.heads import Head, head_of
from valueadapter.adapter.model_state import same_model
from valueadapter.artifact.config import Prefix, Regularisation
from valueadapter.errors import ConfigError
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.model.outputs import ValueAdapterOutput
from valueadapter.training.bases import TrainingBases, records_of
from valueadapter.training.batch_loss import LossRequest, base_weight, why_logits_are_needed
from valueadapter.training.state_store import Say

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Fused:
    """What the loss from hidden states needs all through the training."""

    bases: TrainingBases
    value_heads: tuple[Head, ...]
    stand_ins: frozenset[int]


class HiddenStateLoss:
    """The part of `ValueTrainer` that trains without logits."""

    args: Any
    model: Any
    state: Any
    accelerator: Any
    train_dataset: Any
    eval_dataset: Any
    compute_loss_func: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    penalty: Regularisation
    _fused: _Fused | None

    def _prepare_fused(
        self, bases: Sequence[PreTrainedModel], more_prefixes: Sequence[Prefix], say: Say
    ) -> _Fused | None:
        """What the loss from hidden states needs; None where the logits are computed in whole, said once."""
        reason, model = self._why_logits(), cast(ValueAdapterForCausalLM, self.model)
        if reason is None:
            for base in bases[1:]:
                base.to(self.args.device)
            heads = tuple(cast(Head, head_of(network)) for network in model.attached.terms()[0].networks)
            stand_ins = frozenset() if more_prefixes else self._stand_ins(bases)
            prefixes = [model.attached.acting_prefix(), *map(model.attached.as_read, more_prefixes)]
            fused = _Fused(TrainingBases(bases, self.args.seed, prefixes), heads, stand_ins)
            if stand_ins:
                fused.bases.rely_on([bases[0], *(model.attached.terms()[0].networks[index] for index in stand_ins)])
            if self.args.cache_base and not self._base_counts(stand_ins):
                say("the base and the network that stands in for it cancel out: neither runs, and nothing is cached")
            elif self.args.cache_base:
                fused.bases.cache(
                    records_of(self.train_dataset, self.eval_dataset),
                    Path(self.args.cache_base_dir) if self.args.cache_base_dir else None,
                    vocabulary=model.adapters[model.only_adapter()].config.vocabulary,
                    batch_size=self.args.per_device_train_batch_size,
                    say=say if self.args.process_index == 0 else logger.debug,
                )
            if self.args.release_base:
                self._release(fused.bases)
            return fused
        if len(bases) > 1 or more_prefixes or self.args.cache_base:
            raise ConfigError(
                f"several bases or prefixes and cache_base need the loss from hidden states, and here {reason}; train "
                "on one base behind one prefix, without cache_base"
            )
        logger.info("the loss is computed from whole logits: %s", reason)
        return None

    def _stand_ins(self, bases: Sequence[PreTrainedModel]) -> frozenset[int]:
        """Frozen networks that are the base, where there is one base and nothing stands before its text."""
        model = cast(ValueAdapterForCausalLM, self.model)
        if len(bases) > 1 or model.attached.acting_prefix() is not None:
            return frozenset()
        networks = enumerate(model.attached.terms()[0].networks)
        frozen = [(index, one) for index, one in networks if not any(p.requires_grad for p in one.parameters())]
        return frozenset(index for index, network in frozen if same_model(network, bases[0]))

    def _release(self, bases: TrainingBases) -> None:
        if not self.args.cache_base or getattr(self, "compute_metrics", None) is not None:
            raise ConfigError(
                "release_base needs cache_base=True and no compute_metrics, since without its body the base computes "
                "neither hidden states nor logits"
            )
        bases.release()
        cast(ValueAdapterForCausalLM, self.model).base_released = True

    def _base_counts(self, stand_ins: frozenset[int]) -> bool:
        (term,) = cast(ValueAdapterForCausalLM, self.model).attached.terms()
        return base_weight(term.coefficients, term.scale, stand_ins, self.penalty.kind != "none") != 0

    def _why_logits(self) -> str | None:
        """Why the loss cannot be computed from hidden states; None where it can."""
        args, model = self.args, cast(ValueAdapterForCausalLM, self.model)
        settings = {
            "torch_compile is on": args.torch_compile,
            "FSDP shards the weights": self.is_fsdp_enabled,
            "DeepSpeed may shard the weights": self.is_deepspeed_enabled,
            "one process uses several GPUs": args.n_gpu > 1,
            "compute_loss_func is given": self.compute_loss_func is not None,
            "the batch is split across devices": getattr(self.accelerator, "parallelism_config", None) is not None,
        }
        connection = model.adapters[model.only_adapter()].config.connection
        if connection != "residual":
            settings[f"the connection is {connection}"] = True
        settings["a network reads the base prefix"] = any(
            prefix for term in model.attached.terms() for prefix in term.prefixes
        )
        return next((reason for reason, holds in settings.items() if holds), None) or why_logits_are_needed(
            model.attached.terms(), model.base
        )

    def _fused_loss(
        self, model: Any, inputs: dict[str, Any], samples: Sequence[str] | None, count: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, ValueAdapterOutput]:
        fused = cast(_Fused, self._fused)
        acting, first = cast(ValueAdapterForCausalLM, self.model).attached.acting_prefix(), fused.bases.prefixes[0]
        if (acting and acting.ids) != (first and first.ids):
            raise ConfigError(
                "the base prefix was changed after the trainer was made, which has taken up the one before; make the "
                "trainer when the prefix is set"
            )
        epoch = int(self.state.epoch or 0) if model.training else None
        request = LossRequest(
            fused.bases.parts(samples, epoch=epoch),
            fused.value_heads,
            inputs.pop("labels"),
            penalty=self.penalty,
            stand_ins=fused.stand_ins,
            label_smoothing=self.args.label_smoothing_factor,
            num_items_in_batch=count,
        )
        # through the model, whose forward is where DistributedDataParallel takes notice
        outputs = model(**inputs, value_loss=request, return_dict=True)
        loss = outputs["loss"]
        if count is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # as the Trainer scales the cross-entropy
        return loss, outputs
