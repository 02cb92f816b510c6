"""A trace says what base and adapters compute, token by token, and can be read, printed and looked at."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import tiny_model
from typer.testing import CliRunner
from vocabularies import tokenizer_of

from valueadapter import ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM, Weights, trace
from valueadapter.cli.app import app
from valueadapter.evaluation.visible import signed

Make = Callable[..., ValueAdapterForCausalLM]
PROMPT = "A B <C> & D"


@pytest.fixture
def make() -> Make:
    def traced(prefix: str | None = None) -> ValueAdapterForCausalLM:
        """One adapter of the base's vocabulary and one of another."""
        tokenizer, theirs = tokenizer_of("bytes"), tokenizer_of("sentencepiece")
        base = tiny_model("llama", seed=1, width=len(tokenizer))
        model = ValueAdapterForCausalLM(base, tokenizer=tokenizer).eval()
        for name, own, seed in (("a", tokenizer, 5), ("b", theirs, 6)):
            network = tiny_model("qwen3", seed=seed, width=len(own))
            adapter = ValueAdapter.from_networks([network], own, base_model_name_or_path="x/y", base_prefix=prefix)
            model.add_adapter(adapter, name, scale=0.5)
        model.set_adapter(["a", "b"])
        return model

    return traced


@pytest.mark.parametrize("own_weight", [1.0, 0.7])
@pytest.mark.parametrize("prefix", [None, "Z: Y "])
def test_each_number_is_what_it_says(make: Make, prefix: str | None, own_weight: float) -> None:
    """Against the logits of the base behind its prefix, of the sum, and of each adapter at its scale and weights."""
    model = make(prefix)
    model.set_weights("a", Weights(own_weight, (0.6,), 1 - own_weight), scale=None)
    ids = model.base_tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    final = model(ids).logits[0, :-1]
    if prefix is None:
        base = model.base(ids).logits[0, :-1]
    else:
        with model.prefixed_base(prefix):
            base = model(ids).logits[0, :-1]
    alone = {}
    for name in ("a", "b"):
        model.set_adapter(name)
        values = model(ids, output_value_logits=True).value_logits
        assert values is not None
        alone[name] = values[0, :-1]
    model.set_adapter(["a", "b"])
    traced = trace(model, PROMPT)
    assert (len(traced.steps), traced.scales) == (ids.shape[1] - 1, {"a": 0.5, "b": 0.5})
    p, q = base.softmax(-1), final.softmax(-1)
    for index, (step, label) in enumerate(zip(traced.steps, ids[0, 1:], strict=True)):
        assert step.token == model.base_tokenizer.decode([label])
        assert step.base_probability == pytest.approx(float(p[index, label]), rel=1e-3)
        assert step.probability == pytest.approx(float(q[index, label]), rel=1e-3)
        assert step.final.probability == pytest.approx(float(q[index].max()), rel=1e-3)
        assert step.final.token == model.base_tokenizer.decode([q[index].argmax()])
        assert step.base.token == model.base_tokenizer.decode([p[index].argmax()])
        kl = float((q[index] * (q[index] / p[index]).log()).sum())
        assert step.divergence == pytest.approx(kl, rel=1e-3, abs=1e-4)
        for name, values in alone.items():
            push = float(values[index, label] - (p[index] * values[index]).sum())
            assert step.pushes[name].on_token == pytest.approx(push, abs=1e-3)
            assert step.pushes[name].on_it >= push - 1e-3 or step.pushes[name].token != step.token
            taken = 0.5 * (own_weight - 1) if name == "a" else 0.0
            own = float(base[index, label] - (p[index] * base[index]).sum())
            assert step.pushes[name].of_base == pytest.approx(taken * own, abs=1e-3)
    assert traced.weights == model.weights
    assert ("(base " in traced.to_html()) == (own_weight != 1)


def test_generated_tokens_are_those_of_generate(make: Make) -> None:
    """And are traced as if they had stood there."""
    model = make()
    ids = model.base_tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    traced = trace(model, PROMPT, max_new_tokens=5)
    assert [step.token for step in traced.steps] == [model.base_tokenizer.decode([token]) for token in answer]
    assert all(step.final.token == step.token for step in traced.steps)
    assert traced.prompt == PROMPT


CHAT = [{"role": "user", "content": "A B?"}]


def test_a_chat_is_traced_as_it_is_answered(make: Make) -> None:
    """Each model reads it by its own template: the tokens of `generate`, and the probabilities of `forward`."""
    model = make()
    inputs = model.chat_inputs(CHAT)
    before = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    final = model(ids, messages=CHAT).logits[0].softmax(-1)
    traced = trace(model, CHAT, max_new_tokens=4)
    assert [step.token for step in traced.steps] == [model.base_tokenizer.decode([t]) for t in ids[0, before:]]
    for index, (step, label) in enumerate(zip(traced.steps, ids[0, before:], strict=True)):
        assert step.probability == pytest.approx(float(final[before + index - 1, label]), rel=1e-3)
    answer = model.base_tokenizer.encode("A C", add_special_tokens=False)
    final = model(torch.tensor([[*inputs["input_ids"][0], *answer]]), messages=CHAT).logits[0].softmax(-1)
    given = trace(model, [*CHAT, {"role": "assistant", "content": "A C"}])
    assert "".join(step.token for step in given.steps) == "A C"
    expected = [float(final[before + index - 1, token]) for index, token in enumerate(answer)]
    assert [step.probability for step in given.steps] == pytest.approx(expected, rel=1e-3)


