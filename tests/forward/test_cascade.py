"""Networks that read the base's prediction: by hand, trained, saved, in every decoding mode."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from test_alignment import permuted, side
from test_card import FULL
from test_generation import GREEDY, IDS, MODES, REPEATING
from test_trainer import DATA
from tiny import byte_tokenizer, tiny_model
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner
from vocabularies import tokenizer_of

from valueadapter import (
    CheckpointError,
    ConfigError,
    IncompatibleBaseError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    build_network,
)
from valueadapter.artifact.card import render_card
from valueadapter.artifact.config import Connection, Initialisation
from valueadapter.cli.app import app
from valueadapter.compat import cache_in, installed

CASCADES: tuple[Connection, ...] = ("cascade", "cascade_with_text")
KINDS = ("llama", "gemma3", "gpt2")  # plain, scaled embeddings, positions added to the embeddings
connections = pytest.mark.parametrize("connection", CASCADES)
pairs = pytest.mark.parametrize(("base", "network"), [(b, n) for b in KINDS for n in KINDS])
DECODING = cast("dict[str, dict[str, Any]]", MODES)
Trained = Callable[..., ValueTrainer]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # the command line would set it for good


def adapter_of(connection: Connection, *networks: PreTrainedModel, **options: Any) -> ValueAdapter:
    return ValueAdapter.from_networks(
        networks, byte_tokenizer(), base_model_name_or_path="a/b", connection=connection, **options
    )


def wrapped(
    connection: Connection, base: str = "llama", network: str = "llama", *, widths: Sequence[int] = (97, 97)
) -> ValueAdapterForCausalLM:
    """A tiny base of seed 1 with a tiny network of seed 2, at scale 0.5."""
    model = ValueAdapterForCausalLM(tiny_model(base, seed=1, width=widths[0]), tokenizer=byte_tokenizer())
    model.add_adapter(adapter_of(connection, tiny_model(network, seed=2, width=widths[1])), "default", scale=0.5)
    model.eval()
    return model


def by_hand(connection: Connection, network: PreTrainedModel, ids: torch.Tensor, base_logits: torch.Tensor) -> Any:
    """Logits of a network that reads probabilities @ embedding, embeddings taken from the module token by token."""
    embedding = network.get_input_embeddings()
    rows = embedding.weight.shape[0]
    read = torch.zeros(*ids.shape, embedding.weight.shape[1])
    probabilities = base_logits.exp() / base_logits.exp().sum(-1, keepdim=True)
    for token in range(min(rows, base_logits.shape[-1])):
        read = read + probabilities[..., token, None] * embedding(torch.tensor(token))
    return network(inputs_embeds=read if connection == "cascade" else read + embedding(ids)).logits


# -- the sum ---------------------------------------------------------------------------------------------------------
@connections
@pairs
def test_the_network_reads_probabilities_times_embedding(connection: Connection, base: str, network: str) -> None:
    """At every position, with gradients and without; positions asked for are those of the whole."""
    model = wrapped(connection, base, network)
    alone = tiny_model(base, seed=1)(IDS).logits
    expected = alone + 0.5 * by_hand(connection, tiny_model(network, seed=2), IDS, alone)
    some = torch.tensor([4, 1])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-4)
            torch.testing.assert_close(model(IDS, logits_to_keep=2).logits, expected[:, -2:], rtol=0, atol=1e-4)
            torch.testing.assert_close(model(IDS, logits_to_keep=some).logits, expected[:, some], rtol=0, atol=1e-4)
    out = model(IDS, output_value_logits=True)
    torch.testing.assert_close(out.value_logits, expected - alone, rtol=0, atol=1e-4)


@connections
@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("widths", [(104, 97), (97, 104)])
def test_padding_of_the_vocabulary_is_left_out(connection: Connection, network: str, widths: tuple[int, int]) -> None:
    """Columns without embedding count for nothing, and embeddings without column are not read."""
    model = wrapped(connection, "llama", network, widths=widths)
    alone = tiny_model("llama", seed=1, width=widths[0])(IDS).logits
    value = by_hand(connection, tiny_model(network, seed=2, width=widths[1]), IDS, alone)
    torch.testing.assert_close(model(IDS).logits[..., :97], alone[..., :97] + 0.5 * value[..., :97], rtol=0, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_every_network_reads_the_bases_own_logits(grad: bool, reverse: bool) -> None:
    """Of several terms and several networks none reads the sum so far."""
    model = wrapped("residual", network="gpt2")
    pair = [tiny_model("gemma3", seed=4), tiny_model("llama", seed=5)]
    model.add_adapter(adapter_of("cascade", *pair, coefficients=[1, -1]), "pair", scale=2.0)
    model.add_adapter(adapter_of("cascade_with_text", tiny_model("llama", seed=6)), "text")
    names = ["default", "pair", "text"]
    model.set_adapter(names[::-1] if reverse else names)
    alone = tiny_model("llama", seed=1)(IDS).logits
    expected = alone + 0.5 * tiny_model("gpt2", seed=2)(IDS).logits
    for weight, network in zip((2.0, -2.0), pair, strict=True):
        expected = expected + weight * by_hand("cascade", network, IDS, alone)
    expected = expected + by_hand("cascade_with_text", tiny_model("llama", seed=6), IDS, alone)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-4)


@connections
@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_base_and_no_network_runs(connection: Connection, kind: str) -> None:
    """At scale 0 and while disabled, bit for bit; and with a head of zeros, where the network does run."""
    model, alone = wrapped(connection, kind, kind), tiny_model(kind, seed=1)(IDS).logits
    fresh = ValueAdapterForCausalLM(tiny_model(kind, seed=1), tokenizer=byte_tokenizer())
    fresh.add_adapter(adapter_of(connection, build_network(fresh.base)), "fresh")
    assert torch.equal(fresh(IDS).logits, alone)

    def must_not_run(*args: object) -> None:
        raise AssertionError("the network ran")

    model.adapters["default"].networks[0].register_forward_pre_hook(must_not_run)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, alone)
    model.set_scale("default", 0)
    assert torch.equal(model(IDS).logits, alone)


@connections
def test_a_lora_network_reads_with_its_own_embedding(connection: Connection) -> None:
    """Also where LoRA changes the embedding, whose weight alone is then not what the module gives."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    network = peft.get_peft_model(tiny_model("llama", seed=2), lora).eval()
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    model.add_adapter(adapter_of(connection, network), "default")
    alone = tiny_model("llama", seed=1)(IDS).logits
    expected = alone + by_hand(connection, network, IDS, alone)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-4)


