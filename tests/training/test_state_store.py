"""Hidden states on disk: what the base computes, under a key that tells apart what differs, whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from base_states_run import DATA, VOCABULARY, record
from safetensors import safe_open
from tiny import tiny_model
from transformers import PreTrainedModel

from valueadapter import ConfigError
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.training import state_store
from valueadapter.training.claims import claimed
from valueadapter.training.state_store import BaseStates, sample_key, store_key
from valueadapter.vocabulary.spec import VocabularySpec

SCRIPT = Path(__file__).parents[1] / "base_states_run.py"
Build = Callable[..., BaseStates]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def build(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setattr(state_store, "SHARD_BYTES", 2 * 16 * 20)  # 20 tokens: several shards
    base = tiny_model("llama", seed=1)

    def call(data: Any = DATA, base: PreTrainedModel = base, **changes: Any) -> BaseStates:
        return BaseStates.build(base, data, tmp_path, **{"vocabulary": VOCABULARY, "say": said.append, **changes})

    return call


def shards(place: Path) -> list[Path]:
    return sorted(place.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("prefix", [(), (50, 51, 52, 53, 54, 55)], ids=["plain", "prefix"])
def test_states_are_the_base_s_own(build: Build, kind: str, prefix: tuple[int, ...]) -> None:
    """A row for each response token: what the base computes, alone and by hand, at the position before it."""
    base = tiny_model(kind, seed=1)
    states = build(base=base, prefix=BasePrefix(base, prefix, None) if prefix else None)
    for one in DATA:
        hidden = base.model(torch.tensor([[*prefix, *one["input_ids"]]])).last_hidden_state[0, len(prefix) :]
        positions = [i for i, label in enumerate(one["labels"][1:]) if label != -100]
        found = states[sample_key(one)]
        assert found.dtype == torch.float16
        torch.testing.assert_close(found.float(), hidden[positions].detach(), rtol=1e-3, atol=1e-4)


def test_the_size_is_said_before_anything_is_written(build: Build, tmp_path: Path, said: list[str]) -> None:
    """Demonstrations, tokens and megabytes; nothing where there is nothing to do."""
    found: list[int] = []

    def say(line: str) -> None:
        said.append(line)
        found.append(len(shards(tmp_path)))

    build(say=say)
    tokens = sum(label != -100 for one in DATA for label in one["labels"])
    assert f"24 demonstrations ({tokens} response tokens): {32 * tokens / 1e6:.1f} MB" in said[0]
    assert found == [0]
    build()
    assert len(said) == 1


def test_what_is_there_is_not_computed_again(build: Build, tmp_path: Path) -> None:
    """Neither the same demonstrations nor fewer; of more only the new ones."""
    base = tiny_model("llama", seed=1)
    build(base=base)
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    rows: list[int] = []
    base.model.register_forward_hook(lambda _, args, kwargs, out: rows.append(len(out[0])), with_kwargs=True)
    assert len(build(base=base)) == 24
    assert build(DATA[3:9], base=base)[sample_key(DATA[5])].shape == (3, 16)
    assert not rows
    build([*DATA, record(24), record(25)], base=base)
    assert 2 <= sum(rows) < 12
    assert before.items() <= {path: path.stat().st_mtime_ns for path in shards(tmp_path)}.items()


def test_the_key_tells_apart_what_differs() -> None:
    """Base weights, base settings, dtype, tokenizer and prefix each have a store of their own; a copy has not."""
    base = tiny_model("llama", seed=1)
    theirs = VocabularySpec(97, VOCABULARY.byte_fingerprint, "0" * 64)
    trained = tiny_model("llama", seed=1)
    trained.model.layers[1].mlp.up_proj.weight.data[3, 3] += 1e-3
    settings = tiny_model("llama", seed=1)
    settings.config.rms_norm_eps *= 2
    keys = [store_key(m, VOCABULARY) for m in (base, trained, settings, tiny_model("llama", seed=1).bfloat16())]
    prefixes = [BasePrefix(base, ids, None) for ids in ((5,), (5, 6))]
    keys += [store_key(base, theirs), *(store_key(base, VOCABULARY, prefix) for prefix in prefixes)]
    assert len(set(keys)) == 7
    copy = tiny_model("llama", seed=1)
    copy.name_or_path = "elsewhere"
    assert store_key(copy, VOCABULARY) == keys[0]


def test_demonstrations_are_told_apart_by_ids_and_labels() -> None:
    """The same text with another response is another demonstration."""
    one = record(1)
    other = {**one, "labels": [-100, *one["labels"][:-1]]}
    ids = {**one, "input_ids": [*one["input_ids"][:-1], 3]}
    assert len({sample_key(r) for r in (one, other, ids)}) == 3


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "empty", "another store's"])
def test_a_damaged_shard_is_computed_again_and_said(
    build: Build, tmp_path: Path, said: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """Never read: its demonstrations get the states that they had."""
    states = build()
    before = {sample_key(r): states[sample_key(r)].clone() for r in DATA}
    victim = shards(tmp_path)[1]
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    changed = {"flipped bit": bytes(content), "cut": bytes(content[:-40]), "empty": b""}
    if damage == "another store's":
        build(prefix=BasePrefix(tiny_model("llama", seed=1), (7,), None))
        foreign = next(p for p in shards(tmp_path) if p.parent != victim.parent and p.name == victim.name)
        changed[damage] = foreign.read_bytes()
    victim.write_bytes(changed[damage])
    again = build()
    assert all(torch.equal(again[key], states) for key, states in before.items())
    assert any("damaged" in line and victim.name in line for line in said)
    assert any("damaged" in r.message for r in caplog.records)
    said.clear()
    build()
    assert not said


def test_values_beyond_float16_are_kept_in_float32(build: Build, said: list[str]) -> None:
    """Chosen by shard and said; the states are right."""
    base = tiny_model("llama", seed=1)
    base.model.norm.weight.data.fill_(1e5)
    states = build(base=base)[sample_key(DATA[0])]
    assert states.dtype == torch.float32
    assert states.abs().max() > 65504
    assert any("beyond float16" in line for line in said)


def test_nan_is_refused(build: Build, tmp_path: Path) -> None:
    """It would reach every token's loss."""
    base = tiny_model("llama", seed=1)
    base.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"NaN or infinity in torch\.float32"):
        build(base=base)
    assert not shards(tmp_path)


