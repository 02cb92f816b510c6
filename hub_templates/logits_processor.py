"""This value adapter as a `LogitsProcessor`, for loops that take nothing else, without the `valueadapter` package.

    processor = ValueLogitsProcessor(model)
    model.generate(**inputs, logits_processor=LogitsProcessorList([processor]))

A processor sees token ids and scores, no mask and no cache. So it keeps the networks' caches itself, and raises where
what it sees is not one growing text per row: beams, left padding, speculation, a second text. Nor can a processor stop:
where the adapter records texts that end an answer (`processor.adapter.stop_strings`), pass them to
`model.generate(..., stop_strings=[...], tokenizer=tokenizer)`, or cut the answer at them.
Written by `valueadapter export --to logits_processor`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from .value_networks import RECORDED, Network, cache_name, check_scale, load, tokenizer_of

_ELSE = "Use custom_generate, or ValueAdapterForCausalLM of `pip install valueadapter`, which can"


class ValueLogitsProcessor(LogitsProcessor):
    """Adds the value logits to the scores of the next token, for one batch of texts that grow token by token.

    Processors before this one have changed the base's scores already, those after it see the sum.

    Args:
        model: the base, of which vocabulary, device and dtype are taken; it is not run.
        adapter: Hub ID or directory; by default the directory that this file lies in.
        scale: how strongly it acts; as recommended for this base by default.
        tokenizer: the base's; found by the base's name by default.
        base_prefix: text or chat messages; by default the adapter's own. A processor cannot have the base read it, so
            it must be in the prompt (`prefixed`, with `prefix_in_prompt=True`), or None.
        prefix_in_prompt: every prompt begins with the prefix, as `prefixed` puts it there.
        begins_with_pad: the texts themselves begin with the pad token, and no row is padded.
        download: `revision`, `token`, `cache_dir`, `local_files_only`, for a Hub ID.

    Raises:
        ValueError: another vocabulary, no adapter, or a prefix that nobody takes care of.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: str | None = None,
        *,
        scale: float | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        base_prefix: Any = RECORDED,
        prefix_in_prompt: bool = False,
        begins_with_pad: bool = False,
        **download: Any,
    ) -> None:
        place = str(adapter) if adapter is not None else str(Path(__file__).parent.parent)
        places = {key: value for key, value in download.items() if key != "revision"}
        tokenizer = tokenizer if tokenizer is not None else tokenizer_of(model, **places)
        self.adapter = load(model, place, tokenizer=tokenizer, base_prefix=base_prefix, **download)
        self.scale = check_scale(self.adapter.scale if scale is None else scale)
        if self.adapter.prefix and not prefix_in_prompt:
            raise ValueError(
                "this adapter has the base read a prefix, which a processor cannot do. Put it into the prompt with "
                "prefixed(input_ids) and pass prefix_in_prompt=True, or leave it out with base_prefix=None"
            )
        pads = {tokenizer.pad_token_id, model.generation_config.pad_token_id}
        self._pads = (pads if pads != {None} else {tokenizer.eos_token_id}) - {None}
        if begins_with_pad:
            self._pads = set()
        self.reset()

    def reset(self) -> None:
        """Forgets what was read, for another batch of texts."""
        self._read: torch.Tensor | None = None
        self._caches: list[Cache] = [DynamicCache(config=one.model.config) for one in self.adapter.networks]

    def prefixed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, seq) prompts behind the prefix; a token that begins a text stands there once."""
        if not self.adapter.prefix:
            return input_ids
        ids = self._without_start(input_ids)
        return torch.cat([ids.new_tensor(self.adapter.prefix).expand(len(ids), -1), ids], dim=1)

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(batch, base_vocab) scores of the token after `input_ids`, (batch, seq), with the value logits added.

        Raises:
            ValueError: what came is not the text of the last call and one token more, in each row.
        """
        if scores.shape[-1] != self.adapter.base_width:
            raise ValueError(f"expected scores of {self.adapter.base_width:,} tokens; got {scores.shape[-1]:,}")
        first = self._read is None
        self._check_first(input_ids) if first else self._check_next(input_ids)
        self._check_scores(scores)
        said = []
        for network, cache in zip(self.adapter.networks, self._caches, strict=True):
            ids = self._text_for(network, input_ids) if first else input_ids[:, -1:]
            read = self.adapter.ids_for(network, ids.to(network.model.device))
            cached = {cache_name(network.model): cache, "use_cache": True}
            out = network.model(input_ids=read, **cached, logits_to_keep=1, return_dict=True)
            said.append(out.logits[:, -1])
        self._read = input_ids.clone()
        return self.adapter.add(scores, said, self.scale)

    def _text_for(self, network: Network, ids: torch.Tensor) -> torch.Tensor:
        """What a network reads of a prompt: with the prefix or without."""
        lead = len(self.adapter.prefix)
        if network.reads_prefix or not lead:
            return ids
        prompt, start = ids[:, lead:], self.adapter.start
        return prompt if start is None else torch.nn.functional.pad(prompt, (1, 0), value=start)

    def _without_start(self, ids: torch.Tensor) -> torch.Tensor:
        begun = ids[:, 0] == (-1 if self.adapter.start is None else self.adapter.start)
        if begun.any() and not begun.all():
            raise ValueError("some rows begin with the token that begins a text, some do not; tokenize them alike")
        return ids[:, 1:] if begun.all() else ids

    def _check_first(self, ids: torch.Tensor) -> None:
        if any((ids[:, 0] == pad).any() for pad in self._pads):
            raise ValueError(
                "a row begins with the pad token. A processor sees no mask, so left padding cannot be right: give it "
                f"prompts of one length. {_ELSE}. If the texts themselves begin with that token: begins_with_pad=True"
            )
        prefix = self.adapter.prefix
        if prefix and (ids.shape[1] <= len(prefix) or (ids[:, : len(prefix)] != ids.new_tensor(prefix)).any()):
            raise ValueError("a prompt does not begin with the prefix; make prompts with prefixed(input_ids)")

    def _check_next(self, ids: torch.Tensor) -> None:
        read = ids if self._read is None else self._read
        if len(ids) == len(read) and ids.shape[1] == read.shape[1] + 1 and torch.equal(ids[:, :-1], read):
            return
        raise ValueError(
            f"expected the text of the last call, {tuple(read.shape)} tokens, and one token more; got "
            f"{tuple(ids.shape)} of another text. For another text call reset() first. In beam search, assisted and "
            f"prompt-lookup decoding texts change places or are taken back, and a processor cannot follow. {_ELSE}"
        )

    def _check_scores(self, scores: torch.Tensor) -> None:
        """Beam search hands log-probabilities over, and does not make the sum one again."""
        if len(scores) > 1 and bool((scores.float().logsumexp(-1).abs() < 1e-3).all()):
            raise ValueError(
                "these scores are log-probabilities of several rows, as in beam search, where value logits cannot be "
                f"added by a processor. {_ELSE}; or pass logits"
            )