def test_rows_of_mixed_adapters_have_their_own_pushes(make: Make) -> None:
    """An adapter that does not act on a row adds nothing there."""
    model = make()
    ids = model.base_tokenizer(PROMPT, return_tensors="pt")["input_ids"].repeat(2, 1)
    out = model(ids, adapter_names=["a", "b"], output_value_logits="each")
    assert out.each is not None
    assert [bool(out.each["a"][row].any()) for row in (0, 1)] == [True, False]
    assert [bool(out.each["b"][row].any()) for row in (0, 1)] == [False, True]
    torch.testing.assert_close(out.each["a"] + out.each["b"], out.value_logits, rtol=0, atol=0)


def test_what_cannot_be_traced_says_so(make: Make) -> None:
    """Without an adapter, with too little text, a chat without answer, or no prompt at all."""
    model = make()
    with model.disable_adapter(), pytest.raises(UnsupportedModeError, match="no adapter acts here"):
        trace(model, PROMPT)
    with pytest.raises(UnsupportedModeError, match="has 1 tokens; tracing it needs 2"):
        trace(model, "A")
    with pytest.raises(UnsupportedModeError, match="must be the assistant's answer; got one of 'user'"):
        trace(model, CHAT)
    for prompt in (None, [], ["A"], [CHAT]):
        with pytest.raises(ConfigError, match="prompt must be text, or one conversation"):
            trace(model, prompt, max_new_tokens=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"max_new_tokens must be a whole number; got '3' \(str\)"):
        trace(model, PROMPT, max_new_tokens="3")  # type: ignore[arg-type]


def test_the_page_shows_the_text_and_runs_none_of_it(make: Make, tmp_path: Path) -> None:
    """Angle brackets of the text are text; every token is there once in the text and once in the table."""
    traced = trace(make(), PROMPT)
    traced.save_html(tmp_path / "trace.html")
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert page.count('<span class="token') == len(traced.steps)
    assert page.count("<tr") == len(traced.steps) + 1
    assert "&lt;" in page
    assert "<C>" not in page
    assert "<script" not in page


def test_the_table_fits_a_terminal(make: Make) -> None:
    """A row for each token; white space can be seen."""
    traced = trace(make(), PROMPT)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(traced.table())
    text = console.export_text()
    assert "a at 0.5" in text
    assert "·" in text
    assert json.loads(json.dumps(traced.to_dict()))["steps"][0]["pushes"].keys() == {"a", "b"}


def test_the_command_shows_it(make: Make, tmp_path: Path) -> None:
    """A table, a page or JSON, with the adapters under the last parts of their names."""
    model = make()
    model.base.save_pretrained(tmp_path / "base")
    tokenizer: Any = model.base_tokenizer
    tokenizer.save_pretrained(tmp_path / "base")
    model.adapters["b"].save_pretrained(tmp_path / "style")
    words = ["trace", "--base", str(tmp_path / "base"), "--adapter", f"{tmp_path / 'style'}=0.7", "--prompt", PROMPT]
    words += ["--max-new-tokens", "3"]
    table = CliRunner().invoke(app, [*words, "--html", str(tmp_path / "page.html")])
    assert table.exit_code == 0, table.output
    assert "3 tokens after" in table.output
    assert "style" in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(found.stdout)["scales"] == {"style": 0.7}
    chat = json.loads(CliRunner().invoke(app, [*words, "--json", "--chat"]).stdout)
    assert chat["prompt"] != json.loads(found.stdout)["prompt"]
    assert CliRunner().invoke(app, [*words[:-3], "", "--max-new-tokens", "3"]).exit_code != 0


def test_a_prefix_shows_beside_the_base_without_it(make: Make, tmp_path: Path) -> None:
    """What the base alone says is in data and page, and the page names base, adapter, prefix and prompt."""
    model = make("Z: <Y>\n\n")
    ids = model.base_tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    alone = model.base(ids).logits[0, :-1].softmax(-1)
    traced = trace(model, PROMPT, sources={"a": "alice/quiz", "b": str(tmp_path)})
    for index, (step, label) in enumerate(zip(traced.steps, ids[0, 1:], strict=True)):
        assert step.alone is not None
        assert step.alone.token == model.base_tokenizer.decode([alone[index].argmax()])
        assert step.alone.probability == pytest.approx(float(alone[index].max()), rel=1e-3)
        assert step.alone_probability == pytest.approx(float(alone[index, label]), rel=1e-3)
        assert step.alone_probability != pytest.approx(step.base_probability, rel=1e-3)
    assert traced.prefix == "Z: <Y>\n\n"
    assert traced.adapters == {"a": "alice/quiz", "b": tmp_path.name}
    page = traced.to_html()
    for words in (
        "base alone",
        "base behind the prefix",
        "<dd>alice/quiz ",
        "Z: &lt;Y&gt;⏎\n",
        '<span class="scale">',
    ):
        assert words in page
    without = trace(make(), PROMPT)
    assert (without.prefix, without.steps[0].alone) == (None, None)
    assert "behind the prefix" not in without.to_html()


@pytest.mark.parametrize(
    ("token", "shown", "in_line"),
    [
        ("\n", "⏎", "⏎\n"),
        (" ", "·", "·"),
        (" a\n", "·a⏎", " a⏎\n"),
        ("", "∅", "∅"),
        ("\u200b", "\\u200b", "\\u200b"),
        ("\u200d", "\\u200d", "\\u200d"),
        ("\u3164", "\\u3164", "\\u3164"),
        ("\u0301", "\\u0301", "\\u0301"),
        ("\xa0", "␣", "␣"),
        ("<s>", "<s>", "<s>"),
        ("👩\u200d💻", "👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_no_token_is_invisible(token: str, shown: str, in_line: str) -> None:
    """White space, ends of lines and characters without a picture have one; signs that are joined stay whole."""
    assert signed(token) == shown
    assert signed(token, in_line=True) == in_line
