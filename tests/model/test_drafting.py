"""The adapter drafts for its base: the same answers, each model's work done once."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bodies import pair_of
from kinds import model_of
from test_alignment import permuted
from tiny import tiny_model
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.compat import cache_in, installed
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.model.drafting import DraftedCandidates, own_draft
from valueadapter.model.preparing import own_steps
from valueadapter.model.stopping import Guesses

WINDOWED = "gemma3" if installed("transformers") >= (5, 18) else "llama"
"""A model of sliding windows, where those can be drafted over."""
IDS = torch.randint(3, 97, (1, 7), generator=torch.Generator().manual_seed(0))
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def close(base: str, body: str, tokenizer: Any, prefix: str | None = None) -> ValueAdapterForCausalLM:
    """A model whose sum is near to what its network says, so that some drafts are taken and some are not."""
    model = pair_of(tiny_model(base, seed=1), tokenizer, tokenizer, tiny_model(body, seed=9, width=97), prefix)
    model.set_adapter(["a"])
    model.set_scale("a", 8.0)
    return model


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Drafted and taken in each round, while the test runs."""
    found: list[tuple[int, int]] = []
    update = DraftedCandidates.update_candidate_strategy

    def noted(self: DraftedCandidates, input_ids: Any, scores: Any, num_matches: int) -> None:
        found.append((self._drafted, int(num_matches)))
        update(self, input_ids, scores, num_matches)

    monkeypatch.setattr(DraftedCandidates, "update_candidate_strategy", noted)
    return found


def check_equal(model: ValueAdapterForCausalLM, ids: torch.Tensor, **how: Any) -> Any:
    """What drafting gives is what plain decoding gives, token by token and in its logits."""
    arguments = {**GREEDY, "output_logits": True, "return_dict_in_generate": True, **how}
    number = arguments.pop("num_assistant_tokens", None)
    plain = model.generate(ids, **arguments)
    drafted = model.generate(ids, **arguments, speculative=True, num_assistant_tokens=number)
    assert torch.equal(plain.sequences, drafted.sequences)
    for mine, theirs in zip(drafted.logits, plain.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    return drafted


@pytest.mark.skipif(WINDOWED == "gemma3", reason="from transformers 5.18 on windows are drafted over")
def test_windows_are_refused_where_they_are_read_wrongly(tokenizer: Any) -> None:
    for base, body in (("gemma3", "qwen3"), ("llama", "gemma3")):
        with pytest.raises(
            UnsupportedModeError, match=r"needs transformers 5\.18 .* as a (PeftModel|Gemma3)ForCausalLM does"
        ):
            close(base, body, tokenizer).generate(IDS, **GREEDY, speculative=True)


@pytest.mark.parametrize("number", [None, 1, 4])
@pytest.mark.parametrize("prefix", [None, "Q:A "])
@pytest.mark.parametrize(
    ("base", "body"), [("llama", "qwen3"), ("llama", "gpt2"), (WINDOWED, WINDOWED), ("gpt2", "llama"), ("gpt2", "gpt2")]
)
def test_drafting_changes_no_token(
    base: str, body: str, prefix: str | None, number: int | None, tokenizer: Any, rounds: list[tuple[int, int]]
) -> None:
    model = close(base, body, tokenizer, prefix)
    check_equal(model, IDS, num_assistant_tokens=number)
    assert any(taken for _, taken in rounds), "a draft was taken"
    assert any(taken < drafted for drafted, taken in rounds), "and one was not"
    assert number is None or max(drafted for drafted, _ in rounds) == number


@pytest.mark.parametrize("kind", ["phi3", "bloom", "ctrl"])
@pytest.mark.parametrize("role", ["base", "network"])
def test_models_that_prepare_a_step_in_a_way_of_their_own(kind: str, role: str, tokenizer: Any) -> None:
    """Phi-3 turns all positions otherwise where the text passes its switch, which no draft may pass."""
    models = {"base": tiny_model("llama", seed=1), "network": tiny_model("qwen3", seed=2)}
    models[role] = model_of(kind, seed=3)
    model = ValueAdapterForCausalLM(models["base"], tokenizer=tokenizer).eval()
    adapter = ValueAdapter.from_networks([models["network"]], tokenizer, base_model_name_or_path="a/b")
    model.add_adapter(adapter, "a", scale=3.0)
    for number in (1, 2, 3, 5):
        check_equal(model, IDS, num_assistant_tokens=number)


@pytest.mark.parametrize("kind", ["mamba", "jamba", "openai-gpt"])
def test_a_state_that_cannot_be_taken_back_is_said(kind: str, tokenizer: Any) -> None:
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    adapter = ValueAdapter.from_networks([model_of(kind, seed=3)], tokenizer, base_model_name_or_path="a/b")
    model.add_adapter(adapter, "a")
    with pytest.raises(UnsupportedModeError, match=r"none can be taken|keeps none"):
        model.generate(IDS, **GREEDY, speculative=True)
    if kind != "openai-gpt":
        for how in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny_model("llama", seed=5)}):
            with pytest.raises(UnsupportedModeError, match=f"{kind.capitalize()}ForCausalLM keeps a state from which"):
                model.generate(IDS, **GREEDY, **how)


