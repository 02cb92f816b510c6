"""The model card: right metadata, a usage block that runs, and our own cards told from people's."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from adapters_on_hub import REPO, save, server
from hub_clients import ASKS_ITS_ENDPOINT
from huggingface_hub import HfApi, ModelCard, ModelCardData
from markdown_it import MarkdownIt
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter
from valueadapter.artifact.card import is_generated, render_card
from valueadapter.artifact.card_results import CardArm, CardPrompt, CardResult, CardResults
from valueadapter.artifact.config import (
    EvaluationRecord,
    Message,
    NetworkSpec,
    Prefix,
    RecommendedWeights,
    Regularisation,
    TrainingRecord,
    ValueAdapterConfig,
    Weights,
)
from valueadapter.vocabulary.spec import VocabularySpec

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

BARE = ValueAdapterConfig(
    "alice/base", (NetworkSpec(path="value_network"),), VocabularySpec(97, "a" * 64, "b" * 64), scale=0.7
)
TRAINING = TrainingRecord(
    valueadapter_version="0.1.0",
    initialisation="pretrained",
    initialised_from="alice/small",
    num_layers=4,
    regularisation=Regularisation("l2", 0.01),
    data="alice/demonstrations",
    num_examples=1200,
    num_response_tokens=34567,
    steps=300,
    loss_first=2.5,
    loss_last=1.25,
)
EVALUATION = (
    EvaluationRecord("alice/big", "same family, larger", "alice/held-out", 150, 1.0, 1.2, 1.1, 0.9, 0.1, 0.12, 0.2),
    EvaluationRecord("alice/base", "trained on it", "quiz: a | b", 150, 1.0, 1.2, None, 0.95),
)
ALL_ARMS = dataclasses.replace(
    EVALUATION[0],
    fewshot_bits_per_byte=0.95,
    fewshot_exact_match=0.15,
    num_fewshot=4,
    finetuned_bits_per_byte=0.8,
    finetuned_exact_match=0.3,
    gain_recovered=0.75,
)
FULL = dataclasses.replace(
    BARE,
    networks=(NetworkSpec(1.0, path="expert"), NetworkSpec(-1.0, repo="alice/reference", revision="c" * 40)),
    base_model_revision="d" * 40,
    base_prefix="Question: what?\nAnswer: ```that```\n",
    training=TRAINING,
    evaluation=EVALUATION,
)


def test_recommended_weights_are_shown() -> None:
    """Under the adapter's own, base by base; and nothing of them where there are none."""
    fitted = RecommendedWeights("e" * 64, "acme/other", Weights(0.7, (0.6,), 1.5), "quiz", 80, 1.25, 1.125)
    text = render_card(dataclasses.replace(BARE, weights=(fitted,)), repo_id="alice/a")
    row = "| acme/other | base 0.7, networks +0.6, end of text +1.5 | 1.0 | 80 of quiz | 1.250 | 1.125 |"
    assert row in text
    assert "calibration" not in render_card(BARE, repo_id="alice/a")


def _metadata(text: str) -> ModelCardData:
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def test_metadata_is_what_the_hub_reads() -> None:
    """Library, base, relation, task, tags, licence, data and results are in the places where the Hub looks."""
    data = _metadata(render_card(FULL, repo_id=REPO, license="apache-2.0", tags=("quiz", "yes")))
    assert (data.library_name, data.pipeline_tag, data.license) == ("valueadapter", "text-generation", "apache-2.0")
    assert (data.base_model, data.get("base_model_relation")) == ("alice/base", "adapter")
    assert data.tags == ["value-adapter", "vocab:" + 16 * "a", "quiz", "yes"]
    assert data.datasets == ["alice/demonstrations"]
    results = [(r.metric_type, r.metric_name, r.metric_value, r.dataset_name) for r in data.eval_results or []]
    assert results == [
        ("bits_per_byte", "bits per byte on alice/big, scale 1", 0.9, "alice/held-out"),
        ("bits_per_byte", "bits per byte on alice/big: base alone", 1.2, "alice/held-out"),
        ("bits_per_byte", "bits per byte on alice/big: small tuned model alone", 1.1, "alice/held-out"),
        ("exact_match", "exact match on alice/big, scale 1", 0.2, "alice/held-out"),
        ("exact_match", "exact match on alice/big: base alone", 0.1, "alice/held-out"),
        ("exact_match", "exact match on alice/big: small tuned model alone", 0.12, "alice/held-out"),
        ("bits_per_byte", "bits per byte on alice/base, scale 1", 0.95, "quiz: a | b"),
        ("bits_per_byte", "bits per byte on alice/base: base alone", 1.2, "quiz: a | b"),
    ]