def test_no_room_is_said_before_computing(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it takes, what there is, and what to do."""
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"has 100 left; make room"):
        build()


def test_the_name_on_disk_is_what_it_was(build: Build, tmp_path: Path) -> None:
    """Where a module lies is no part of it: stores of hundreds of MB outlive a module's name."""
    build()
    for shard in shards(tmp_path):
        with safe_open(shard, "np") as file:
            assert "valueadapter.base_states" in file.metadata()


def test_an_unknown_demonstration_is_an_error(build: Build) -> None:
    """States of another demonstration are never given."""
    with pytest.raises(ConfigError, match="holds no hidden states of demonstration"):
        build()[sample_key(record(99))]


# -- several processes -----------------------------------------------------------------------------------------------
def start(place: Path, log: Path, pause: float) -> subprocess.Popen[bytes]:
    """A process that builds the store of DATA, writes a line per forward pass to `log`, and sleeps after each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, SCRIPT, place, log, str(pause)], env=environment)


def passes(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_where_it_was(build: Build, tmp_path: Path) -> None:
    """Whole shards stay, what was being written counts for nothing, and no claim outlives its process."""
    log = tmp_path / "log"
    process = start(tmp_path, log, pause=0.5)
    while passes(log) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = shards(tmp_path)
    before = passes(log)
    assert kept
    store = kept[0].parent
    (store / f".{kept[0].stem}-99999").write_bytes(b"half")  # as a kill in the middle of writing leaves it
    kept[0].unlink()
    assert start(tmp_path, log, pause=0).wait() == 0
    whole = build()
    assert len(whole) == 24
    assert passes(log) < before + len(shards(tmp_path))
    assert [p.name for p in store.iterdir() if p.suffix != ".safetensors" and p.suffix != ".claim"] == []


@pytest.mark.slow
def test_two_processes_share_the_work(build: Build, tmp_path: Path) -> None:
    """Each shard is computed by one of them, and both end with all."""
    logs = [tmp_path / "one", tmp_path / "two"]
    processes = [start(tmp_path, log, pause=0.6) for log in logs]
    assert [process.wait() for process in processes] == [0, 0]
    made = len(shards(tmp_path))
    assert sum(map(passes, logs)) == made
    assert min(map(passes, logs)) >= 1
    base = tiny_model("llama", seed=1)
    base.model.register_forward_pre_hook(lambda *_: pytest.fail("computed again"))
    assert len(build(base=base)) == 24


def test_a_claim_is_one_process_s_alone(tmp_path: Path) -> None:
    """Held elsewhere it is not given; after the block it is; an error leaves the work to the next."""
    path = tmp_path / "claim"
    with claimed(path, wait=False) as mine, claimed(path, wait=False) as theirs:
        assert (mine, theirs) == (True, False)
    with pytest.raises(ValueError, match="broken"), claimed(path, wait=False):
        raise ValueError("broken")
    with claimed(path, wait=True) as again:
        assert again
    assert not path.exists()