@pytest.mark.parametrize("prefix", [None, "Q:A "])
def test_each_model_reads_each_token_once(prefix: str | None, tokenizer: Any) -> None:
    """The network that drafts runs in drafting alone, token by token; the base and the body once in each round."""
    model = close("llama", "qwen3", tokenizer, prefix)
    (term,) = model.attached.terms()
    read: dict[str, list[int]] = {"base": [], "network": [], "body": []}
    for name, one in (("base", model.base), ("network", term.networks[0]), ("body", term.networks[1])):
        one.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: read[name].append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
    model.generate(IDS, **GREEDY, speculative=True, num_assistant_tokens=3)
    lead = len(tokenizer(prefix)["input_ids"]) if prefix else 0
    assert read["network"][0] == 7
    assert set(read["network"][1:]) == {1}
    rounds = len(read["base"]) - bool(lead)  # the prefix is read before
    assert read["base"][-rounds:] == read["body"][-rounds:]
    assert rounds < 24
    assert len(read["network"]) == sum(read["base"][-rounds:]) - 6, "as many tokens as the sum needs, none twice"


def test_a_step_is_not_prepared_for_who_has_spoken(tokenizer: Any) -> None:
    """A class of its own kind might want to read all anew where nothing is left to read."""
    model = close("llama", "qwen3", tokenizer)
    cache = model(IDS, use_cache=True).cache
    added, subtracted = model.attached.terms()[0].parts
    given = {"cache": cache, "attention_mask": None, "position_ids": None}
    longer = torch.cat([IDS, IDS[:, :1]], dim=1)
    assert set(own_steps(model, longer, 1, **given)[0]) == {"base", added, subtracted}
    cache.ahead[added] = None
    assert set(own_steps(model, longer, 1, **given)[0]) == {"base", subtracted}


def test_tokens_under_other_ids(rounds: list[tuple[int, int]]) -> None:
    """A base that has the network's tokens in another order gets drafts in its own."""
    theirs = permuted("bytes")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(theirs.tokenizer_json), eos_token="</s>", pad_token="<pad>"
    )
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=theirs.width), tokenizer=tokenizer).eval()
    network = tiny_model("qwen3", seed=2, width=len(tokenizer_of("bytes")) + 8)
    adapter = ValueAdapter.from_networks([network], tokenizer_of("bytes"), base_model_name_or_path="a/b")
    model.add_adapter(adapter, "a", scale=5.0)
    assert model.attached.terms()[0].link is not None
    check_equal(model, IDS)
    assert sum(taken for _, taken in rounds) > 5