def test_every_arm_that_was_measured_is_in_the_metadata() -> None:
    """Few-shot and fine-tuned too, and the share of the gain; the card's table has a column for each."""
    text = render_card(dataclasses.replace(BARE, evaluation=(ALL_ARMS,)), repo_id=REPO)
    results = {(r.metric_type, r.metric_name): r.metric_value for r in _metadata(text).eval_results or []}
    assert results["bits_per_byte", "bits per byte on alice/big: base with 4 demonstrations in its prompt"] == 0.95
    assert results["exact_match", "exact match on alice/big: base fine-tuned with LoRA"] == 0.3
    assert results["gain_recovered", "share of the gain of fine-tuning on alice/big, scale 1"] == 0.75
    assert len(results) == 11
    row = "| alice/big (same family, larger) | alice/held-out | 150 | 1.0 |"
    assert f"{row} bits per byte | 1.200 | 0.950 (4) | 1.100 | 0.900 | 0.800 | 75.0% |" in text.splitlines()
    assert f"{row} exact match | 10.0% | 15.0% | 12.0% | 20.0% | 30.0% | |" in text.splitlines()


def test_ends_and_their_cost_are_in_the_table() -> None:
    """Where they were measured; and nothing of them where they were not."""
    shares = {
        "base_ends": 0.5,
        "adapted_ends": 1.0,
        "base_total_bits_per_byte": 1.5,
        "adapted_total_bits_per_byte": 1.0,
    }
    text = render_card(dataclasses.replace(BARE, evaluation=(dataclasses.replace(ALL_ARMS, **shares),)), repo_id=REPO)
    row = "| alice/big (same family, larger) | alice/held-out | 150 | 1.0 |"
    missing = "not measured"
    assert f"{row} bits per byte, end counted | 1.500 | {missing} | {missing} | 1.000 | {missing} | |" in text
    assert f"{row} answers that end | 50.0% | {missing} | {missing} | 100.0% | {missing} | |" in text
    assert "answers that end" not in render_card(FULL, repo_id=REPO)


def test_results_at_other_weights_have_names_of_their_own() -> None:
    """One base at default and at fitted weights: the Hub shows both."""
    pair = tuple(dataclasses.replace(ALL_ARMS, weights=Weights(base, (0.6,))) for base in (0.7, 0.9))
    results = _metadata(render_card(dataclasses.replace(BARE, evaluation=pair), repo_id=REPO)).eval_results or []
    names = [str(one.metric_name) for one in results if ", scale 1" in str(one.metric_name)]
    assert "bits per byte on alice/big, scale 1, base 0.7, networks +0.6" in names
    assert len(names) == len(set(names)) == 6


@pytest.mark.parametrize("name", ["no", "1e3", "a: b", "#x", 'say "hi"', "日本", "back\\slash", "null", "- x", ""])
def test_any_text_survives_the_metadata(name: str) -> None:
    """What YAML would read as something else is quoted."""
    tags = _metadata(render_card(BARE, repo_id=REPO, tags=("x", name))).tags
    assert tags == ["value-adapter", "vocab:" + 16 * "a", "x", name]


@ASKS_ITS_ENDPOINT
@pytest.mark.parametrize("config", [BARE, FULL], ids=["bare", "full"])
def test_hub_accepts_the_card(server: LocalHub, config: ValueAdapterConfig) -> None:
    """The Hub's own validation has no complaint."""
    ModelCard(render_card(config, repo_id=REPO)).validate()


@pytest.mark.parametrize("config", [BARE, FULL], ids=["bare", "full"])
@pytest.mark.parametrize("repo_id", [REPO, None])
def test_no_ragged_text(config: ValueAdapterConfig, repo_id: str | None) -> None:
    """No double blank lines, no trailing spaces, no table torn apart, nothing that Python or Jinja left."""
    text = render_card(config, repo_id=repo_id)
    assert not re.search(r"\n\n\n|[ \t]\n|\|\n\n\||None|\{\{|\{%", text)
    assert text.endswith(" -->\n")


