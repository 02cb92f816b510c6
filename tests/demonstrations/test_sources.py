"""Demonstrations from tables, the Hub and the command line: the same records, the same errors."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi, constants
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from testkit.local_hub import LocalHub
from valueadapter import (
    ConfigError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    calibrate,
)
from valueadapter.artifact import verification
from valueadapter.cli.app import app
from valueadapter.demonstrations.responses import response_texts
from valueadapter.demonstrations.tokenized import IGNORED, load_demonstrations, tokenize
from valueadapter.evaluation.arms import Options, evaluate_adapter
from valueadapter.evaluation.metrics import evaluate
from valueadapter.training.recipe import Recipe, run

Record = dict[str, Any]
PAIRS: list[Record] = [{"prompt": f"{a}B", "completion": f"{a}C"} for a in "DEFGHIJKLMNO"]
USER = {"role": "user", "content": "HI"}
BAD: Record = {"prompt": "A", "completion": 42}


def calling(name: str, **arguments: Any) -> Record:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}


CALLS = [calling("move", x=0, y=1), calling("say", text="2024-01-01"), calling("stop")]


@pytest.mark.parametrize("source", ["list", "JSON Lines", "JSON", "Json column", "Parquet of it", "struct column"])
def test_calls_of_different_tools_are_not_merged(tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture) -> None:
    """No call gets the keys of another; where a table cannot say what is missing, the log says how it is read."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CALLS))
    given: Any = CALLS
    if source == "JSON Lines":
        given = path
    elif source == "JSON":
        given = tmp_path / "a.json"
        given.write_text(json.dumps(CALLS))
    elif source in ("Json column", "Parquet of it"):
        given = Dataset.from_list(CALLS, on_mixed_types="use_json")
        if source == "Parquet of it":
            given.to_parquet(tmp_path / "a.parquet")
            given = tmp_path / "a.parquet"
    elif source == "struct column":
        given = Dataset.from_list(CALLS)
    with caplog.at_level(logging.WARNING, "valueadapter"):
        found = load_demonstrations(given)
    calls = [record["messages"][1]["tool_calls"][0] for record in found]
    assert calls == [record["messages"][1]["tool_calls"][0] for record in CALLS]
    assert ("null and missing are the same" in caplog.text) == (source == "struct column")
    assert source == "struct column" or list(found) == CALLS
    assert [record["messages"][1]["content"] for record in found] == [None] * 3


def test_a_table_gives_plain_records(tmp_path: Path) -> None:
    """Whatever format a Dataset is set to, and through a transform of the user's."""
    data = Dataset.from_list(PAIRS)
    for given in (data, data.with_format("torch"), data.with_format("numpy"), data.select(range(12))):
        assert list(load_demonstrations(given)) == PAIRS
    asked = Dataset.from_list([{"q": row["prompt"], "a": row["completion"]} for row in PAIRS])
    asked.set_transform(lambda rows: {"prompt": rows["q"], "completion": rows["a"]})
    assert list(load_demonstrations(asked)) == PAIRS
    with pytest.raises(ConfigError, match="Give one of its values"):
        load_demonstrations(DatasetDict(train=data))


@pytest.mark.parametrize("column", [[42], [None], [True], [["a"]]])
def test_a_tables_row_is_named(column: list[Any], tmp_path: Path) -> None:
    """Of a Dataset by its number, of Parquet with the file."""
    data = Dataset.from_dict({"prompt": ["A"], "completion": column})
    with pytest.raises(ConfigError, match=r"^row 0 \(the first is 0\): .*'completion'"):
        load_demonstrations(data)
    data.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a.parquet, row 0 \(the first is 0\): .*'completion'"):
        load_demonstrations(tmp_path / "a.parquet")


