"""From an opened, checked network to a model: its tensors come from the opened files, and nothing else is read.

The model is made without memory first, so that what its configuration asks for is held against what the files hold.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from valueadapter import hub
from valueadapter.adapter.causal_lm import logits_width
from valueadapter.adapter.lora import quiet_peft
from valueadapter.adapter.shared_tensors import share, twin
from valueadapter.adapter.tokenizer_loading import vocabulary_of
from valueadapter.artifact import file_names
from valueadapter.artifact.config import NetworkSpec
from valueadapter.artifact.network_files import OpenedNetwork
from valueadapter.artifact.network_settings import check_implementations, check_settings
from valueadapter.artifact.weight_file import Stored
from valueadapter.errors import ArtifactError, ConfigError, IncompatibleBaseError

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
KnownBodies = dict[tuple[str, str], PreTrainedModel]
"""Repository and commit -> the model there."""
_SPARE_BYTES = 128 << 20
"""What tables that are computed, not stored (positions, masks), may take beside the weights."""


@torch.inference_mode(mode=False)  # what is loaded within it would never take gradients
def load_network(
    network: OpenedNetwork,
    *,
    dtype: torch.dtype | str = "auto",
    token: str | bool | None = None,
    known: KnownBodies | None = None,
    **download: Any,
) -> PreTrainedModel:
    """Loads a network of an opened artifact; its weights are read once, and then have the recorded checksum.

    Args:
        network: a transformers checkpoint, or a PEFT one (its base is loaded from the Hub).
        dtype: dtype of the weights; `auto` as they are stored.
        token: Hub token, for the base of a PEFT network.
        known: what was loaded from the Hub before for the same adapter, for the same.
        download: `cache_dir`, `local_files_only`, for the same.

    Raises:
        ArtifactError: a tensor is missing, superfluous or of another shape than the architecture's; a configuration of
            which nothing can be made; a weight file that has changed since it was saved.
    """
    if network.is_lora:
        return _load_peft(network, dtype=dtype, token=token, known=known, **download)
    shell, tensors = _without_memory(network), _tensors(network)
    with _makes(network, "transformers can make no model"):
        model, info = type(shell).from_pretrained(
            None,
            config=shell.config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            generation_config=GenerationConfig(),  # a network has none of its own
            ignore_mismatched_sizes=True,  # reported below with our own words
        )
    _check_loaded(info, network.directory)
    model.name_or_path = model.config.name_or_path = str(network.directory)
    found: PreTrainedModel = model.eval()
    return found


@torch.inference_mode(mode=False)
def load_hub_network(
    repo: str,
    revision: str,
    *,
    dtype: torch.dtype | str = "auto",
    token: str | bool | None = None,
    known: KnownBodies | None = None,
    **download: Any,
) -> PreTrainedModel:
    """Loads a network that an adapter names by Hub ID, at its pinned commit.

    Args:
        repo: Hub ID of a causal language model.
        revision: commit hash, 40 hex digits.
        dtype: dtype of the weights; `auto` as they are stored.
        token: Hub token.
        known: what was loaded before for the same adapter: it is not loaded again, and its tensors are held once.
        download: `cache_dir`, `local_files_only`, `force_download`, as transformers takes them.

    Raises:
        ArtifactError: a tensor is missing, superfluous or of another shape; its configuration asks for kernels.
        OSError, huggingface_hub.errors: as transformers raises them.
    """
    if known is not None and (repo, revision) in known:
        return twin(known[repo, revision])
    settings, _ = PreTrainedConfig.get_config_dict(repo, revision=revision, token=token, **download)
    check_implementations(settings, f"{repo} at {revision}")
    model, info = AutoModelForCausalLM.from_pretrained(
        repo,
        revision=revision,
        dtype=dtype,
        token=token,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
        **download,
    )
    _check_loaded(info, repo)
    loaded: PreTrainedModel = model.eval()
    if known is None:
        return loaded
    known[repo, revision] = loaded.requires_grad_(False)  # PEFT, and whoever trains, gets weights of their own
    return twin(loaded)


def check_savable(network: PreTrainedModel) -> None:
    """Refuses a network that could be saved and not be loaded, before it is trained.

    Raises:
        ConfigError: its configuration names code, kernels, or sizes that its tensors do not have.
    """
    if isinstance(getattr(network, "peft_config", None), dict):
        return  # its base lies on the Hub
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    config = json.loads(network.config.to_json_string())
    for key in ("auto_map", "quantization_config"):  # left out where the network is saved, or refused there
        config.pop(key, None)
    try:
        check_settings(config, shapes, place=f"the configuration of {type(network).__name__}")
    except ArtifactError as error:
        raise ConfigError(f"this network could not be loaded again: {error}") from None


def _tensors(network: OpenedNetwork) -> dict[str, torch.Tensor]:
    """The tensors of all weight files, read once; raises if they are not those that were saved."""
    found: dict[str, torch.Tensor] = {}

    def place(one: Stored) -> memoryview:
        found[one.name] = torch.empty(one.shape, dtype=_dtype(one, network))
        flat = found[one.name].reshape(-1).view(torch.uint8) if one.elements else torch.empty(0, dtype=torch.uint8)
        return memoryview(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer

    for name, file in network.weights.items():
        file.read(place, network.checksums[name])
    return found


def _dtype(one: Stored, network: OpenedNetwork) -> torch.dtype:
    if one.dtype not in _DTYPES:
        raise ArtifactError(f"tensor '{one.name}' in '{network.directory}' has dtype {one.dtype}, which torch lacks")
    return _DTYPES[one.dtype]


@contextmanager
def _makes(network: OpenedNetwork, failure: str) -> Iterator[None]:
    """Whatever others make of impossible settings becomes an error that names them; too little memory does not."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, ArtifactError):
        raise
    except Exception as error:
        path = network.directory / (file_names.PEFT_CONFIG if network.is_lora else file_names.CONFIG)
        raise ArtifactError(
            f"{failure} of '{path}' ({type(error).__name__}: {error}). Download or save the adapter again"
        ) from error


