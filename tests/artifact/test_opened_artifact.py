"""What is verified is what is opened: all of one adapter, also while another is saved to the same directory."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import save_file
from tiny import byte_tokenizer, tiny_model
from transformers import AutoModelForCausalLM

from valueadapter import ArtifactError, ConfigError, ValueAdapter, hub
from valueadapter.artifact import verification
from valueadapter.artifact.weight_file import WeightFile

WEIGHTS = "value_network/model.safetensors"


def pair_of(number: int) -> ValueAdapter:
    """An adapter of two networks that tells its number in every part."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"{{{{ {number} }}}}"
    networks = [tiny_model("llama", seed=number), tiny_model("llama", seed=100 + number)]
    return ValueAdapter.from_networks(
        networks, tokenizer, base_model_name_or_path=f"a/{number}", coefficients=[number, -number], scale=number
    )


def numbers_in(adapter: ValueAdapter, known: dict[int, ValueAdapter]) -> set[object]:
    """What every part of a loaded adapter says of whose it is."""
    said: set[object] = {int(adapter.config.scale), int(adapter.config.networks[0].coefficient)}
    said.add(int(adapter.config.base_model_name_or_path.removeprefix("a/")))
    said.add(int(str(adapter.tokenizer.chat_template).strip("{} ")))
    for index, network in enumerate(adapter.networks):
        state = network.state_dict()
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            same = [n for n, one in known.items() if torch.equal(one.networks[index].state_dict()[name], state[name])]
            said.add(same[0] if same else "nobody's")
    return said


@contextmanager
def saving_all_the_time(adapters: dict[int, ValueAdapter], place: Path) -> Iterator[None]:
    ends = threading.Event()

    def save() -> None:
        while not ends.is_set():
            for adapter in adapters.values():
                adapter.save_pretrained(place)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_loads_while_saved_are_never_mixtures(tmp_path: Path) -> None:
    """Every load gives one adapter, whole, in every part: configuration, networks, tokenizer."""
    adapters = {number: pair_of(number) for number in (1, 2)}
    adapters[1].save_pretrained(tmp_path / "adapter")
    found: Counter[str] = Counter()
    until = time.monotonic() + 25
    with saving_all_the_time(adapters, tmp_path / "adapter"):
        while found.total() < 200 and time.monotonic() < until:
            try:
                loaded = ValueAdapter.from_pretrained(tmp_path / "adapter")
            except ArtifactError:
                found["error"] += 1
                continue
            found["whole" if len(numbers_in(loaded, adapters)) == 1 else "mixture"] += 1
    assert found["whole"] > 20
    assert found["mixture"] == 0


def test_what_was_opened_is_loaded_whatever_is_there_now(tmp_path: Path) -> None:
    """An adapter that is saved there between verification and tensors changes nothing, nor does its removal."""
    adapters = {number: pair_of(number) for number in (1, 2)}
    adapters[1].save_pretrained(tmp_path / "adapter")
    with hub.open_adapter(tmp_path / "adapter") as opened:
        adapters[2].save_pretrained(tmp_path / "adapter")
        assert numbers_in(ValueAdapter.from_verified(opened, hub.Download()), adapters) == {1}
    assert numbers_in(ValueAdapter.from_pretrained(tmp_path / "adapter"), adapters) == {2}


def test_a_file_that_is_written_anew_in_place_is_noticed(
    tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path
) -> None:
    """What is hashed is what is loaded: weights that someone overwrites after the file was opened are refused."""
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    with hub.open_adapter(tmp_path / "adapter") as opened:
        with (tmp_path / "adapter" / WEIGHTS).open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\0\0")
        with pytest.raises(ArtifactError, match="has changed since it was saved"):
            ValueAdapter.from_verified(opened, hub.Download())


def test_an_adapter_that_is_put_in_place_file_by_file_is_not_read_halfway(tmp_path: Path) -> None:
    """Where config.json is another one at the end than at the beginning, everything is read again."""
    adapters = {number: pair_of(number) for number in (1, 2)}
    for number, adapter in adapters.items():
        adapter.save_pretrained(tmp_path / str(number))
    place, other = tmp_path / "1", tmp_path / "2"
    seen = verification._tokenizer_files

    def meanwhile(directory: Path) -> dict[str, bytes]:
        verification._tokenizer_files = seen
        for name in ("tokenizer_config.json", "chat_template.jinja", "value_network", "value_network_1", "config.json"):
            (place / name).rename(tmp_path / f"old-{name}")
            (other / name).rename(place / name)
        return seen(directory)

    verification._tokenizer_files = meanwhile
    try:
        assert numbers_in(ValueAdapter.from_pretrained(place), adapters) == {2}
    finally:
        verification._tokenizer_files = seen