class NormedEmbedding(nn.Embedding):
    """No multiple of its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(super().forward(input), dim=-1)


@connections
def test_an_embedding_that_is_no_multiple_of_its_weight(connection: Connection) -> None:
    """What the module gives counts, not its weight."""
    model = wrapped(connection)
    (network,) = model.adapters["default"].networks
    normed = NormedEmbedding(97, 16)
    normed.weight = network.get_input_embeddings().weight
    network.set_input_embeddings(normed)
    alone = tiny_model("llama", seed=1)(IDS).logits
    expected = alone + 0.5 * by_hand(connection, network, IDS, alone)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-4)


# -- generation ------------------------------------------------------------------------------------------------------
@connections
@pairs
@pytest.mark.parametrize("mode", DECODING)
def test_cached_equals_uncached(connection: Connection, base: str, network: str, mode: str) -> None:
    """A cache changes speed, never tokens."""
    model = wrapped(connection, base, network)
    uncached = {"num_beams": DECODING[mode].get("num_beams", 1), "use_cache": False}
    assert torch.equal(model.generate(IDS, **GREEDY, **DECODING[mode]), model.generate(IDS, **GREEDY, **uncached))


@connections
@pairs
def test_speculation_equals_plain_decoding(connection: Connection, base: str, network: str) -> None:
    """Prompt lookup, and assisted generation with the wrapper on either side."""
    model, other = wrapped(connection, base, network), tiny_model("llama", seed=5)
    plain = model.generate(REPEATING, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(REPEATING, **GREEDY, prompt_lookup_num_tokens=4), plain)
    assert torch.equal(model.generate(REPEATING, **GREEDY, assistant_model=other), plain)
    if installed("transformers") < (5, 18) and "gemma3" in (base, network):
        return  # an assistant of sliding windows is an error of transformers' there
    theirs = other.generate(REPEATING, **GREEDY, use_cache=False)
    assert torch.equal(other.generate(REPEATING, **GREEDY, assistant_model=model), theirs)


@connections
@pairs
def test_left_padded_batch_equals_single_rows(connection: Connection, base: str, network: str) -> None:
    """A short row in a batch gets the tokens, and the logits, that it gets alone."""
    model = wrapped(connection, base, network)
    padded, mask = IDS.clone(), torch.ones_like(IDS)
    padded[1, :3] = mask[1, :3] = 0
    batch = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(batch[0], model.generate(IDS[:1], **GREEDY)[0])
    assert torch.equal(batch[1, 7:], model.generate(IDS[1:, 3:], **GREEDY)[0, 4:])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    together = model(padded, attention_mask=mask, position_ids=positions).logits[1, 3:]
    torch.testing.assert_close(together, model(IDS[1:, 3:]).logits[0], rtol=1e-4, atol=1e-4)


@connections
@pairs
def test_a_second_turn_and_single_steps_equal_reading_at_once(connection: Connection, base: str, network: str) -> None:
    """A kept cache goes on as if all were read again, to the logit."""
    model = wrapped(connection, base, network)
    first = model.generate(IDS, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, IDS], dim=1)
    again = model.generate(longer, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(longer, **GREEDY, cache=cache_in(first)), again)
    out = model(IDS[:, :3], use_cache=True)
    steps = [out.logits]
    for step in range(3, IDS.shape[1]):
        out = model(IDS[:, step : step + 1], cache=out.cache, use_cache=True, logits_to_keep=1)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", DECODING)
def test_mixed_connections_cached_equal_uncached(mode: str) -> None:
    """Residual and cascade side by side, one network subtracted, each with a cache of its own."""
    model = wrapped("residual", "gemma3", "gpt2")
    pair = [tiny_model("llama", seed=4), tiny_model("gemma3", seed=5)]
    model.add_adapter(adapter_of("cascade", *pair, coefficients=[1, -1]), "pair")
    model.add_adapter(adapter_of("cascade_with_text", tiny_model("mistral", seed=6)), "text")
    model.set_adapter(["default", "pair", "text"])
    uncached = {"num_beams": DECODING[mode].get("num_beams", 1), "use_cache": False}
    assert torch.equal(model.generate(IDS, **GREEDY, **DECODING[mode]), model.generate(IDS, **GREEDY, **uncached))


# -- other vocabularies ----------------------------------------------------------------------------------------------
@connections
def test_another_vocabulary_is_refused_with_the_reason(connection: Connection, tmp_path: Path) -> None:
    """When attached; and by `from_pretrained` before weights are read (there are none here)."""
    theirs = tokenizer_of("bytes")
    adapter, width = adapter_of(connection, tiny_model("llama", seed=2)), len(theirs)
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=width), tokenizer=theirs)
    reason = f"connection is '{connection}'.*over its own tokens.*Use a base with"
    with pytest.raises(IncompatibleBaseError, match=reason):
        model.add_adapter(adapter, "default")
    assert model.adapters == {}
    adapter.save_pretrained(tmp_path / "adapter")
    theirs.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": width}))
    with pytest.raises(IncompatibleBaseError, match=reason):
        ValueAdapterForCausalLM.from_pretrained(tmp_path / "base", tmp_path / "adapter")
    asked = ["inspect", str(tmp_path / "adapter"), "--base", str(tmp_path / "base"), "--json"]
    verdict = json.loads(CliRunner().invoke(app, asked).stdout)["compatibility"]
    assert "over its own tokens" in verdict["cannot_be_attached"]


@connections
def test_the_same_tokens_under_other_ids_are_read_under_the_networks(connection: Connection) -> None:
    """Probabilities are permuted, so that the network says what it says on a base of its own ids."""
    theirs, mine = permuted("bytes"), side("bytes")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(theirs.tokenizer_json), eos_token="</s>", pad_token="<pad>"
    )
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=theirs.width), tokenizer=tokenizer)
    network = tiny_model("gemma3", seed=2, width=mine.width)
    adapter = ValueAdapter.from_networks(
        [network], tokenizer_of("bytes"), base_model_name_or_path="a/b", connection=connection
    )
    model.add_adapter(adapter, "default")
    (term,) = model.attached.terms()
    assert term.link is not None
    source = torch.from_numpy(term.link.alignment.source).long()
    ids = torch.tensor([tokenizer("The readers read 12345 foxes.")["input_ids"]])
    alone = model.base(ids).logits
    value = by_hand(connection, network, source[ids], alone[..., source.argsort()])
    torch.testing.assert_close(model(ids).logits, alone + value[..., source], rtol=0, atol=1e-4)
    assert torch.equal(model.generate(ids, **GREEDY), model.generate(ids, **GREEDY, use_cache=False))


# -- training, saving ------------------------------------------------------------------------------------------------
@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    def make(
        connection: Connection, *, start: Initialisation = "pretrained", kind: str = "llama", **changes: Any
    ) -> ValueTrainer:
        base = tiny_model(kind, seed=1)
        model = ValueAdapterForCausalLM(base, tokenizer=byte_tokenizer())
        network = build_network(base, initialisation=start)
        model.add_adapter(adapter_of(connection, network), "default", is_trainable=True)
        settings = {"max_steps": 1, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True, "report_to": []}
        settings |= {"lr_scheduler_type": "linear", "warmup_steps": 0}  # so that the first step moves something
        args = ValueTrainingArguments(
            output_dir=str(tmp_path / "run"), per_device_train_batch_size=4, **{**settings, **changes}
        )
        return ValueTrainer(model, args, train_dataset=DATA)

    return make


@connections
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_changes_the_network_and_its_embedding(connection: Connection, kind: str, trained: Trained) -> None:
    """Every weight of the network, the embedding of tokens that no text holds too; none of the base's."""
    run = trained(connection, kind=kind, optim="sgd", penalty="l2")
    (network,) = run.model.adapters["default"].networks
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    after = run.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in after if name.startswith("value_networks")} - changed == set()
    assert not any(name.startswith("base.") for name in changed)
    embedding = network.get_input_embeddings().weight
    (name,) = (n for n, p in run.model.named_parameters() if p is embedding)
    rows = (after[name] != before[name]).any(-1)
    assert rows.sum() > 90, "only tokens of the text took a gradient"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@connections
