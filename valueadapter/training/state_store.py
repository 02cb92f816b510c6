"""A base's last hidden states for demonstrations, computed once and kept on disk.

Only at the positions that predict a response token, in float16, in safetensors shards that say themselves what they
hold and carry their checksum. Knows neither networks nor the loss.

A store is a directory of shards for one base, vocabulary and prefix. Nothing but whole shards is ever in it under a
shard's name, and any number of processes may build at once: a shard that one has claimed is left to it by the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import execution_device
from valueadapter.adapter.model_state import has_hooks, module_settings, surroundings, tensors_of
from valueadapter.demonstrations.tokenized import Collator
from valueadapter.errors import ConfigError
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.hub.own_cache import own_cache
from valueadapter.training.batch_loss import TextInputs, base_states, predicting
from valueadapter.training.claims import claimed
from valueadapter.vocabulary.spec import VocabularySpec

logger = logging.getLogger(__name__)

Say = Callable[[str], object]
Record = Mapping[str, Any]
"""A tokenized demonstration: `input_ids` and `labels`."""

FORMAT = "valueadapter.base_states"
VERSION = 2
SHARD_BYTES = 64 * 2**20
"""What a shard holds at most, but for a single demonstration that is longer."""


def sample_key(record: Record) -> str:
    """What tells a demonstration from others: 32 hex digits over its ids and labels."""
    ids, labels = list(record["input_ids"]), list(record["labels"])
    return hashlib.sha256(json.dumps([ids, labels]).encode()).hexdigest()[:32]


def store_key(base: PreTrainedModel, vocabulary: VocabularySpec, prefix: BasePrefix | None = None) -> str:
    """What hidden states depend on besides the demonstration: 32 hex digits.

    The base counts by what it computes with: its configuration, how its modules are set (which LoRA is active, merged
    or switched off, and how strongly each acts), the bytes of its weights as they are loaded, precision, and the
    libraries whose code runs; not by its name and commit. So a directory without a commit, a model that was trained
    further or merged after loading, and one loaded in another dtype each have a store of their own, and a copy of a Hub
    model shares the original's.

    Args:
        base: the loaded model.
        vocabulary: fingerprints of the tokenizer that made the ids.
        prefix: what the base reads before each demonstration.

    Raises:
        ConfigError: a layer has somebody's own hook, or weights whose bytes are out of reach: there is no telling then
            what the states depend on.
    """
    body = _body(base)
    if hooked := [name for name, module in body.named_modules() if name and has_hooks(module)]:
        raise ConfigError(
            f"'{hooked[0]}' of the base has a hook, and nothing tells whether it changes what the layer gives, so that "
            "hidden states cannot be kept for other runs; remove it, or train without cache_base"
        )
    device = execution_device(base).type
    parts = [
        VERSION,
        [torch.__version__, transformers.__version__],
        type(base).__name__,
        module_settings(base),
        surroundings(device),
        _weights(body),
        vocabulary.byte_fingerprint,
        vocabulary.behaviour_fingerprint,
        [list(prefix.ids), prefix.start] if prefix is not None else [],
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def default_place() -> Path:
    """Where stores are kept, beside the Hub's cache."""
    return own_cache("base_states")


def _body(model: PreTrainedModel) -> torch.nn.Module:
    """What computes hidden states, in which the head has no part; LoRA is inside the plain model."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    body: torch.nn.Module = plain.base_model
    return body


def _weights(body: torch.nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of everything that a body computes with."""
    digest = hashlib.sha256()
    try:
        for name, tensor, _ in tensors_of(body.named_modules()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"the base's weights cannot be told ({error}), so that hidden states cannot be kept for other runs; train "
            "without cache_base"
        ) from error
    return digest.hexdigest()


class _Shard(NamedTuple):
    """A verified file of the store."""

    path: Path
    begins: dict[str, tuple[int, int]]
    """Demonstration -> first row and the one after the last."""