def test_a_prefix_is_shown_whole() -> None:
    """In a block that its own backticks do not end."""
    assert "````text\nQuestion: what?\nAnswer: ```that```\n````\n" in render_card(FULL, repo_id=REPO)


def test_sections_without_data_are_left_out() -> None:
    """An adapter that nobody trained or measured says nothing of training and measuring."""
    headings = re.findall(r"^## (.*)$", render_card(BARE, repo_id=None), re.M)
    assert headings == ["Install", "Use", "Cost", "Recipe", "Limits", "Citation"]
    assert re.findall(r"^## (.*)$", render_card(FULL, repo_id=REPO), re.M) == [
        "Install",
        "Use",
        "Results",
        "Cost",
        "Recipe",
        "Base prefix",
        "Limits",
        "Citation",
    ]


SAME_FAMILY = "| alice/big (same family, larger) | alice/held-out | 150 | 1.0 |"
TRAINED_ON_IT = "| alice/base (trained on it) | quiz: a \\| b | 150 | 1.0 |"


@pytest.mark.parametrize(
    "line",
    [
        f"{SAME_FAMILY} bits per byte | 1.200 | not measured | 1.100 | 0.900 | not measured | not measured |",
        f"{SAME_FAMILY} exact match | 10.0% | not measured | 12.0% | 20.0% | not measured | |",
        f"{TRAINED_ON_IT} bits per byte | 1.200 | not measured | not measured | 0.950 | not measured | not measured |",
        "| -1.0 | alice/reference at cccccccccccc |",
        "| response tokens | 34,567 |",
        "| initialisation | pretrained from alice/small, first 4 layers |",
        "| loss per response token | 2.500 at first, 1.250 at last (nats) |",
    ],
)
def test_facts_are_in_the_tables(line: str) -> None:
    """Every arm of the comparison, every network and the training facts have their row."""
    assert line in render_card(FULL, repo_id=REPO).splitlines()


def test_the_card_begins_with_what_the_adapter_does() -> None:
    """In its title and its first line; then prompts, install, use, results, cost, recipe, prefix, limits."""
    shown = CardResults((shown_with("Which gas?"),), b"\x89PNG\r\n\x1a\n", "Answers quiz questions.")
    text = render_card(FULL, repo_id=REPO, shown=shown)
    title, first, more = text.split("\n---\n\n", 1)[1].split("\n\n")[:3]
    assert title == "# Value adapter for alice/demonstrations, trained on alice/base"
    assert first == "Answers quiz questions."
    assert more.startswith("It makes a language model answer as the 1,200 demonstrations of alice/demonstrations do")
    assert re.findall(r"^## (.*)$", text, re.M) == [
        *("Held-out prompts", "Install", "Use", "Results", "Cost", "Recipe", "Base prefix", "Limits", "Citation")
    ]
    assert "(value_adapter_card.png)" in text
    assert "value_adapter_card" not in render_card(FULL, repo_id=REPO)
    assert not re.search(r"\n\n\n|[ \t]\n|\|\n\n\||None|\{\{|\{%", text)


def test_results_have_one_row_for_each_base() -> None:
    """Everything that was compared stands side by side, calibrated weights too; no column is empty."""
    fitted = dataclasses.replace(ALL_ARMS, weights=Weights(0.7, (0.6,)), adapted_bits_per_byte=0.7)
    text = render_card(dataclasses.replace(BARE, evaluation=(ALL_ARMS, fitted, EVALUATION[1])), repo_id=REPO)
    table = text[text.index("## Results") : text.index("<details>")]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert rows[0].split(" | ")[1:4] == ["base alone", "examples in its prompt", "small tuned model"]
    assert rows[2:] == [
        "| alice/big (same family, larger)<br>150 of alice/held-out | 10.0%<br>1.200 | 15.0%<br>0.950 | 12.0%<br>1.100 "
        "| 20.0%<br>0.900 | 20.0%<br>0.700 | 30.0%<br>0.800 |",
        "| alice/base (trained on it)<br>150 of quiz: a \\| b | 1.200 | not measured | not measured | 0.950 "
        "| not measured | not measured |",
    ]
    assert "calibrated" not in render_card(FULL, repo_id=REPO).split("<details>")[0].split("| base model |")[1][:120]


