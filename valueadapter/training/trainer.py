"""Trains the value networks of one adapter on a frozen base; everything else is `transformers.Trainer`'s.

    loss = cross-entropy(base_logits + value_logits, response) + coefficient · penalty(value_logits)

both per response token. Knows nothing of how the sum is computed or the artifact is laid out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME

from valueadapter.adapter.lora import has_injected_layers, is_unpinned, rank_of
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.atomic_directory import check_target
from valueadapter.artifact.config import TrainingRecord
from valueadapter.demonstrations.sources import Demonstrations, of_datasets
from valueadapter.demonstrations.tokenized import IGNORED, Collator, tokenize
from valueadapter.errors import CheckpointError, ConfigError
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.model.outputs import ValueAdapterOutput
from valueadapter.training.arguments import ValueTrainingArguments
from valueadapter.training.bases import SAMPLES, Keyed, public_name, same_vocabulary, tokenizer_of_base
from valueadapter.training.checkpoints import take_weights
from valueadapter.training.fast_path import HiddenStateLoss, hidden_state_loss
from valueadapter.training.penalty import norm_penalty
from valueadapter.training.sharding import (
    OPTIMIZER,
    Shards,
    check_sharding,
    load_optimizer,
    save_optimizer,
    taken_apart,
)
from valueadapter.training.state_store import Say
from valueadapter.training.token_mean import TokenMean
from valueadapter.training.trained_weights import save_trained
from valueadapter.version import __version__

logger = logging.getLogger(__name__)


class ValueTrainer(Trainer):
    """`transformers.Trainer` for a `ValueAdapterForCausalLM` with one trainable adapter.

    Args:
        model: the wrapper; its one adapter must be attached with `is_trainable=True`.
        args: the arguments.
        train_dataset: demonstrations (as `load_demonstrations` takes or gives them) or tokenized records; a
            `datasets.IterableDataset` of either too, with `max_steps`, whose record counts what was read of it.
        eval_dataset: held-out ones, or several sets of them by name.
        processing_class: the base's tokenizer, which is taken by default.
        other_bases: bases of the same vocabulary that take part: each demonstration of each epoch is read by one that
            is drawn at random. Models, or wrappers `ValueAdapterForCausalLM(model, tokenizer=…)` where a model's name
            does not lead to its tokenizer. Evaluation is on the training base.
        say: called with a line for what is worth knowing of caching.
        kwargs: as `transformers.Trainer`.

    Raises:
        ConfigError: nothing is trainable, the base is not frozen, or several bases or `cache_base` where the loss
            cannot be computed from hidden states.
        ArtifactError: the adapter could not be saved in `<output_dir>/adapter` at the end.
        IncompatibleBaseError: another base, or the tokenizer given, has another vocabulary than the training base.
    """

    def __init__(
        self,
        model: ValueAdapterForCausalLM,
        args: ValueTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        other_bases: Sequence[PreTrainedModel] = (),
        say: Say = logger.info,
        **kwargs: Any,
    ) -> None:
        if not any(p.requires_grad for p in model.value_networks.parameters()):
            raise ConfigError("no weight is trainable; attach the adapter with is_trainable=True")
        if any(p.requires_grad for p in model.base.parameters()):
            raise ConfigError("the base must be frozen; call model.base.requires_grad_(False)")
        if any(has_injected_layers(network) for network in model.adapters[model.only_adapter()].networks):
            raise ConfigError(
                "peft.get_peft_model has put LoRA into this model's networks: train it with transformers.Trainer or "
                "TRL and save it with model.save_pretrained; or take the recipe of `valueadapter train --network lora`"
            )
        check_target(Path(args.output_dir) / file_names.CHECKPOINT_ADAPTER)
        tokenizer = tokenizer_of_base(model, processing_class)
        collator = kwargs.pop("data_collator", None) or Collator(tokenizer.pad_token_id or 0)
        others = [same_vocabulary(model, other) for other in other_bases]
        prepare = _Prepare(tokenizer, args.max_length)
        with args.main_process_first(desc="tokenizing"):
            train_dataset, eval_dataset = prepare(train_dataset), prepare(eval_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            data_collator=Keyed(collator) if others or args.cache_base else collator,
            **kwargs,
        )
        check_sharding(self)
        in_parts = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self._shards = Shards(model.adapters[model.only_adapter()].networks if in_parts else ())
        self.penalty = args.regularisation()
        self._logits_wanted = False
        self._other_bases = others
        self._read = (0, 0)  # demonstrations and response tokens of all steps, where the data has no length
        self._token_mean = TokenMean(self.accelerator, together=self.args.average_tokens_across_devices)
        self.hidden_state_loss: HiddenStateLoss | None = hidden_state_loss(
            self, [model.base, *others], self.penalty, say
        )
        """What the loss is computed by; None where it takes whole logits."""

    # -- loss --------------------------------------------------------------------------------------------------------
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ValueAdapterOutput]:
        """Cross-entropy on the responses as the Trainer computes it, plus the penalty on the same positions.

        Only the logits from the first response token on are computed, in base and networks.
        """
        inputs = dict(inputs)
        samples = inputs.pop(SAMPLES, None)
        if self.hidden_state_loss is not None and not self._logits_wanted:
            outputs = self.hidden_state_loss(
                model,
                inputs,
                samples,
                epoch=int(self.state.epoch or 0) if model.training else None,
                count=num_items_in_batch,
                penalty=self.penalty,
                label_smoothing=self.args.label_smoothing_factor,
            )
            loss = outputs["loss"] * self._scale_of_loss(num_items_in_batch)
        else:
            loss, outputs = self._loss_of_logits(model, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _loss_of_logits(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, ValueAdapterOutput]:
        labels = inputs["labels"]
        # whoever wants logits wants whole rows; otherwise what lies before the first response token is not needed
        keep = labels.shape[1] if self._logits_wanted else _positions_needed(labels)
        labels = labels[:, -keep:]
        penalised = self.penalty.kind != "none"
        inputs = {
            **inputs,
            "labels": labels,
            "logits_to_keep": keep,
            "use_cache": False,
            "output_value_logits": penalised,
        }
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if penalised:
            mask = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))  # position i predicts token i + 1
            count = mask.sum() if num_items_in_batch is None else num_items_in_batch
            kind, centred = self.penalty.kind, self.penalty.centred
            penalty = norm_penalty(outputs.value_logits, mask, kind, centred=centred) / count
            loss = loss + self.penalty.coefficient * penalty * self._scale_of_loss(num_items_in_batch)
        outputs.value_logits = None  # the Trainer gathers every tensor of the output in evaluation
        return loss, outputs

    def _scale_of_loss(self, count: torch.Tensor | int | None) -> int:
        """What a sum over `count`, the tokens of all processes, is multiplied by: as the Trainer's cross-entropy."""
        return self.accelerator.num_processes if count is not None and self.args.average_tokens_across_devices else 1

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; counts the response tokens of a step."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if not hasattr(self.train_dataset, "__len__"):
            labels = [batch["labels"] for batch in batches]
            tokens = sum(int((rows[:, 1:] != IGNORED).sum()) for rows in labels)
            self._read = (self._read[0] + sum(map(len, labels)), self._read[1] + tokens)
        return batches, count

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """As the Trainer's; takes note of whether logits are wanted, and of how many tokens the loss is the mean."""
        self._logits_wanted = not prediction_loss_only
        try:
            inputs = self._token_mean.without_repeats(inputs)
            found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._logits_wanted = False
        self._token_mean.add(found[0], inputs.get("labels"))
        return found

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the Trainer's, but the loss is per response token of all the data, not the mean of the batches' means."""
        self._token_mean = TokenMean(self.accelerator, together=self.args.average_tokens_across_devices)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if (loss := self._token_mean.value()) is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the adapter: `<checkpoint>/adapter` within training, `<output_dir>/adapter` at its end.

        A directory that you name yourself becomes the adapter's directory.
        """
        place = Path(output_dir or self.args.output_dir)
        if _internal_call or output_dir is None:
            place = place / file_names.CHECKPOINT_ADAPTER
        adapter = self.trained_adapter()
        apart = _internal_call and any(map(is_unpinned, adapter.networks))
        if self.args.should_save and apart:
            save_trained(adapter.networks, place.with_name(file_names.CHECKPOINT_LORA))
        elif self.args.should_save:
            adapter.save_pretrained(place)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub()

    def trained_adapter(self) -> ValueAdapter:
        """The adapter as it stands: the record of its training, the scale and the prefix that it was trained with.

        Records of what it was before are left out, see `valueadapter.adapter.provenance`. Where each process has a part
        of the weights, every one must ask, and the first is given them, in a copy; the others' have none.
        """
        return self._adapter(self._shards.whole(on_each_process=False) if taken_apart(self._wrapper()) else ())

    def _adapter(self, networks: Sequence[PreTrainedModel] = ()) -> ValueAdapter:
        model = self._wrapper()
        adapter = model.as_trained(model.only_adapter(), networks).with_config(training=self._training_record())
        return adapter.replaced(adapter.provenance.true_records(adapter.config, adapter.networks))

    def _wrapper(self) -> ValueAdapterForCausalLM:
        return cast(ValueAdapterForCausalLM, self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def _training_record(self) -> TrainingRecord:
        args, losses = self.args, [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        examples, tokens = self._data_read()
        ranks = map(rank_of, self._wrapper().adapters[self._wrapper().only_adapter()].networks)
        rank = args.lora_rank or next((one for one in ranks if one is not None), None)
        return TrainingRecord(
            valueadapter_version=__version__,
            initialisation=args.initialisation or ("zero_head" if rank is None else "pretrained"),
            initialised_from=args.initialised_from,
            num_layers=args.num_layers,
            regularisation=self.penalty,
            data=args.data_name,
            num_examples=examples,
            num_response_tokens=tokens,
            steps=self.state.global_step,
            loss_first=losses[0] if losses else None,
            loss_last=losses[-1] if losses else None,
            learning_rate=args.learning_rate,
            epochs=self.state.epoch,
            lora_rank=rank,
            other_bases=tuple(map(public_name, self._other_bases)),
        )

    def _data_read(self) -> tuple[int, int]:
        """Demonstrations, and response tokens read up to now; of a stream the demonstrations read, too."""
        data = self.train_dataset
        if data is None:
            return 0, 0
        if not hasattr(data, "__len__"):
            return self._read[0] * self.args.world_size, self._read[1] * self.args.world_size
        tokens = sum(sum(label != IGNORED for label in record["labels"][1:]) for record in data)
        return len(data), math.floor(tokens * (self.state.epoch or 0))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the Trainer's, but without FSDP's whole model: the adapter is saved already, and the base never is."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        taken_apart(self._wrapper())
        save_optimizer(self._wrapper(), self.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer's, but with FSDP: of some versions accelerate loads no state there, without a word."""
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self._wrapper(), self.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Takes up a checkpoint; anything that is missing or does not fit is an error, never a fresh start."""
        checkpoint = Path(resume_from_checkpoint)
        if not self.is_deepspeed_enabled:  # which has files of its own
            optimizer = OPTIMIZER if self.is_fsdp_enabled else "optimizer.pt"
            for pattern in (optimizer, "scheduler.pt", "rng_state*.pth"):
                if not any(checkpoint.glob(pattern)):
                    raise CheckpointError(
                        f"checkpoint '{checkpoint}' has no {pattern}, so training cannot go on as if not stopped. "
                        "Start from its adapter instead: load it and attach it with is_trainable=True"
                    )
        record = self._take_weights(checkpoint)
        if record is not None:
            self._read = (record.num_examples, record.num_response_tokens)

    def take_up(self, checkpoint: Path) -> None:
        """Puts a checkpoint's weights and state in the place of those here, without training on.

        Raises:
            CheckpointError: it is damaged, or of another network.
        """
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:  # whose optimizer holds the weights as well
            super()._load_best_model()
            return
        logger.info("loading the best adapter, from %s", self.state.best_model_checkpoint)
        self._take_weights(Path(str(self.state.best_model_checkpoint)))

    def _take_weights(self, checkpoint: Path) -> TrainingRecord | None:
        if not taken_apart(self._wrapper()):
            return take_weights(self._adapter(), checkpoint)
        networks = self._shards.whole(on_each_process=True)
        record = take_weights(self._adapter(networks), checkpoint)
        self._shards.put(networks)
        return record

    # -- the Hub -----------------------------------------------------------------------------------------------------
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository before training, so that a missing permission shows at once."""
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            private = self.args.hub_private_repo if private is None else private
            url = HfApi(token=token or self.args.hub_token).create_repo(name, private=private, exist_ok=True)
            self.hub_model_id = url.repo_id

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publishes the adapter (never optimizer state or training arguments) to `args.hub_model_id`.

        With the prefix that it is trained behind, which is data of yours: see `ValueAdapter.push_to_hub`.
        """
        adapter = self.trained_adapter()  # every process has a share in it
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return adapter.push_to_hub(
            str(self.hub_model_id),
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            private=private if private is not None else self.args.hub_private_repo,
            overwrite_card=self.args.overwrite_card,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy != "end":
            self.push_to_hub(f"Training in progress, step {self.state.global_step}")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: saving the adapter writes its card."""


class _Prepare:
    """Tokenizes whatever form the data comes in."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, data: Any) -> Any:
        if of_datasets(data, "Dataset", "IterableDataset") or isinstance(
            data, (Demonstrations, list, tuple, str, Path)
        ):
            return tokenize(data, self.tokenizer, max_length=self.max_length)
        if isinstance(data, Mapping):
            return {name: self(part) for name, part in data.items()}
        return cast("TorchDataset[Any] | None", data)


def _positions_needed(labels: torch.Tensor) -> int:
    """How many trailing positions hold a label, plus the one that predicts the first of them; at least 2."""
    first = int((labels != IGNORED).any(dim=0).int().argmax())
    return min(labels.shape[1], max(2, labels.shape[1] - first + 1))
