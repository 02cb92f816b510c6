"""The artifact: byte-stable, replaced as a whole, and every kind of damage refused with a message that says what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny import tiny_model

from valueadapter import (
    ArtifactError,
    ConfigError,
    IncompatibleVersionError,
    NotAValueAdapterError,
    ValueAdapter,
    ValueAdapterForCausalLM,
)
from valueadapter.artifact import verification

GOLDEN = Path(__file__).parents[1] / "data"
WEIGHTS = "value_network/model.safetensors"


@pytest.fixture
def saved(tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path) -> Path:
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(directory: Path, change: Callable[[dict], object]) -> None:
    path = directory / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def resealed(directory: Path) -> Path:
    """Records the present checksums, so that checks behind the checksum are reached."""
    sums = verification.checksums(directory / "value_network")
    edit(directory, lambda data: data["networks"][0].update(sha256=sums))
    return directory


@pytest.mark.parametrize(
    ("version", "base", "factor", "end"),
    [
        (1, "alice/any", 2.0, 0.0),
        (2, "alice/any", 1.3, 0.0),
        (2, "alice/other", 2.5, 1.5),
    ],
)
def test_golden_artifacts_load_for_ever(version: int, base: str, factor: float, end: float) -> None:
    """The artifacts checked in, one of each format version, verify, load, and say what they said.

    The base is the network itself, so that the sum is a multiple of what it says: (w_base + w_network) times.
    """
    adapter = ValueAdapter.from_pretrained(GOLDEN / f"adapter-v{version}")
    expected = json.loads((GOLDEN / "adapter-v1.expected.json").read_text())
    ids = torch.tensor([expected["input_ids"]])
    said = torch.tensor(expected["logits"])
    torch.testing.assert_close(adapter.networks[0](ids).logits[0, -1, :8], said, rtol=1e-4, atol=1e-4)
    own = adapter.copy().networks[0]
    own.name_or_path = own.config.name_or_path = base
    model = ValueAdapterForCausalLM(own, tokenizer=adapter.tokenizer)
    model.add_adapter(adapter, "default")
    total = factor * said
    total[adapter.tokenizer.eos_token_id] += end
    torch.testing.assert_close(model(ids).logits[0, -1, :8], total, rtol=1e-4, atol=1e-4)


def test_saving_what_was_loaded_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """read(write(x)) == x, byte for byte, tokenizer and card included."""
    ValueAdapter.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved)


def test_sharded_weights_load(tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path) -> None:
    """Weights over several files come back as they were."""
    adapter = tiny_adapter()
    adapter.save_pretrained(tmp_path / "a", max_shard_size="4KB")
    assert len(list((tmp_path / "a" / "value_network").glob("*.safetensors"))) > 1
    loaded = ValueAdapter.from_pretrained(tmp_path / "a").networks[0].state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in adapter.networks[0].state_dict().items())


def test_expert_and_reference_pair(tokenizer: object, tmp_path: Path) -> None:
    """Proxy-tuning in the same format: +1 expert, -1 reference."""
    pair = [tiny_model("llama", seed=3), tiny_model("gpt2", seed=4)]
    adapter = ValueAdapter.from_networks(pair, tokenizer, base_model_name_or_path="a/b", coefficients=[1, -1])
    adapter.save_pretrained(tmp_path / "a")
    loaded = ValueAdapter.from_pretrained(tmp_path / "a")
    assert [(spec.path, spec.coefficient) for spec in loaded.config.networks] == [
        ("value_network", 1.0),
        ("value_network_1", -1.0),
    ]
    assert type(loaded.networks[1]).__name__ == "GPT2LMHeadModel"


def truncate(directory: Path) -> None:
    data = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(data[:-100])


def corrupt_header(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[20:30] = b"\xff" * 10
    (directory / WEIGHTS).write_bytes(data)


def flip_bit(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)


def change_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        resealed(directory)

    return damage


IMPOSSIBLE = {
    "base": "a/b",
    "relation": "same",
    "data": "d",
    "num_examples": 3,
    "scale": 1.0,
    "base_bits_per_byte": 1.0,
    "donor_bits_per_byte": None,
    "adapted_bits_per_byte": 1.0,
    "base_exact_match": 7,
}


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


DAMAGE = {
    "no config": (remove("config.json"), ArtifactError, "no config.json"),
    "no weights": (remove(WEIGHTS), ArtifactError, "model.safetensors' is missing"),
    "no tokenizer": (remove("tokenizer.json"), ArtifactError, "tokenizer.json' is missing"),
    "no network config": (remove("value_network/config.json"), ArtifactError, "config.json' is missing"),
    "truncated": (truncate, ArtifactError, "truncated or corrupt"),
    "corrupt header": (corrupt_header, ArtifactError, "truncated or corrupt"),
    "one bit": (flip_bit, ArtifactError, "has changed since it was saved"),
    "dtype": (
        change_tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.float16)})),
        ArtifactError,
        "has dtype F16",
    ),
    "shape": (
        change_tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:50]})),
        ArtifactError,
        r"has shape \(50, 16\), the architecture expects \(97, 16\)",
    ),
    "empty weights": (change_tensors(lambda t: t.clear()), ArtifactError, "is missing"),
    "missing tensor": (change_tensors(lambda t: t.pop("model.norm.weight")), ArtifactError, "norm.weight' is missing"),
    "extra tensor": (
        change_tensors(lambda t: t.update(more=np.zeros(2, np.float32))),
        ArtifactError,
        "'more' does not belong",
    ),
    "unknown key": (lambda d: edit(d, lambda c: c.update(colour=1)), ConfigError, "unknown key 'colour'"),
    "ill-typed key": (lambda d: edit(d, lambda c: c.update(scale="big")), ConfigError, "'scale' must be a number"),
    "newer format": (lambda d: edit(d, lambda c: c.update(format_version=3)), IncompatibleVersionError, "pip install"),
    "path outside": (
        lambda d: edit(d, lambda c: c["networks"][0].update(path="../other")),
        ConfigError,
        "plain relative path",
    ),
    "absolute path": (lambda d: edit(d, lambda c: c["networks"][0].update(path="/etc")), ConfigError, "plain relative"),
    "pickle": (lambda d: (d / "value_network/pytorch_model.bin").write_bytes(b"x"), ArtifactError, "not opened"),
    "code": (lambda d: (d / "modeling.py").write_text(""), ArtifactError, "is code"),
    "link outside": (lambda d: (d / "notes.txt").symlink_to("/etc/hostname"), ArtifactError, "leaves the adapter"),
    "linked folder": (lambda d: (d / "more").symlink_to("/etc"), ArtifactError, "leaves the adapter"),
    "PEFT adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), NotAValueAdapterError, "PEFT adapter"),
    "plain model": (
        lambda d: edit(d, lambda c: c.update(model_type="llama")),
        NotAValueAdapterError,
        "plain model",
    ),
    "code in the tokenizer": (
        lambda d: (d / "tokenizer_config.json").write_text('{"auto_map": {}}'),
        ArtifactError,
        "custom code",
    ),
    "impossible result": (
        lambda d: edit(d, lambda c: c.update(evaluation=[IMPOSSIBLE])),
        ConfigError,
        "between 0 and 1; got 7",
    ),
    "not JSON": (lambda d: (d / "config.json").write_text("{"), ConfigError, "not JSON"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_nothing_is_changed(saved: Path, kind: str) -> None:
    """Every kind of damage is an error that names it; loading repairs nothing."""
    damage, error, message = DAMAGE[kind]
    damage(saved)
    before = contents(saved)
    with pytest.raises(error, match=message):
        ValueAdapter.from_pretrained(saved)
    assert contents(saved) == before


def test_a_changed_tokenizer_is_refused(saved: Path) -> None:
    """The tokenizer must be the one whose fingerprints are recorded."""
    path = saved / "tokenizer.json"
    path.write_text(path.read_text().replace('"!"', '"changed"'))
    with pytest.raises(ArtifactError, match="byte_fingerprint"):
        verification.verify(saved)


def test_a_failed_save_leaves_the_old_adapter(saved: Path, tiny_adapter: Callable[..., ValueAdapter]) -> None:
    """An error in the middle of saving leaves every byte of the old directory, and no debris."""
    before = contents(saved)
    adapter = tiny_adapter(seed=9)
    with pytest.raises(TypeError, match=r"max_shard_size|unsupported|not"):
        adapter.save_pretrained(saved, max_shard_size=object())
    assert contents(saved) == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_killed_save_leaves_the_old_adapter_or_the_new(
    saved: Path, tiny_adapter: Callable[..., ValueAdapter]
) -> None:
    """SIGKILL right before and right after the exchange: never a mixture, and the next save works."""
    old = contents(saved)
    kept = {"README.md": old["README.md"]}
    program = """
        import os, signal, sys
        from pathlib import Path
        from valueadapter.artifact import atomic_directory
        exchange = atomic_directory._exchange
        def killed(a, b):
            if sys.argv[2] == "after":
                exchange(a, b)
            os.kill(os.getpid(), signal.SIGKILL)
        atomic_directory._exchange = killed
        with atomic_directory.staged(Path(sys.argv[1])) as new:
            (new / "config.json").write_text("new")
    """
    for moment, expected in (("before", old), ("after", {"config.json": b"new", **kept})):
        command = [sys.executable, "-c", textwrap.dedent(program), str(saved), moment]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert contents(saved) == expected
    (saved / "config.json").write_bytes(old["config.json"])
    tiny_adapter().save_pretrained(saved)
    assert contents(saved) == old


def test_saving_over_something_else_is_refused(tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path) -> None:
    """A directory that is no adapter is not overwritten."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds something else \(thesis\.tex\)"):
        tiny_adapter().save_pretrained(tmp_path)