def test_a_network_comes_as_transformers_loads_it(tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path) -> None:
    """Same class, weights, dtype and configuration as by path; in another dtype where one is asked for."""
    for kind in ("llama", "gpt2", "gemma3"):
        tiny_adapter(kind).save_pretrained(tmp_path / kind, max_shard_size="8KB")
        mine = ValueAdapter.from_pretrained(tmp_path / kind).networks[0]
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / kind / "value_network")
        assert type(mine) is type(theirs)
        assert mine.config.to_dict() == theirs.config.to_dict()
        assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in theirs.state_dict().items())
        half = ValueAdapter.from_pretrained(tmp_path / kind, dtype=torch.bfloat16).networks[0]
        assert half.dtype == torch.bfloat16
        assert torch.equal(half.lm_head.weight, mine.lm_head.weight.bfloat16())


def headers() -> dict[str, object]:
    one = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    return {
        "good": {"a": one},
        "empty": {},
        "with notes": {"a": one, "__metadata__": {"format": "pt"}},
        "two": {"a": one, "b": {"dtype": "U8", "shape": [4], "data_offsets": [16, 20]}},
        "scalar": {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
        "no numbers in it": {"a": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}},
        "hole": {"a": {**one, "data_offsets": [4, 20]}},
        "overlap": {"a": one, "b": {**one, "data_offsets": [8, 24]}},
        "negative": {"a": {**one, "shape": [-2, -2]}},
        "fraction": {"a": {**one, "shape": [2.0, 2]}},
        "boolean": {"a": {**one, "shape": [True, 4]}},
        "huge": {"a": {**one, "shape": [2**62, 4]}},
        "other size": {"a": {**one, "shape": [2, 3]}},
        "other dtype": {"a": {**one, "dtype": "F33"}},
        "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
        "notes are numbers": {"a": one, "__metadata__": {"format": 1}},
        "list": [],
        "text": "x",
    }


@pytest.mark.parametrize("kind", headers())
def test_a_weight_file_is_read_as_safetensors_reads_it(kind: str, tmp_path: Path) -> None:
    """What safetensors refuses is refused, and what it accepts has the same names, dtypes and shapes."""
    header = headers()[kind]
    text = json.dumps(header).encode()
    entries = header.values() if isinstance(header, dict) else ()
    ends = [entry["data_offsets"][1] for entry in entries if isinstance(entry, dict) and "data_offsets" in entry]
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(max(ends, default=0)))
    try:
        with safetensors.safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            expected = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except safetensors.SafetensorError:
        with pytest.raises(ArtifactError, match="truncated or corrupt"):
            WeightFile(path)
    else:
        assert verification.tensor_table(path) == expected


def test_weights_are_placed_where_they_belong(tmp_path: Path) -> None:
    """In the order of the file, each into its own buffer, over more than one chunk."""
    tensors = {"b": np.arange(3_000_000, dtype=np.float32), "a": np.arange(7, dtype=np.int64)}
    save_file(tensors, tmp_path / "a.safetensors")
    buffers: dict[str, bytearray] = {}
    with WeightFile(tmp_path / "a.safetensors") as file:
        file.read(
            lambda one: memoryview(buffers.setdefault(one.name, bytearray(one.end - one.begin))),
            verification.sha256(tmp_path / "a.safetensors"),
        )
    assert {name: bytes(buffer) for name, buffer in buffers.items()} == {n: t.tobytes() for n, t in tensors.items()}


@pytest.mark.parametrize(
    "name",
    ["# a heading\n", "a/b\0c", "one\ntwo", "\u202egnp.exe", "a\x1b[31mb", "\ud800", "", " ", "a\u2028b", "a\x85b"],
)
def test_the_base_is_named_on_one_line(tiny_adapter: Callable[..., ValueAdapter], name: str, tmp_path: Path) -> None:
    """Neither a name that breaks or turns a line nor a revision that is none passes, from Python or from a file."""
    adapter = tiny_adapter()
    with pytest.raises(ConfigError, match="base_model_name_or_path"):
        adapter.with_config(base_model_name_or_path=name)
    with pytest.raises(ConfigError, match="base_model_revision"):
        adapter.with_config(base_model_revision=name or "..")
    adapter.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "config.json").read_text())
    (tmp_path / "adapter" / "config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
    with pytest.raises(ConfigError, match="base_model_name_or_path"):
        verification.verify(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["../other", "/etc", "a/b/c", "user/..", "https://h/x", "a b", "x\n"])
def test_a_network_on_the_hub_is_named_by_a_hub_id(tiny_adapter: Callable[..., ValueAdapter], name: str) -> None:
    """A path of this machine is none."""
    spec = tiny_adapter().config.networks[0]
    with pytest.raises(ConfigError, match="must be a Hub ID"):
        dataclasses.replace(spec, path=None, sha256={}, repo=name, revision="a" * 40)