class BaseStates:
    """Hidden states by demonstration, read from disk as they are asked for.

    `states[sample_key(record)]` is (tokens, hidden): one row for each response token, that of the position before it.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        files: list[Any] = [safe_open(shard.path, framework="pt") for shard in shards]
        self._files = [file.get_slice("states") for file in files]
        self._at = {key: (i, *rows) for i, shard in enumerate(shards) for key, rows in shard.begins.items()}

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def nothing(self) -> torch.Tensor:
        """The states of no demonstration, (0, hidden)."""
        none: torch.Tensor = self._files[0][:0]
        return none

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._at:
            raise ConfigError(
                f"the store holds no hidden states of demonstration {key}; build it on the data that is trained on"
            )
        file, begin, end = self._at[key]
        states: torch.Tensor = self._files[file][begin:end]
        return states

    @classmethod
    def build(
        cls,
        base: PreTrainedModel,
        data: Sequence[Record],
        place: Path | None = None,
        *,
        vocabulary: VocabularySpec,
        prefix: BasePrefix | None = None,
        batch_size: int = 8,
        say: Say = logger.info,
    ) -> BaseStates:
        """Opens the store of a base, after computing what is not in it yet.

        Args:
            base: a causal language model in eval mode.
            data: tokenized demonstrations.
            place: directory of all stores; in the Hugging Face home by default.
            vocabulary: fingerprints of the tokenizer that made the ids.
            prefix: what the base reads before each demonstration.
            batch_size: demonstrations per forward pass.
            say: called with a line for what is worth knowing: sizes before writing, damage.

        Raises:
            ConfigError: the base computes NaN or infinity, or there is no room for the shards.
        """
        key = store_key(base, vocabulary, prefix)
        return _Builder(base, (place or default_place()) / key, prefix, batch_size, say).build(data)


class _Builder:
    """Fills one store."""

    def __init__(
        self, base: PreTrainedModel, folder: Path, prefix: BasePrefix | None, batch_size: int, say: Say
    ) -> None:
        self.base, self.folder, self.prefix = base, folder, prefix
        self.batch_size, self.say = batch_size, say
        self.hidden_size = int(base.config.get_text_config().hidden_size)
        self.verified: dict[Path, _Shard] = {}

    def build(self, data: Sequence[Record]) -> BaseStates:
        samples = {sample_key(record): record for record in data}
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("*.safetensors")):
            self._verify(path)
        todo = [group for group in self._groups(samples) if not set(group) <= self._known()]
        if todo:
            self._announce([samples[key] for group in todo for key in group])
        later = [group for group in todo if not self._make(group, samples, wait=False)]
        for group in later:  # claimed by other processes: done by them, or left over by one that was killed
            self._make(group, samples, wait=True)
        return BaseStates([shard for shard in self.verified.values() if samples.keys() & shard.begins.keys()])

    def _known(self) -> set[str]:
        return {key for shard in self.verified.values() for key in shard.begins}

    def _groups(self, samples: Mapping[str, Record]) -> Iterator[list[str]]:
        """Demonstrations by shard, the same in every process that builds for the same data."""
        group: list[str] = []
        rows, most = 0, max(1, SHARD_BYTES // (2 * self.hidden_size))
        for key, record in samples.items():
            size = _size(record)
            if group and rows + size > most:
                yield group
                group, rows = [], 0
            group.append(key)
            rows += size
        if group:
            yield group

    def _announce(self, records: Sequence[Record]) -> None:
        tokens = sum(map(_size, records))
        size, free = 2 * self.hidden_size * tokens, shutil.disk_usage(self.folder).free
        self.say(
            f"hidden states of the base for {len(records):,} demonstrations ({tokens:,} response tokens): "
            f"{size / 1e6:,.1f} MB in '{self.folder}'"
        )
        if size > free:
            raise ConfigError(
                f"the base's hidden states take {size:,} bytes and '{self.folder}' has {free:,} left; make room, name "
                "another place (cache_base_dir), or train without cache_base"
            )

    def _make(self, group: list[str], samples: Mapping[str, Record], *, wait: bool) -> bool:
        """Puts a shard in its place; False where another process is at it."""
        path = self.folder / f"{hashlib.sha256(''.join(group).encode()).hexdigest()[:32]}.safetensors"
        with claimed(path.with_suffix(".claim"), wait=wait) as mine:
            if not mine:
                return False
            if path.exists() and self._verify(path):  # another process was faster
                return True
            states, counts = self._compute([samples[key] for key in group])
            _write(path, states, dict(zip(group, counts, strict=True)), store=self.folder.name)
            self._verify(path)
        return True

    @torch.no_grad()
    def _compute(self, records: Sequence[Record]) -> tuple[torch.Tensor, list[int]]:
        """Hidden states of all records, (tokens, hidden), and how many rows each has."""
        order = sorted(range(len(records)), key=lambda i: len(records[i]["input_ids"]))  # little padding
        found: dict[int, torch.Tensor] = {}
        collate = Collator(0)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = {k: v.to(execution_device(self.base)) for k, v in collate([records[i] for i in rows]).items()}
            mask = predicting(batch.pop("labels"))
            states = base_states(self.base, TextInputs(**batch), mask, self.prefix)
            parts = torch.split(states.cpu(), mask.sum(-1).tolist())
            found.update(zip(rows, parts, strict=True))
        states = torch.cat([found[i] for i in range(len(records))])
        return self._narrow(states), [len(found[i]) for i in range(len(records))]

    def _narrow(self, states: torch.Tensor) -> torch.Tensor:
        """As float16; as float32 where that is too narrow."""
        if not torch.isfinite(states).all():
            raise ConfigError(
                f"the base computes NaN or infinity in {self.base.dtype}; load it in a wider dtype (dtype='float32')"
            )
        largest = float(states.abs().max()) if states.numel() else 0.0
        if largest <= torch.finfo(torch.float16).max:
            return states.half()
        self.say(f"hidden states reach {largest:,.0f}, beyond float16: this shard is kept in float32, twice as large")
        return states.float()

    def _verify(self, path: Path) -> bool:
        """Takes a shard into the store if it is whole."""
        try:
            self.verified[path] = _read(path, store=self.folder.name)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            self.verified.pop(path, None)
            message = f"'{path}' is damaged ({error}) and is computed again where its demonstrations are needed"
            logger.warning(message)
            self.say(message)
            return False
        return True


def _size(record: Record) -> int:
    return sum(label >= 0 for label in record["labels"][1:])


def _write(path: Path, states: torch.Tensor, counts: Mapping[str, int], *, store: str) -> None:
    """Writes a shard beside its place, then moves it there in one step."""
    about = {"version": VERSION, "store": store, "counts": counts, "sha256": _checksum(states, store, counts)}
    for left_over in path.parent.glob(f".{path.stem}-*"):  # by a process that was killed; this one holds the claim
        left_over.unlink(missing_ok=True)
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}")
    try:
        save_file({"states": states}, unfinished, metadata={FORMAT: json.dumps(about)})
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path, *, store: str) -> _Shard:
    """Reads what a shard holds; raises ValueError and others where it is not as it was written."""
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})[FORMAT])
        if (about["version"], about["store"]) != (VERSION, store):
            raise ValueError(f"it belongs to store {about['store']} of version {about['version']}")
        states, counts = file.get_tensor("states"), about["counts"]
    if _checksum(states, store, counts) != about["sha256"]:
        raise ValueError("its checksum is another")
    begins, row = {}, 0
    for key, count in counts.items():
        begins[key] = (row, row + count)
        row += count
    if row != len(states):
        raise ValueError(f"it has {len(states)} rows, expected {row}")
    return _Shard(path, begins)


def _checksum(states: torch.Tensor, store: str, counts: Mapping[str, int]) -> str:
    digest = hashlib.sha256(json.dumps([store, dict(counts), str(states.dtype), list(states.shape)]).encode())
    digest.update(_bytes(states))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