def test_an_answer_ends_where_plain_decoding_ends_it(tokenizer: Any, rounds: list[tuple[int, int]]) -> None:
    """At a token, at a text, at the last token that may be, and by another prompt's choice of adapters."""
    model = close("llama", "qwen3", tokenizer)
    said = model.generate(IDS, **GREEDY)[0, 7:].tolist()
    for number in (None, 2, 6):
        for end in said[3:9]:
            check_equal(model, IDS, eos_token_id=end, num_assistant_tokens=number)
            check_equal(model, IDS, stop_strings=[tokenizer.decode([end])], num_assistant_tokens=number)
            check_equal(model, IDS, max_new_tokens=end % 5 + 1, num_assistant_tokens=number)
    out = model.generate(IDS, **GREEDY, adapter_names=["b"], speculative=True)
    with model.only("b", scale=model.scales["b"]):
        assert torch.equal(out, model.generate(IDS, **GREEDY))
    assert rounds


def test_padding_before_the_prompt(tokenizer: Any) -> None:
    for prefix in (None, "Q:A "):
        for base in ("llama", WINDOWED):
            model = close(base, WINDOWED, tokenizer, prefix)
            check_equal(model, IDS, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1]]))


@pytest.mark.parametrize("prefix", [None, "Q:A "])
@pytest.mark.parametrize("more", [1, 5])
def test_a_conversation_goes_on_from_its_cache(prefix: str | None, more: int, tokenizer: Any) -> None:
    """What an earlier answer left in the cache is read by no model again."""
    for base, body in (("llama", "qwen3"), (WINDOWED, WINDOWED)):
        model = close(base, body, tokenizer, prefix)
        first = {**GREEDY, "max_new_tokens": 8, "return_dict_in_generate": True}
        earlier = model.generate(IDS, **first)
        longer = torch.cat([earlier.sequences, IDS[:, :more]], dim=1)
        plain = model.generate(longer, **GREEDY, cache=cache_in(earlier))
        drafted = {**GREEDY, "speculative": True, "num_assistant_tokens": 4}
        cache = cache_in(model.generate(IDS, **first, **{"speculative": True}))
        read: list[int] = []
        hook = model.base.register_forward_pre_hook(
            lambda _, args, kwargs, read=read: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        out = model.generate(longer, **drafted, cache=cache)
        hook.remove()
        assert torch.equal(plain, out)
        assert read[0] <= more + 1 + 4
        assert len({cache.read_by(part) for part in cache.parts}) == 1


@pytest.mark.parametrize("how", ["processor", "streamer", "forward"])
def test_an_error_leaves_no_draft_in_the_cache(how: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the cache goes on with what was accepted."""
    for number in (4, 6, 9, 11):
        model = close("llama", "qwen3", tokenizer, "Q:A ")
        full = model.generate(IDS, **GREEDY)
        calls = iter(range(100))

        def boom(*values: Any, calls: Any = calls, number: int = number) -> Any:
            if next(calls) == number:
                raise KeyError("boom")
            return values[-1] if values else None

        more: dict[str, Any] = {"logits_processor": LogitsProcessorList([boom])} if how == "processor" else {}
        if how == "streamer":
            more = {"streamer": SimpleNamespace(put=boom, end=lambda: None)}
        cache = model(IDS[:, :3], use_cache=True).cache
        cache.reset()
        with monkeypatch.context() as patch:
            if how == "forward":
                layer = model.base.model.layers[1]
                forward = layer.forward
                patch.setattr(layer, "forward", lambda *a, b=boom, f=forward, **k: (b(), f(*a, **k))[1])
            with pytest.raises(KeyError):
                model.generate(IDS, **GREEDY, cache=cache, speculative=True, num_assistant_tokens=4, **more)
        read = cache.get_seq_length()
        assert {cache.read_by(part) for part in cache.parts} == {read}
        assert not cache.ahead
        with torch.no_grad():
            told = model(full[:, read : read + 2], cache=cache).logits[:, -1]
            torch.testing.assert_close(told, model(full[:, : read + 2]).logits[:, -1], rtol=1e-5, atol=1e-5)


def test_an_assistant_remembers_how_many_it_drafts(tokenizer: Any) -> None:
    """As in transformers, with the schedule "heuristic": what one call has learned the next one begins with."""
    model = close("llama", "qwen3", tokenizer)
    assistant = tiny_model("llama", seed=5)
    assistant.generation_config.num_assistant_tokens, kept = 9, assistant.generation_config
    kept.num_assistant_tokens_schedule = "heuristic"
    model.generate(IDS, **GREEDY, assistant_model=assistant)
    assert assistant.generation_config.num_assistant_tokens < 9


class At(StoppingCriteria):
    """A text is over at a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor([input_ids.shape[1] >= self.length])


@pytest.mark.parametrize(("base", "body"), [(WINDOWED, WINDOWED), ("llama", "qwen3")])
def test_every_criterion_ends_a_text(base: str, body: str, tokenizer: Any) -> None:
    """Somebody's own, and the stop strings of a configuration, wherever they come within a round."""
    model = close(base, body, tokenizer)
    said = model.generate(IDS, **GREEDY)[0, 7:].tolist()
    for length in range(9, 20):
        for guesses in ({"speculative": True, "num_assistant_tokens": 6}, {"prompt_lookup_num_tokens": 4}):
            criteria = StoppingCriteriaList([At(length)])
            assert model.generate(IDS, **GREEDY, stopping_criteria=criteria, **guesses).shape[1] == length
    for end in said[2:9]:
        settings = GenerationConfig(stop_strings=[tokenizer.decode([end])], **GREEDY)
        given = {"generation_config": settings, "tokenizer": tokenizer}
        plain = model.generate(IDS, **given)
        assert torch.equal(plain, model.generate(IDS, **given, speculative=True, num_assistant_tokens=6))


def test_stacked_adapters(tokenizer: Any) -> None:
    """Two of one body, and one of another vocabulary, which reads the verified text."""
    model = close("llama", "qwen3", tokenizer, "Q:A ")
    model.set_adapter(["a", "b"])
    check_equal(model, IDS)
    theirs = tokenizer_of("sentencepiece")
    other = ValueAdapter.from_networks(
        [tiny_model("gpt2", seed=4, width=len(theirs))], theirs, base_model_name_or_path="a/b"
    )
    model.add_adapter(other, "c", scale=2.0)
    model.set_adapter(["c", "a"])
    check_equal(model, IDS)


@pytest.mark.parametrize("end", ["none", "token", "text", "text by an assistant"])
def test_sampled_answers_have_the_distribution_of_plain_sampling(end: str, tokenizer: Any) -> None:
    """Pearson's chi-square of sampled texts against what they should be; fails once in ten thousand sound runs.

    Whether a text may end must not depend on who has drafted its end.
    """
    model = close("llama", "qwen3", tokenizer)
    model.set_scale("a", 2.0)
    how: dict[str, Any] = {"do_sample": True, "top_k": 4, "max_new_tokens": 2, "pad_token_id": 0, "eos_token_id": None}
    told = model(IDS).logits[0, -1].topk(4)
    first = dict(zip(told.indices.tolist(), torch.softmax(told.values, dim=-1).tolist(), strict=True))
    last = max(first, key=lambda token: first[token])
    how |= {"token": {"eos_token_id": last}, "none": {}}.get(end, {"stop_strings": [tokenizer.decode([last])]})
    guesses = {"assistant_model": model.adapters["a"].networks[0]} if "assistant" in end else {"speculative": True}
    expected: dict[tuple[int, ...], float] = {}
    for token, share in first.items():
        if end != "none" and token == last:
            expected[token,] = share
            continue
        behind = model(torch.cat([IDS, torch.tensor([[token]])], dim=1)).logits[0, -1].topk(4)
        for after, part in zip(behind.indices.tolist(), torch.softmax(behind.values, dim=-1).tolist(), strict=True):
            expected[token, after] = share * part
    count = 1500
    torch.manual_seed(0)
    seen = Counter(
        tuple(model.generate(IDS, **how, **guesses, num_assistant_tokens=1)[0, 7:].tolist()) for _ in range(count)
    )
    assert set(seen) <= set(expected)
    chi = sum((seen[one] - count * share) ** 2 / (count * share) for one, share in expected.items())
    assert chi < (44.3 if end == "none" else 39.1)  # 15 and 12 degrees of freedom


def test_how_much_is_drafted_follows_what_is_taken(tokenizer: Any) -> None:
    """More where drafts are taken, one where they are not, and never more than there is room for."""
    model = close("llama", "qwen3", tokenizer)
    candidates = drafting(model)
    candidates._cost = 0.1
    usual = candidates.how_many(7)
    for _ in range(20):
        candidates._drafted = usual
        candidates.update_candidate_strategy(IDS, IDS, usual)
    assert candidates.how_many(7) > usual
    assert candidates.how_many(28) == 2
    for _ in range(40):
        candidates.update_candidate_strategy(IDS, IDS, 0)
    assert candidates.how_many(7) == 1


def drafting(model: ValueAdapterForCausalLM) -> DraftedCandidates:
    """What drafts for a text of 31 tokens at most."""
    draft, settings = own_draft(model, None, rows=1, others={}), GenerationConfig(max_length=31)
    guesses = Guesses(StoppingCriteriaList(), settings, None)
    return DraftedCandidates(model, draft, settings, LogitsProcessorList(), guesses)


def test_the_network_that_counts_most_drafts(tokenizer: Any) -> None:
    model = close("llama", "qwen3", tokenizer)
    model.set_scale("b", 9.0)
    model.set_adapter(["a", "b"])
    assert own_draft(model, None, rows=1, others={}).term.name == "b"
    model.set_scale("b", -9.0)  # then the body, which is taken away twice, is added
    assert own_draft(model, None, rows=1, others={}).term.name == "a"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"num_return_sequences": 3, "do_sample": True}, "3 texts"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens by another"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"use_cache": False}, "use_cache is False"),
        ({"generation_config": GenerationConfig(max_new_tokens=4)}, "num_beams=3"),
    ],
)
def test_what_cannot_be_drafted_is_said(how: dict[str, Any], message: str, tokenizer: Any) -> None:
    model = close("llama", "qwen3", tokenizer)
    if "generation_config" in how:  # which leaves what it does not say to the model's own settings
        model.generation_config.num_beams = 3
    with pytest.raises(UnsupportedModeError, match=message):
        model.generate(IDS, **({} if "generation_config" in how else GREEDY) | how, speculative=True)


@pytest.mark.parametrize("number", [-1, 2.5, True, "3"])
def test_a_number_that_is_none(number: Any, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="num_assistant_tokens must be a whole number"):
        close("llama", "qwen3", tokenizer).generate(IDS, **GREEDY, speculative=True, num_assistant_tokens=number)


def test_nobody_drafts(tokenizer: Any) -> None:
    """Several prompts, no adapter, one of another vocabulary, one that is taken away."""
    model = close("llama", "qwen3", tokenizer)
    with pytest.raises(UnsupportedModeError, match="2 texts"):
        model.generate(IDS.expand(2, -1), **GREEDY, speculative=True)
    with model.disable_adapter(), pytest.raises(UnsupportedModeError, match="acting: none"):
        model.generate(IDS, **GREEDY, speculative=True)
    theirs = tokenizer_of("sentencepiece")
    network = tiny_model("gpt2", seed=4, width=len(theirs))
    model.add_adapter(ValueAdapter.from_networks([network], theirs, base_model_name_or_path="a/b"), "c")
    model.set_adapter("c")
    with pytest.raises(UnsupportedModeError, match=r"of the base's vocabulary.* acting: c"):
        model.generate(IDS, **GREEDY, speculative=True)
