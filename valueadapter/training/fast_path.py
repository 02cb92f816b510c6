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
from transformers import PreTrainedModel, Trainer

from valueadapter.adapter.model_state import same_model
from valueadapter.artifact.config import Regularisation
from valueadapter.errors import ConfigError
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.model.outputs import ValueAdapterOutput
from valueadapter.training.bases import TrainingBases, records_of
from valueadapter.training.batch_loss import LossRequest, base_weight, why_logits_are_needed
from valueadapter.training.sharding import is_on
from valueadapter.training.state_store import Say

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HiddenStateLoss:
    """What the loss from hidden states needs all through a training; called with a batch, it gives the loss."""

    wrapper: ValueAdapterForCausalLM
    bases: TrainingBases
    stand_ins: frozenset[int]
    """Numbers of the networks that compute what the base does, on what the base reads."""

    def __call__(
        self,
        model: Any,
        inputs: dict[str, Any],
        samples: Sequence[str] | None,
        *,
        epoch: int | None,
        count: torch.Tensor | int | None,
        penalty: Regularisation,
        label_smoothing: float,
    ) -> ValueAdapterOutput:
        """The model's output for a batch, whose `loss` is per response token.

        Args:
            model: the wrapper, or what wraps it: DistributedDataParallel takes notice of a pass in its forward.
            inputs: `input_ids` and `labels`, (batch, seq), and what else the model reads; the labels are taken out.
            samples: keys of the batch's demonstrations; see `TrainingBases.parts`.
            epoch: passes over the data that are complete; None in evaluation.
            count: what to divide the sum by; the batch's own response tokens if None.
            penalty: of the value logits.
            label_smoothing: see `LossRequest`.

        Raises:
            ConfigError: the base prefix is not that which the trainer was made with.
        """
        acting, first = self.wrapper.attached.acting_prefix(), self.bases.prefix
        if (acting and acting.ids) != (first and first.ids):
            raise ConfigError(
                "the base prefix was changed after the trainer was made, which has taken up the one before; make the "
                "trainer when the prefix is set"
            )
        request = LossRequest(
            self.bases.parts(samples, epoch=epoch),
            inputs.pop("labels"),
            penalty=penalty,
            stand_ins=self.stand_ins,
            label_smoothing=label_smoothing,
            num_items_in_batch=count,
        )
        return cast(ValueAdapterOutput, model(**inputs, value_loss=request, return_dict=True))


def hidden_state_loss(
    trainer: Trainer, bases: Sequence[PreTrainedModel], penalty: Regularisation, say: Say
) -> HiddenStateLoss | None:
    """What computes a trainer's loss from hidden states, its bases' states cached where the arguments ask for it.

    Args:
        trainer: a `ValueTrainer` with its model, data and arguments in place.
        bases: all that take part, the training base first.
        penalty: of the value logits.
        say: called with a line for what is worth knowing of caching.

    Returns:
        None where the logits are computed in whole; the log says why.

    Raises:
        ConfigError: what only this loss can do is asked for, and it cannot be had.
    """
    args, model = cast(Any, trainer.args), cast(ValueAdapterForCausalLM, trainer.model)
    if (reason := _why_logits(trainer)) is not None:
        if len(bases) > 1 or args.cache_base:
            raise ConfigError(
                f"several bases and cache_base need the loss from hidden states, and here {reason}; train on one base, "
                "without cache_base"
            )
        logger.info("the loss is computed from whole logits: %s", reason)
        return None
    if is_on(args) and (len(bases) > 1 or args.release_base):
        raise ConfigError(
            "other bases and release_base need whole models in each process, and FSDP takes them apart; train on one "
            "base that is kept, or with whole models on each GPU"
        )
    for base in bases[1:]:
        base.to(args.device)
    (term,) = model.attached.terms()
    stand_ins = _stand_ins(model, bases)
    training_bases = TrainingBases(bases, args.seed, model.attached.acting_prefix())
    if stand_ins:
        training_bases.rely_on([bases[0], *(term.networks[index] for index in stand_ins)])
    if args.cache_base:
        runs = base_weight(term.weights.networks, term.scale, stand_ins, penalty.kind != "none") != 0
        _cache(trainer, training_bases, say, base_runs=runs)
    if args.release_base:
        _release(trainer, training_bases)
    return HiddenStateLoss(model, training_bases, stand_ins)


def _stand_ins(model: ValueAdapterForCausalLM, bases: Sequence[PreTrainedModel]) -> frozenset[int]:
    """Frozen networks that are the base, where there is one base; before their text stands what stands before its."""
    if len(bases) > 1:
        return frozenset()
    (term,) = model.attached.terms()
    before = _ids_of(model.attached.acting_prefix())
    frozen = [
        (index, network)
        for index, (part, network) in enumerate(zip(term.parts, term.networks, strict=True))
        if _ids_of(term.prefix_of(part)) == before and not any(p.requires_grad for p in network.parameters())
    ]
    return frozenset(index for index, network in frozen if same_model(network, bases[0]))


def _ids_of(prefix: BasePrefix | None) -> tuple[int, ...]:
    return () if prefix is None else prefix.ids


def _cache(trainer: Trainer, bases: TrainingBases, say: Say, *, base_runs: bool) -> None:
    if not base_runs:
        say("the base and the network that stands in for it cancel out: neither runs, and nothing is cached")
        return
    args, model = cast(Any, trainer.args), cast(ValueAdapterForCausalLM, trainer.model)
    bases.cache(
        records_of(trainer.train_dataset, trainer.eval_dataset),
        Path(args.cache_base_dir) if args.cache_base_dir else None,
        vocabulary=model.adapters[model.only_adapter()].config.vocabulary,
        batch_size=args.per_device_train_batch_size,
        say=say if args.process_index == 0 else logger.debug,
    )


def _release(trainer: Trainer, bases: TrainingBases) -> None:
    if not cast(Any, trainer.args).cache_base or getattr(trainer, "compute_metrics", None) is not None:
        raise ConfigError(
            "release_base needs cache_base=True and no compute_metrics, since without its body the base computes "
            "neither hidden states nor logits"
        )
    bases.release()
    cast(ValueAdapterForCausalLM, trainer.model).base_released = True


def _why_logits(trainer: Trainer) -> str | None:
    """Why the loss cannot be computed from hidden states; None where it can."""
    args, model = cast(Any, trainer.args), cast(ValueAdapterForCausalLM, trainer.model)
    terms = model.attached.terms()
    connection = model.adapters[model.only_adapter()].config.connection
    reasons = {
        "torch_compile is on": args.torch_compile,
        "DeepSpeed may shard the weights": trainer.is_deepspeed_enabled,
        "one process uses several GPUs": args.n_gpu > 1,
        "compute_loss_func is given": trainer.compute_loss_func is not None,
        "the batch is split across devices": getattr(trainer.accelerator, "parallelism_config", None) is not None,
        f"the connection is {connection}": connection != "residual",
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    return found or why_logits_are_needed(terms, model.base)