def test_chosen_records_keep_their_lines(tmp_path: Path) -> None:
    """So that an error of a tokenizer's names them, too."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "AB" * number, "completion": "C"}) for number in range(1, 6)))
    chosen = load_demonstrations(path).select([4, 1])
    assert [chosen.place(index) for index in (0, 1)] == [f"{path}, line 5", f"{path}, line 2"]
    assert chosen[0]["prompt"] == "AB" * 5
    assert chosen[-1:] == [{"prompt": "ABAB", "completion": "C"}]
    with pytest.raises(ConfigError, match=r"a.jsonl, line 5: no response token is left within max_length=6"):
        tokenize(chosen, byte_tokenizer(), max_length=6)


@pytest.mark.parametrize("form", ["list", "table", "demonstrations"])
def test_all_forms_are_tokenized_alike(form: str) -> None:
    """Also more records than are turned into tokens at once."""
    records = PAIRS * 100
    given: Any = {"list": records, "table": Dataset.from_list(records), "demonstrations": load_demonstrations(records)}
    found = tokenize(given[form], byte_tokenizer())
    assert [list(row) for row in found["input_ids"]] == [
        byte_tokenizer()(row["prompt"] + row["completion"])["input_ids"] + [2] for row in records
    ]
    assert tokenize(found, byte_tokenizer()) is found
    rows = list(found)
    assert tokenize(rows, byte_tokenizer()) is rows


def test_a_stream_is_tokenized_as_the_records_are() -> None:
    """Each record is checked when it is read, and calls are not merged there either."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{{ m['tool_calls'] or m.content }}"
    )
    for records in (CALLS, PAIRS):
        stream = tokenize(Dataset.from_list(records).to_iterable_dataset(), tokenizer)
        assert list(stream) == list(tokenize(records, tokenizer))
    stream = tokenize(Dataset.from_list([PAIRS[0], {**PAIRS[0], "prompt": None}]).to_iterable_dataset(), tokenizer)
    with pytest.raises(ConfigError, match=r"^record 1 .*: 'prompt' must be text; got null"):
        list(stream)


def learned(record: Record) -> str:
    """What of a record carries loss, as text."""
    row = tokenize([record], byte_tokenizer())[0]
    return str(byte_tokenizer().decode([label for label in row["labels"] if label != IGNORED]))


@pytest.mark.parametrize("context", [(), ("EARLIER",)])
def test_only_the_completion_of_a_conversation_is_learned(context: tuple[str, ...]) -> None:
    """Neither what the prompt's assistant says nor a turn of weight 0; and the template never sees the weight."""
    say = [{"role": "assistant", "content": text} for text in ("A", "B", "C")]
    prompt = [*({"role": "system", "content": text} for text in context), USER, say[0], USER]
    assert learned({"prompt": prompt, "completion": [say[1], USER, say[2]]}) == "B</s>C</s>"
    assert learned({"messages": [USER, {**say[0], "weight": 0}, USER, {**say[1], "weight": 1}]}) == "B</s>"
    (record,) = load_demonstrations([{"prompt": prompt, "completion": [say[1]]}])
    assert response_texts(record) == ["B"]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ '</s>' }}", "{{ m.keys() | list }}{{ '</s>' }}")
    ids = tokenize([{"messages": [USER, {**say[1], "weight": 1}]}], tokenizer)[0]["input_ids"]
    assert "weight" not in tokenizer.decode(ids)


@pytest.fixture
def model() -> ValueAdapterForCausalLM:
    found = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    network = tiny_model("llama", seed=2)
    adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base")
    found.add_adapter(adapter, "default", is_trainable=True)
    return found


