"""TRL's trainers, unmodified, on a wrapper: their losses are the sum's, only the network learns, checkpoints load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bodies import as_trained
from datasets import Dataset
from tiny import SIZE, tiny_model
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM, build_network
from valueadapter.artifact import verification
from valueadapter.model import joint_head

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),  # TRL's own arguments
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
DATA = Dataset.from_dict(
    {"prompt": ['!"#' + "$" * i for i in range(8)], "completion": ["%&'()" * 2 + "*" * i for i in range(8)]}
)
PAIRS = Dataset.from_dict(
    {
        "prompt": ['!"#' + "$" * i for i in range(8)],
        "chosen": ["%&'()" * 2 + "*" * i for i in range(8)],
        "rejected": ["+,-" + "*" * i for i in range(8)],
    }
)
BASES = {"same width": ("llama", SIZE), "base padded": ("qwen3", SIZE + 7), "network padded": ("gpt2", SIZE)}


def settings(place: Path) -> dict[str, Any]:
    return {
        "output_dir": str(place),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }


def sft(model: Any, place: Path, tokenizer: PreTrainedTokenizerFast, **more: Any) -> SFTTrainer:
    return SFTTrainer(model, SFTConfig(**settings(place), **more), train_dataset=DATA, processing_class=tokenizer)


def trained_wrapper(
    tokenizer: PreTrainedTokenizerFast, base: str = "llama", width: int = SIZE, networks: int = 1, padding: int = 0
) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(tiny_model(base, seed=1, width=width), tokenizer=tokenizer)
    own = [tiny_model(("gemma3", "gpt2")[i], seed=2 + i, width=SIZE + padding) for i in range(networks)]
    weights = [1.0, -0.6][:networks]
    adapter = ValueAdapter.from_networks(own, tokenizer, base_model_name_or_path="alice/base", coefficients=weights)
    model.add_adapter(adapter, "default", scale=0.7, is_trainable=True)
    return model


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("shape", BASES)
def test_sft_loss_and_gradients_are_those_of_whole_logits(
    shape: str, networks: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """TRL multiplies one hidden state with one head, and gets what `forward` gets."""
    kind, width = BASES[shape]
    model = trained_wrapper(tokenizer, kind, width, networks, padding=5 * (shape == "network padded"))
    trainer = sft(model, tmp_path, tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    found = trainer.compute_loss(model, dict(batch))
    found.backward()
    gradients = [parameter.grad.clone() for parameter in model.value_networks.parameters()]
    model.zero_grad()
    expected = model(**batch).loss
    expected.backward()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for mine, parameter in zip(gradients, model.value_networks.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("base", ["llama", "gemma3"])
def test_sft_loss_is_that_behind_the_base_prefix(base: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What only the base reads is read under TRL too, by one whose window makes it read prefix and text together."""
    model = trained_wrapper(tokenizer, base)
    trainer = sft(model, tmp_path, tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    without = float(trainer.compute_loss(model, dict(batch)).detach())
    model.set_base_prefix("!!##!!")
    found = trainer.compute_loss(model, dict(batch)).detach()
    torch.testing.assert_close(found, model(**batch).loss.detach(), atol=1e-4, rtol=0)
    assert abs(float(found) - without) > 1e-2


def pair(tokenizer: PreTrainedTokenizerFast, base: str) -> ValueAdapterForCausalLM:
    """An adapter as `train` makes them, to be trained on."""
    how: dict[str, Any] = {"coefficients": [1.0, -0.6], "prefix": "!!##!!", "revision": "0" * 40, "size": 0.1}
    adapter = as_trained(tiny_model(base, seed=2), tokenizer, seed=0, **how)
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    model.add_adapter(adapter, "default", scale=0.7, is_trainable=True)
    return model


@pytest.mark.parametrize("base", ["llama", "gemma3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_of_the_recipe_is_trained_on(
    base: str, checkpointing: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Behind its prefix, with the loss and gradients of whole logits; of its weights the LoRA's change."""
    model = pair(tokenizer, base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = sft(model, tmp_path, tokenizer, gradient_checkpointing=checkpointing)
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    found = trainer.compute_loss(model, dict(batch))
    found.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    expected = model(**batch).loss
    expected.backward()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    own = dict(model.named_parameters())
    assert gradients
    assert all("lora_" in name for name in gradients)
    for name, mine in gradients.items():
        torch.testing.assert_close(mine, own[name].grad, atol=1e-4, rtol=1e-3)
    model.zero_grad()
    trainer.train()
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    config = verification.verify(tmp_path / "checkpoint-4")
    assert (config.base_prefix, [one.reads_prefix for one in config.networks]) == ("!!##!!", [True, True])


def test_sft_trains_the_network_alone_and_its_checkpoints_load(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A checkpoint holds the adapter, at the scale it was trained at, and never the base."""
    model = trained_wrapper(tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = sft(model, tmp_path, tokenizer)
    trainer.train()
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"value_networks"}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    weights = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")}
    assert weights == {f"checkpoint-{step}/value_network/model.safetensors" for step in (2, 4)}
    loaded = ValueAdapterForCausalLM.from_pretrained(
        tiny_model("llama", seed=1), tmp_path / "checkpoint-4", tokenizer=tokenizer
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    model.eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_saving_at_the_end_keeps_the_checkpoints(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """`save_model` writes into the directory that holds the checkpoints, twice, and nothing is lost."""
    model = trained_wrapper(tokenizer)
    trainer = sft(model, tmp_path, tokenizer)
    trainer.train()
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("checkpoint-*/**/*") if p.is_file()}
    assert len(before) > 10
    trainer.save_metrics("train", {"train_loss": 1.0})
    for _ in range(2):
        trainer.save_model()
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        ValueAdapter.from_pretrained(tmp_path)


def test_resuming_is_an_error_and_no_fresh_start(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A plain Trainer finds no weights of its own kind, and says so; ValueTrainer resumes."""
    trainer = sft(trained_wrapper(tokenizer), tmp_path, tokenizer)
    trainer.train()
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_grpo_trains_an_adapter_of_the_recipe_on_what_it_says(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """It samples as it generates, and its LoRA alone learns from that."""
    model = pair(tokenizer, "llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(map(ord, text)) % 7) for text in completions]

    how = {**settings(tmp_path), "max_steps": 1, "num_iterations": 1, "num_generations": 4, "max_completion_length": 6}
    GRPOTrainer(model, reward, args=GRPOConfig(**how), train_dataset=DATA, processing_class=tokenizer).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_dpo_trains_an_adapter_of_the_recipe(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Against itself as it was: at log 2, then below."""
    model = pair(tokenizer, "llama")
    how = DPOConfig(**settings(tmp_path), precompute_ref_log_probs=True)
    trainer = DPOTrainer(model, args=how, train_dataset=PAIRS, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < 0.66


@pytest.mark.parametrize("by", ["wrapper", "base"])
@pytest.mark.parametrize("dtype", ["float32", "as TRL has it"])
def test_dpo_against_the_base(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, by: str, dtype: str) -> None:
    """The base is the reference: a network of zeros is at log 2, and the margin grows with it alone."""
    base = tiny_model("llama", seed=1)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([build_network(base)], tokenizer, base_model_name_or_path="alice/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    alone = base(torch.tensor([[5, 6, 7, 8]])).logits
    how = settings(tmp_path)
    if dtype != "float32":
        del how["bf16"]
    reference = base if by == "base" else ValueAdapterForCausalLM(base)
    trainer = DPOTrainer(model, reference, DPOConfig(**how), train_dataset=PAIRS, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5 if dtype == "float32" else 1e-2)
    assert losses[-1] < 0.66
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "loss" in entry]
    assert margins[-1] > 0.05
    if by == "wrapper":  # nothing was put over the base's own forward
        assert torch.equal(model.unload()(torch.tensor([[5, 6, 7, 8]])).logits, alone)


def test_sft_as_trl_has_it_is_in_bfloat16(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """TRL turns autocast on by itself: the head is found all the same, within the trainer's own forward."""
    how = settings(tmp_path)
    del how["bf16"]
    losses = []
    for more in ({}, {"bf16": False}):
        model = trained_wrapper(tokenizer, networks=2)
        args = SFTConfig(**{**how, **more})
        trainer = SFTTrainer(model, args, train_dataset=DATA, processing_class=tokenizer)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert args.bf16 is False
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_the_best_checkpoint_is_swapped_in(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """As docs/training.md says: the weights of the best checkpoint, in the same tensors."""
    model = trained_wrapper(tokenizer)
    how = {**settings(tmp_path), "learning_rate": 0.5, "eval_strategy": "steps", "eval_steps": 2}
    args = SFTConfig(**how, load_best_model_at_end=True)
    trainer = SFTTrainer(model, args, train_dataset=DATA, eval_dataset=DATA, processing_class=tokenizer)
    trainer.train()
    best = ValueAdapter.from_pretrained(trainer.state.best_model_checkpoint)
    model.hotswap_adapter(best, "default")
    own = model.adapters["default"].networks[0].state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in best.networks[0].state_dict().items())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-4)


def test_beside_a_frozen_adapter_the_trained_one_is_saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Several adapters, one of them trained: checkpoints are of that one."""
    model = trained_wrapper(tokenizer)
    frozen = ValueAdapter.from_networks([tiny_model("llama", seed=9)], tokenizer, base_model_name_or_path="a/b")
    model.add_adapter(frozen, "frozen")
    model.set_adapter(["default", "frozen"])
    trainer = sft(model, tmp_path, tokenizer)
    trainer.train()
    saved = ValueAdapter.from_pretrained(tmp_path / "checkpoint-4")
    assert type(saved.networks[0]) is type(model.adapters["default"].networks[0])


def test_what_has_no_head_is_refused_with_the_reason(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A soft-capped base's logits are no head times hidden state: an error, not a wrong loss."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": SIZE}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 2}
    base = Gemma2ForCausalLM(Gemma2Config(**shape, **heads, final_logit_softcapping=30.0)).eval()
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([tiny_model("gpt2", seed=2)], tokenizer, base_model_name_or_path="a/b")
    model.add_adapter(adapter, "default", is_trainable=True)
    trainer = sft(model, tmp_path, tokenizer)
    with pytest.raises(UnsupportedModeError, match="the base's logits are not its last hidden state times its head"):
        trainer.train()


def test_the_head_of_a_wrapper_gives_its_logits(wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """`base_model` and `get_output_embeddings` are body and head of what acts, and of the base when nothing does."""
    model = wrapped("gpt2", "qwen3", scale=-0.5)
    ids = torch.tensor([[5, 6, 7, 8]])
    for block in (model.prefixed_base("!#"), model.disable_adapter(), model.only("default", scale=2.0)):
        with block, torch.no_grad():
            found = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
            torch.testing.assert_close(found, model(ids).logits)
    with model.disable_adapter():
        assert model.get_output_embeddings() is model.base.get_output_embeddings()


@torch.no_grad()
def test_left_padded_rows_behind_a_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    """The prefix stands after the padding of each row, and its own states are cut away."""
    for base in ("llama", "gemma3"):
        model = trained_wrapper(tokenizer, base).eval()
        model.set_base_prefix("!!##!!")
        ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
        hidden = model.base_model(ids, attention_mask=mask).last_hidden_state
        expected = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(model.get_output_embeddings()(hidden)[mask == 1], expected[mask == 1])


def test_biases_of_heads_are_weighted_like_their_logits(tokenizer: PreTrainedTokenizerFast) -> None:
    """A head with a bias, in the base, the network or both, of another width."""
    for biased in ((True, False), (False, True), (True, True)):
        models = [tiny_model("llama", seed=1, width=SIZE + 4), tiny_model("qwen3", seed=2)]
        for model, bias in zip(models, biased, strict=True):
            head = torch.nn.Linear(16, model.lm_head.out_features, bias=bias)
            model.lm_head = head
        wrapper = ValueAdapterForCausalLM(models[0], tokenizer=tokenizer)
        adapter = ValueAdapter.from_networks([models[1]], tokenizer, base_model_name_or_path="alice/base")
        wrapper.add_adapter(adapter, "default", scale=3.0)
        ids = torch.tensor([[5, 6, 7]])
        found = wrapper.get_output_embeddings()(wrapper.base_model(ids).last_hidden_state)
        torch.testing.assert_close(found, wrapper.eval()(ids).logits)
        with pytest.MonkeyPatch.context() as patch:  # trainers ask for the bias beside the matrix, which is large
            patch.setattr(joint_head, "joined", None)
            assert wrapper.get_output_embeddings().bias is not None


def test_no_deleted_network_is_held(wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """The head that was shown lets go of an adapter's networks when the adapter goes."""
    model = wrapped()
    assert len(model.get_output_embeddings().parts) == 2
    model.delete_adapter("default")
    assert model.output_head.parts == ()
