"""A loaded value adapter: its configuration, networks and tokenizer, and their way to and from a directory or the Hub.

Knows nothing of base models; `valueadapter.model.modeling` attaches an adapter to one.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter import hub
from valueadapter.adapter.causal_lm import logits_width
from valueadapter.adapter.lora import described
from valueadapter.adapter.network_loading import (
    KnownBodies,
    check_savable,
    load_hub_network,
    load_named_network,
    load_network,
)
from valueadapter.adapter.network_saving import save_network
from valueadapter.adapter.provenance import Provenance
from valueadapter.adapter.shared_tensors import copied
from valueadapter.adapter.tokenizer_loading import (
    LoadedTokenizer,
    check_tokenizer,
    forget_where_it_was_loaded_from,
    load_tokenizer,
    side_of,
    vocabulary_of,
)
from valueadapter.artifact import card, file_names, verification
from valueadapter.artifact.atomic_directory import staged
from valueadapter.artifact.card_results import CardResults
from valueadapter.artifact.config import Connection, Message, NetworkSpec, ValueAdapterConfig, Weights
from valueadapter.artifact.config.number import finite
from valueadapter.artifact.config.prefix import as_prefix
from valueadapter.artifact.cost import cost_in
from valueadapter.errors import AlignmentError, ArtifactError, ConfigError, IncompatibleBaseError
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.bridge import VocabularyBridge, connect, why_unreadable
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class ValueAdapter:
    """What is published: networks, what each counts for in the sum, and the tokenizer they speak.

    `from_pretrained` loads one from the Hub or a directory, `from_networks` makes one of models; `save_pretrained` and
    `push_to_hub` keep it. `ValueAdapterForCausalLM.add_adapter` attaches it to a base.

    Attributes:
        config: everything but weights and tokenizer.
        networks: one loaded model per entry of `config.networks`.
        tokenizer: the training base's tokenizer, which the networks read.
        alignments: vocabulary alignments that the adapter brings, by the first 16 hex digits of the byte fingerprint
            of the base's vocabulary.
        card_results: what its card shows of an evaluation beside what the configuration says.
    """

    def __init__(
        self,
        config: ValueAdapterConfig,
        networks: Sequence[PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        alignments: Mapping[str, VocabularyAlignment] | None = None,
        known: Provenance | None = None,
    ) -> None:
        """Puts together what is loaded already; `known` is what its records speak of, where it was made of another."""
        if len(networks) != len(config.networks):
            raise ConfigError(f"config lists {len(config.networks)} networks; got {len(networks)} models")
        if (width := max(logits_width(n) for n in networks)) != config.vocabulary.logits_width:
            raise ConfigError(
                f"config says logits of {config.vocabulary.logits_width} columns; the networks have {width}"
            )
        self.config = config
        self.networks = tuple(networks)
        self.tokenizer = tokenizer
        self.alignments = dict(alignments or {})
        self.card_results = CardResults()
        self.provenance = Provenance(config, networks, known)

    @classmethod
    def from_networks(
        cls,
        networks: Sequence[PreTrainedModel | str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        base_model_name_or_path: str,
        coefficients: Sequence[float] | None = None,
        base_weight: float = 1.0,
        end_weight: float = 0.0,
        base_model_revision: str | None = None,
        scale: float = 1.0,
        base_prefix: str | Sequence[Mapping[str, str]] | Sequence[Message] | None = None,
        reads_prefix: Sequence[bool] | None = None,
        connection: Connection = "residual",
        token: str | bool | None = None,
    ) -> ValueAdapter:
        """Makes an adapter of networks that exist.

        Args:
            networks: loaded models, which will lie in the artifact, or Hub IDs (`user/model` or `user/model@revision`),
                which are named in it at their present commit.
            tokenizer: the tokenizer of all of them.
            base_model_name_or_path: Hub ID of the base that the adapter was made on.
            coefficients: weight of each network on bases that nobody measured; 1 each by default. `[1, -1]` with an
                expert and a reference is proxy-tuning (Liu et al. 2024, arXiv 2401.08565) and needs no training.
            base_weight: of the base's own logits there.
            end_weight: what is added there to the logits of the tokens that end a text, in nats.
            base_model_revision: commit of that base.
            scale: the scale to act at by default.
            base_prefix: text or chat messages that the base reads before the prompt.
            reads_prefix: for each network whether it reads the prefix as well, as one does that stands for the base;
                by default none does.
            connection: what the networks read: `residual` the tokens, `cascade` the base's prediction of the next one,
                `cascade_with_text` both (see `valueadapter.forward.cascade`).
            token: Hub token.

        Raises:
            ConfigError: no network, another number of coefficients, an unknown connection, or a network or tokenizer
                that would not come back from a directory as it is.
            IncompatibleBaseError: a named network has another vocabulary.
        """
        weights = (
            [1.0] * len(networks) if coefficients is None else [float(finite("coefficient", c)) for c in coefficients]
        )
        reads = [False] * len(networks) if reads_prefix is None else list(reads_prefix)
        for what, given in (("coefficient", weights), ("of reads_prefix", reads)):
            if len(given) != len(networks) or not networks:
                raise ConfigError(f"expected one {what} per network; got {len(given)} for {len(networks)} networks")
        check_tokenizer(tokenizer)
        specs, models = [], []
        for index, (network, weight, reads_it) in enumerate(zip(networks, weights, reads, strict=True)):
            if isinstance(network, str):
                spec, model = load_named_network(network, weight, tokenizer, token)
            else:
                spec, model = NetworkSpec(weight, path=file_names.network_directory(index)), network
                check_savable(network)
            specs.append(dataclasses.replace(spec, reads_prefix=reads_it))
            models.append(model)
        config = ValueAdapterConfig(
            base_model_name_or_path=base_model_name_or_path,
            base_model_revision=base_model_revision,
            networks=tuple(specs),
            vocabulary=vocabulary_of(tokenizer).spec(max(logits_width(model) for model in models)),
            base_weight=base_weight,
            end_weight=end_weight,
            scale=scale,
            base_prefix=as_prefix(base_prefix),
            connection=connection,
        )
        return cls(config, models, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        download: hub.Download | None = None,
        dtype: torch.dtype | str = "auto",
        **options: Any,
    ) -> ValueAdapter:
        """Loads an adapter from a directory or the Hub, after verifying it.

        Args:
            name_or_path: directory or Hub ID.
            download: how to get it from the Hub; or give its fields as keywords:
                `revision, subfolder, token, cache_dir, local_files_only, force_download`.
            dtype: dtype of the networks; `auto` as they are stored.
            options: the fields of `hub.Download`.

        Raises:
            ArtifactError, ConfigError: what `artifact.verify` finds.
            huggingface_hub.errors: the repository or revision is not there, private, gated, …
        """
        download = download or hub.Download(**options)
        with hub.open_adapter(name_or_path, download) as opened:
            return cls.from_verified(opened, download, dtype=dtype)

    @classmethod
    def from_verified(
        cls,
        opened: verification.OpenedArtifact,
        download: hub.Download,
        *,
        dtype: torch.dtype | str = "auto",
        tokenizer: LoadedTokenizer | None = None,
    ) -> ValueAdapter:
        """Loads an adapter from what `hub.open_adapter` gave: all of it from the files that were checked.

        Args:
            opened: what `hub.open_adapter` gave.
            download: how to get networks that the adapter names by Hub ID.
            dtype: dtype of the networks; `auto` as they are stored.
            tokenizer: what `load_tokenizer` gave, where it was needed before.

        Raises:
            ArtifactError: a tensor does not fit the architecture, weights have changed since they were saved, or the
                tokenizer that transformers makes is not the recorded one.
            huggingface_hub.errors: a named network cannot be had.
        """
        config = opened.config
        own = tokenizer or load_tokenizer(opened)
        known: KnownBodies = {}
        places: dict[str, Any] = {"cache_dir": download.cache_dir, "local_files_only": download.local_files_only}
        networks = [
            load_network(network, dtype=dtype, token=download.token, known=known, **places)
            if network is not None
            else load_hub_network(
                str(spec.repo), str(spec.revision), dtype=dtype, token=download.token, known=known, **places
            )
            for spec, network in zip(config.networks, opened.networks, strict=True)
        ]
        if (width := max(logits_width(network) for network in networks)) != config.vocabulary.logits_width:
            raise ArtifactError(
                f"'{opened.directory}' says logits of {config.vocabulary.logits_width} columns; its networks have "
                f"{width}. Download or save the adapter again"
            )
        adapter = cls(config, networks, own.tokenizer, opened.alignments)
        adapter.side = own.side  # so that it is read once
        adapter.card_results = opened.card_results
        return adapter

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        max_shard_size: int | str = "5GB",
        state_dicts: Sequence[dict[str, torch.Tensor]] | None = None,
    ) -> ValueAdapterConfig:
        """Writes the artifact. `directory` holds the old adapter, the new one or none at every moment, never a mixture.

        None only while files are moved in a directory that must stay in its place; see docs/format.md, "Writing".

        Args:
            directory: new, empty, or an earlier adapter's. A model card that a person wrote or edited stays, and so
                does what else is not the adapter's.
            max_shard_size: weights larger than this are split over several files.
            state_dicts: one per network, to save in place of its own weights.

        Returns:
            The configuration as written, with the checksums of the weights.

        Raises:
            ArtifactError: `directory` holds something else that would be lost.
        """
        target = Path(directory).resolve()
        own = self.provenance.true_records(self.config, self.networks, state_dicts)
        with staged(target) as staging:
            self.tokenizer.save_pretrained(staging)
            forget_where_it_was_loaded_from(staging / file_names.TOKENIZER_CONFIG)
            specs = []
            for index, (spec, model) in enumerate(zip(self.config.networks, self.networks, strict=True)):
                if spec.path is not None:
                    state = state_dicts[index] if state_dicts is not None else None
                    sums = save_network(model, staging / spec.path, max_shard_size=max_shard_size, state_dict=state)
                    spec = dataclasses.replace(spec, sha256=sums)
                specs.append(spec)
            for name, alignment in self.alignments.items():
                alignment.save(staging / file_names.ALIGNMENTS / f"{name}{file_names.SAFETENSORS}")
            config = dataclasses.replace(own, networks=tuple(specs))
            (staging / file_names.CONFIG).write_text(config.to_json(), encoding="utf-8")
            shown = self.card_results.true_to(config.evaluation)
            for name, data in shown.files().items():
                (staging / name).write_bytes(data)
            old_card = target / file_names.CARD
            if not old_card.exists() or card.is_generated(old_card.read_text(encoding="utf-8")):
                text = card.render_card(config, repo_id=None, cost=cost_in(staging, config), shown=shown)
                (staging / file_names.CARD).write_text(text, encoding="utf-8")
            verification.verify(staging)
        return config

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] = (),
        overwrite_card: bool = False,
    ) -> CommitInfo:
        """Publishes the adapter in one commit: all of it arrives, or nothing.

        Whoever may read the repository then reads the adapter's prefix there, verbatim, in config.json and in the card:
        by default eight demonstrations of the data it was trained with. `adapter.with_config(base_prefix=None,
        stop_strings=())` is the adapter without it, and a training with `base_prefix_examples=0` makes none.

        Args:
            repo_id: `user/name`; created if it does not exist.
            commit_message: title of the commit.
            commit_description: its longer text.
            private: make a new repository private.
            token: Hub token; by default the one you are logged in with.
            revision: branch to push to; made if it does not exist.
            create_pr: open a pull request instead.
            tags: for the model card.
            overwrite_card: replace a card on the Hub that a person wrote or edited.

        Raises:
            ConfigError: the base model is named by a path of this machine.
            huggingface_hub.errors: no permission, someone else pushed meanwhile, …
        """
        how = hub.Push(
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tuple(tags),
            overwrite_card=overwrite_card,
        )
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder, "adapter"))
            return hub.push(Path(folder, "adapter"), repo_id, how)

    def with_config(self, **changes: Any) -> ValueAdapter:
        """The same networks, tokenizer and alignments under a changed configuration."""
        return self.replaced(dataclasses.replace(self.config, **changes))

    def with_weights(self, weights: Weights) -> ValueAdapter:
        """This adapter with other weights for bases that nobody measured."""
        specs = zip(self.config.networks, weights.networks, strict=True)
        networks = tuple(dataclasses.replace(spec, coefficient=weight) for spec, weight in specs)
        return self.with_config(networks=networks, base_weight=weights.base, end_weight=weights.end)

    def replaced(self, config: ValueAdapterConfig | None = None, networks: Sequence[Any] = ()) -> ValueAdapter:
        """This adapter under another configuration or with other networks; its records stay those of what it was."""
        own = config or self.config, networks or self.networks, self.tokenizer, self.alignments
        made = ValueAdapter(*own, self.provenance)
        made.card_results = self.card_results
        return made

    @property
    def reads_prefix(self) -> bool:
        """Whether one of the networks reads the prefix as the base does."""
        return any(spec.reads_prefix for spec in self.config.networks)

    def __repr__(self) -> str:
        return "\n".join(["ValueAdapter(", *self.config.lines([*map(described, self.networks)]), ")"])

    def __deepcopy__(self, memo: dict[int, Any]) -> ValueAdapter:
        """A copy whose networks have in common what these have."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copied(vars(self), self.networks, memo))
        return twin

    def copy(self) -> ValueAdapter:
        """An adapter whose weights are independent of this one's."""
        return self.replaced(networks=[copy.deepcopy(network) for network in self.networks])

    def connect(self, theirs: ModelVocabulary, base: str) -> VocabularyBridge | None:
        """How this adapter meets a base model.

        Args:
            theirs: the base's vocabulary.
            base: the base's name, for the message.

        Returns:
            None where the vocabulary is the same (padded widths may differ).

        Raises:
            IncompatibleBaseError: the vocabularies cannot be aligned, or networks that read the base's prediction
                cannot read that of another vocabulary; saying why.
        """
        try:
            link = connect(self.side, theirs, self.alignments)
            if (reason := why_unreadable(self.config.connection, link)) is not None:
                raise AlignmentError(reason)
            return link
        except AlignmentError as error:
            raise IncompatibleBaseError(
                f"base model '{base}' and this adapter (trained on '{self.config.base_model_name_or_path}') do not go "
                f"together: {error}"
            ) from error

    @functools.cached_property
    def side(self) -> ModelVocabulary:
        """The adapter's vocabulary as its networks use it."""
        return side_of(self.tokenizer, self.config.vocabulary.logits_width)