def test_the_trainer_takes_and_checks_every_form(model: ValueAdapterForCausalLM, tmp_path: Path) -> None:
    """Records at hand, too; the record that is wrong is named before a step is taken."""
    args = ValueTrainingArguments(output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    for good in (PAIRS, load_demonstrations(PAIRS), Dataset.from_list(PAIRS), str(tmp_path / "a.jsonl")):
        trainer = ValueTrainer(model, args, train_dataset=good, eval_dataset={"one": good})
        assert len(trainer.train_dataset) == 12
    trainer.train()
    with pytest.raises(ConfigError, match=r"record 12 .*'completion' must be text; got 42"):
        ValueTrainer(model, args, train_dataset=[*PAIRS, BAD])
    with pytest.raises(ConfigError, match=r"row 0 .*'completion' must be text; got 42"):
        ValueTrainer(model, args, train_dataset=PAIRS, eval_dataset={"one": Dataset.from_list([BAD])})


def test_scoring_checks_what_it_is_given(model: ValueAdapterForCausalLM, tmp_path: Path) -> None:
    """Before anything is run: no text is made of a number, and no later record is reached."""
    wrong = "record 1 .*'completion' must be text; got 42"
    with pytest.raises(ConfigError, match=wrong):
        evaluate(model, byte_tokenizer(), [PAIRS[0], BAD])
    with pytest.raises(ConfigError, match="context, " + wrong):
        evaluate(model, byte_tokenizer(), PAIRS, context=[PAIRS[0], BAD])
    with pytest.raises(ConfigError, match=wrong):
        calibrate(model, [PAIRS[0], BAD])
    for name, given in (("held-out", {}), ("demonstrations", {"demonstrations": [PAIRS[0], BAD]})):
        held_out = [PAIRS[0], BAD] if name == "held-out" else PAIRS
        with pytest.raises(ConfigError, match=f"{name}, {wrong}"):
            evaluate_adapter(tmp_path / "none", [tmp_path / "none"], held_out, options=Options(**given))


@pytest.mark.parametrize(
    "more",
    [
        lambda row: {**row, "prompt": ""},
        lambda row: {**row, "text": row["prompt"] + row["completion"]},
        lambda row: {**row, "text": None, "messages": None},
    ],
)
def test_the_shape_of_records_decides_the_default_prefix(tmp_path: Path, more: Any) -> None:
    """Not a further column, and not whether a prompt is empty: one prefix of eight, which are not trained on."""
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    quick = {"max_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    recipe = Recipe(
        base=str(tmp_path / "base"), data=[more(row) for row in PAIRS], output_dir=tmp_path / "out", arguments=quick
    )
    run(recipe, say=lambda line: None)
    config = verification.verify(tmp_path / "out" / "adapter")
    assert config.base_prefix is not None
    assert str(config.base_prefix).count("C") >= 8
    assert config.training is not None
    assert config.training.num_examples == 4


@pytest.mark.parametrize("wrong", ["data", "train-data", "calibration-data"])
def test_evaluate_reads_all_data_before_it_loads_anything(tmp_path: Path, wrong: str) -> None:
    """Neither adapter nor base is there, and the error is still that of the data."""
    command = ["evaluate", str(tmp_path / "none"), "--base", str(tmp_path / "none")]
    for name in ("data", "train-data", "calibration-data"):
        rows = [*PAIRS, BAD] if name == wrong else PAIRS
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
    with pytest.raises(ConfigError, match=f"{wrong}.jsonl, line 13: 'completion' must be text; got 42"):
        CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.mark.parametrize("command", ["train", "calibrate"])
def test_other_commands_read_data_before_they_load_anything(tmp_path: Path, command: str) -> None:
    """The same error."""
    (tmp_path / "a.JSONL").write_text(json.dumps(BAD))
    options = ["--base", str(tmp_path / "none"), "--data", str(tmp_path / "a.JSONL")]
    words = [
        command,
        *options,
        *(["--output", str(tmp_path / "o")] if command == "train" else [str(tmp_path / "none")]),
    ]
    with pytest.raises(ConfigError, match=r"a.JSONL, line 1: 'completion' must be text; got 42"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_dataset_on_the_hub_is_checked_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its splits are tables; the cause of what cannot be read is said, and not only that it cannot."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    files = {"good": "".join(json.dumps(row) + "\n" for row in CALLS), "cut": json.dumps(PAIRS[0]) + '\n{"prompt": "'}
    files["number"] = json.dumps(BAD) + "\n"
    program = (
        "import sys\nfrom valueadapter.demonstrations.tokenized import load_demonstrations\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(list(load_demonstrations(name)))\n"
        "    except Exception as error: print(type(error).__name__, ' '.join(str(error).split()))\n"
    )
    with LocalHub(tmp_path / "server") as hub:
        api = HfApi(endpoint=hub.endpoint, token="hf_alice")
        for name, text in files.items():
            api.create_repo(f"alice/{name}", repo_type="dataset")
            api.upload_file(
                path_or_fileobj=text.encode(), path_in_repo="a.jsonl", repo_id=f"alice/{name}", repo_type="dataset"
            )
        environment = {**os.environ, **hub.env(token="hf_alice", home=tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", program, *(f"alice/{name}" for name in files)],
            **{"env": environment, "capture_output": True, "text": True, "check": True},
        )
    good, cut, number = done.stdout.strip().splitlines()
    assert good == str(CALLS)
    assert cut.startswith("ConfigError dataset 'alice/cut' cannot be read: ")
    assert "An error occurred while generating" not in cut
    assert number == (
        "ConfigError alice/number, row 0 of 'train' (the first is 0): 'completion' must be text; got 42 (a number). "
        'Write it as text: "42"'
    )