def _without_memory(network: OpenedNetwork) -> PreTrainedModel:
    """The model that a network's configuration makes, without weights; raises if the files do not hold them."""
    with tempfile.TemporaryDirectory() as folder, _makes(network, "transformers can make no causal language model"):
        Path(folder, file_names.CONFIG).write_bytes(network.files[file_names.CONFIG])
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _check_shell(model, network)
    return model


def _check_shell(model: PreTrainedModel, network: OpenedNetwork) -> None:
    """Before anything is allocated: what is to be is what the files hold."""
    stored, wanted = network.shapes, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = [(name, stored[name], shape) for name, shape in wanted.items() if stored.get(name, shape) != shape]
    _check_loaded({"missing_keys": (), "unexpected_keys": (), "mismatched_keys": differing}, network.directory)
    kept = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    held = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    needed = sum(tensor.numel() for key, tensor in kept.items() if key in held)
    computed = sum(tensor.numel() * tensor.element_size() for key, tensor in kept.items() if key not in held)
    in_files = sum(math.prod(shape) for shape in stored.values())
    if needed > in_files:
        tied = {name for name in wanted if name not in stored}
        raise ArtifactError(
            f"tensor '{min(tied, default='')}' is missing in '{network.directory}' ({len(tied)} such): the "
            f"architecture has {needed:,} weights, the files hold {in_files:,}; download the adapter again"
        )
    if computed > _SPARE_BYTES + 8 * in_files:
        raise ArtifactError(
            f"the configuration in '{network.directory}' asks for tables of {computed:,} bytes beside {in_files:,} "
            "weights; download the adapter again"
        )


def _load_peft(
    network: OpenedNetwork,
    *,
    dtype: torch.dtype | str,
    token: str | bool | None,
    known: KnownBodies | None,
    **download: Any,
) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict  # slow to import, and few adapters need it

    config, directory = network.settings, network.directory
    repo, revision = str(config.get("base_model_name_or_path")), config["revision"]
    body = load_hub_network(repo, revision, dtype=dtype, token=token, known=known, **download)
    base = body if known is None else copy.deepcopy(body)  # PEFT may write into it (biases, PiSSA)
    with tempfile.TemporaryDirectory() as folder:  # PEFT reads paths; what it finds there is what was checked
        for name, data in network.files.items():
            Path(folder, name).write_bytes(data)
        for name, file in network.weights.items():
            file.copy(Path(folder, name), network.checksums[name])
        with _makes(network, "PEFT can make no LoRA"), quiet_peft():
            warnings.simplefilter("ignore", UserWarning)  # of missing tensors, which are an error below
            model: PreTrainedModel = PeftModel.from_pretrained(base, folder).eval()
    share(model, [] if known is None else [body])
    expected = {
        name: tuple(t.shape) for name, t in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    found = network.shapes
    _check_loaded(
        {
            "missing_keys": expected.keys() - found.keys(),
            "unexpected_keys": found.keys() - expected.keys(),
            "mismatched_keys": [(n, found[n], expected[n]) for n in found.keys() & expected if found[n] != expected[n]],
        },
        directory,
    )
    return model


def _check_loaded(info: Mapping[str, Any], place: Path | str) -> None:
    for kind, what in (("missing_keys", "is missing"), ("unexpected_keys", "does not belong to the architecture")):
        if names := sorted(info[kind]):
            raise ArtifactError(
                f"tensor '{names[0]}' {what} in '{place}' ({len(names)} such); download the adapter again"
            )
    if shapes := sorted(info["mismatched_keys"]):
        name, got, expected = shapes[0]
        raise ArtifactError(
            f"tensor '{name}' in '{place}' has shape {tuple(got)}, the architecture expects {tuple(expected)}; "
            "download the adapter again"
        )


def load_named_network(
    name: str, coefficient: float, tokenizer: PreTrainedTokenizerBase, token: str | bool | None
) -> tuple[NetworkSpec, PreTrainedModel]:
    """A network that is named in place of a loaded one, `user/name` or `user/name@commit`, and its entry.

    Raises:
        ConfigError: it has no commit on the Hub.
        IncompatibleBaseError: its vocabulary is not that of the tokenizer.
    """
    repo, _, wanted = name.partition("@")
    commit = hub.resolve_commit(repo, wanted or None, token=token)
    if commit is None:
        raise ConfigError(f"network '{name}' has no commit on the Hub to pin; push it first, or pass the loaded model")
    model = load_hub_network(repo, commit, token=token)
    theirs = vocabulary_of(AutoTokenizer.from_pretrained(repo, revision=commit, token=token))
    width = logits_width(model)
    if differences := theirs.differences(width, vocabulary_of(tokenizer), width):
        raise IncompatibleBaseError(f"network '{name}' has another vocabulary: {'; '.join(differences)}")
    return NetworkSpec(coefficient, repo=repo, revision=commit), model