def test_what_would_be_lost_stops_the_save(saved: Path, tiny_adapter: Callable[..., ValueAdapter]) -> None:
    """A model of the user's own inside the directory, a link: refused, and nothing changes."""
    (saved / "my_model").mkdir()
    (saved / "my_model" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"my_model' is not part"):
        tiny_adapter().save_pretrained(saved)
    assert (saved / "my_model" / "config.json").exists()
    (saved / "my_model" / "config.json").unlink()
    (saved / "my_model").rmdir()
    (saved / "link.txt").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match=r"link\.txt' is not part"):
        tiny_adapter().save_pretrained(saved)
    (saved / "link.txt").unlink()


def test_saving_through_a_link_replaces_what_it_points_to(
    saved: Path, tiny_adapter: Callable[..., ValueAdapter]
) -> None:
    """The link stays a link."""
    link = saved.parent / "latest"
    link.symlink_to(saved)
    tiny_adapter(seed=9).save_pretrained(link)
    assert link.is_symlink()
    assert torch.equal(
        ValueAdapter.from_pretrained(saved).networks[0].lm_head.weight, tiny_model("llama", seed=9).lm_head.weight
    )


def test_a_hand_written_card_survives_saving(saved: Path, tiny_adapter: Callable[..., ValueAdapter]) -> None:
    """What a person wrote stays; a generated card is renewed."""
    (saved / "README.md").write_text("# My own words")
    (saved / "LICENSE").write_text("mine")
    tiny_adapter(seed=4).save_pretrained(saved)
    assert (saved / "README.md").read_text() == "# My own words"
    assert (saved / "LICENSE").read_text() == "mine"