def test_from_a_head_of_zeros_only_the_head_moves_first(connection: Connection, trained: Trained) -> None:
    """Then everything; the loss falls, whether or not activations are computed again in the backward pass."""
    losses = []
    for again in (False, True):
        many = {"optim": "sgd", "max_steps": 12, "logging_steps": 1, "learning_rate": 0.5}
        run = trained(connection, start="zero_head", gradient_checkpointing=again, **many)
        (network,) = run.model.adapters["default"].networks
        embedding = network.get_input_embeddings().weight
        before = embedding.clone()
        run.model(IDS, labels=IDS).loss.backward()
        assert embedding.grad is not None
        assert embedding.grad.count_nonzero() == 0
        assert network.get_output_embeddings().weight.grad.count_nonzero() > 0
        run.train()
        assert not torch.equal(embedding, before)
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_the_command_line_trains_it(tmp_path: Path) -> None:
    """From names to an adapter that says what it reads."""
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text('{"prompt": "Q:", "completion": "AB"}\n' * 8)
    asked = ["train", "--base", tmp_path / "base", "--base-name", "alice/base", "--data", tmp_path / "data.jsonl"]
    asked += ["--output", tmp_path / "out", "--connection", "cascade"]
    asked += ["--network", "full", "--base-prefix-examples", "0"]
    done = CliRunner().invoke(app, [str(one) for one in asked], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert ValueAdapter.from_pretrained(tmp_path / "out" / "adapter").config.connection == "cascade"


@connections
def test_saved_and_loaded_it_is_the_same(connection: Connection, tmp_path: Path) -> None:
    """The connection travels in config.json, and is shown wherever an adapter is described."""
    model = wrapped(connection, network="gemma3")
    model.save_pretrained(tmp_path / "adapter")
    base = tiny_model("llama", seed=1)
    loaded = ValueAdapterForCausalLM.from_pretrained(base, tmp_path / "adapter", tokenizer=byte_tokenizer(), scale=0.5)
    assert loaded.adapters["default"].config.connection == connection
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert f"{connection}; only for bases" in CliRunner().invoke(app, ["inspect", str(tmp_path / "adapter")]).stdout
    assert f"Connection `{connection}`: the network reads" in (tmp_path / "adapter" / "README.md").read_text()


def test_the_card_says_what_the_connection_forbids() -> None:
    """No map is promised where another vocabulary is refused; a residual adapter's card says nothing of connections."""
    cascade = render_card(dataclasses.replace(FULL, connection="cascade"), repo_id="a/b")
    assert "through a map" not in cascade
    assert "\n\n\n" not in cascade
    assert "Connection" not in render_card(FULL, repo_id="a/b")


def test_a_checkpoint_of_another_connection_is_an_error(trained: Trained, tmp_path: Path) -> None:
    """The same shapes, and another meaning."""
    trained("cascade", save_steps=1).train()
    with pytest.raises(CheckpointError, match=r"has connection 'cascade'.*Resume with the connection"):
        trained("residual").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_an_unknown_connection_is_an_error() -> None:
    """Not silently one of the known."""
    with pytest.raises(ConfigError, match=r"one of 'residual', 'cascade', 'cascade_with_text'; got 'parallel'"):
        adapter_of(cast(Connection, "parallel"), tiny_model("llama", seed=2))