def shown_with(text: str) -> CardResult:
    """A result in which everything that people or models wrote is this text."""
    arms = (CardArm("base", text), CardArm("adapted", text))
    return CardResult(text, text, text, 3, arms, (CardPrompt(text, text, {"base": text, "adapted": text}),))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a|b|c",
        "[x](javascript:y)",
        "![x](http://a/b.png)",
        "`</code>`<b>",
        "http://a.b",
        "# x\n---\n| a |\n|---|\n```",
        "*a* _b_ **c**",
        "\u202egnp\x1b[31m",
        "&lt;img src=x onerror=y&gt;",
    ],
)
def test_prompts_and_answers_are_text(text: str) -> None:
    """Whatever they hold: they stay in their cells, and nothing of it is a tag, a link or a table on the page."""
    page = MarkdownIt("commonmark", {"html": True}).enable("table")
    card = render_card(BARE, repo_id=REPO, shown=CardResults((shown_with(text),)))
    body = card[card.index("## Held-out prompts") : card.index("## Install")]
    shown = page.render(body)
    assert shown.count("<td>") == 4
    assert not re.search(r"<(?!/?(h2|p|table|thead|tbody|tr|th|td|code|br)\b)", shown)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", shown)


def test_edited_card_is_no_longer_ours() -> None:
    """One changed letter makes a card a person's."""
    text = render_card(FULL, repo_id=REPO)
    assert is_generated(text)
    assert not is_generated(text.replace("Value adapter", "Value Adapter", 1))
    assert not is_generated(text + "More.\n")
    assert not is_generated("# mine\n")


@pytest.mark.parametrize("prefix", [None, "A: B\n\n", (Message("user", "A"), Message("assistant", "B"))])
def test_usage_block_runs(
    prefix: Prefix | None, server: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code on the card, as it stands, loads base and adapter by their Hub IDs and generates; a chat for chats."""
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    HfApi().create_repo("alice/base")
    HfApi().upload_folder(repo_id="alice/base", folder_path=tmp_path / "base")
    adapter = ValueAdapter.from_pretrained(save(tmp_path / "adapter"))
    adapter.with_config(base_prefix=prefix).push_to_hub(REPO)
    card = ModelCard.load(REPO).text
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    exec(compile(code, "card", "exec"), {})
    assert ("chat_inputs" in code) == isinstance(prefix, tuple)
    assert len(capsys.readouterr().out.strip()) > 0


@pytest.mark.parametrize(
    ("prompt", "expected", "chat"),
    [
        ('Say "no":\n\\ ```\n', 'Say "no":\n\\ ```\n', False),
        ("\u202egnp 👩\u200d💻 \u2028 \x1b[31m", "\u202egnp 👩\u200d💻 \u2028 \x1b[31m", False),
        ("user: Where is é?", "Where is é?", True),
        ("system: Be kind.\nuser: Where?", "What is the capital of France?", True),  # one turn cannot say it
        ("developer: Be kind.\nuser: Where?", "What is the capital of France?", True),
        ("user: " + "A" * 300, "What is the capital of France?", True),
        ("A\u2028B\u00a0C", "A\u2028B\u00a0C", False),
        ("A" * 301, None, False),
    ],
)
def test_the_code_asks_what_was_held_out(prompt: str, expected: str | None, chat: bool) -> None:
    """The first prompt that fits, as it is, in both blocks; else one that fits every adapter."""
    result = CardResult("alice/big", "larger", "alice/held-out", 3, (), (CardPrompt(prompt, "x", {}),))
    card = render_card(BARE, repo_id=REPO, runs_alone=True, shown=CardResults((result,)))
    blocks = re.findall(r"```python\n(.*?)\n```", card, re.S)
    assert len(blocks) == 2
    for code in blocks:
        texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert (expected or "The capital of France is") in texts
        assert ("chat" in code) == chat
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028]", code)


def test_template_is_in_the_wheel(tmp_path: Path) -> None:
    """An installed wheel renders the same card as the checkout."""
    pytest.importorskip("hatchling")
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = (
        "import sys; from pathlib import Path; from valueadapter.artifact import card, config; "
        "c = config.ValueAdapterConfig.from_json(Path(sys.argv[1]).read_text()); "
        "sys.stdout.write(card.render_card(c, repo_id=sys.argv[2])); assert 'installed' in card.__file__"
    )
    (tmp_path / "config.json").write_text(FULL.to_json())
    run = [sys.executable, "-c", program, str(tmp_path / "config.json"), REPO]
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""}
    out = subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert out == render_card(FULL, repo_id=REPO)
