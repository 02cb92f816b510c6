"""How an adapter meets a base: found, cached beside the Hub's cache, or brought along in the artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_alignment import permuted, side
from test_other_vocabulary import GREEDY, TEXTS, ids_of, wrapped
from tiny import tiny_model
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from vocabularies import tokenizer_of

from valueadapter import AlignmentError, ArtifactError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.bridge import alignment_name, connect


def test_a_map_is_built_once_for_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time it is there, and nobody who changes his changes another's."""
    first = connect(side("bytes"), side("unigram"))
    first.alignment.source[:] = 7
    monkeypatch.setattr(VocabularyAlignment, "build", None)
    second = connect(side("bytes"), side("unigram"))
    assert len(set(second.alignment.source.tolist())) > 7


def test_a_kept_map_is_one_of_the_same_ends_of_text() -> None:
    """Two tokenizers of equal tokens that end texts with another token have another map."""
    mine, theirs = side("bytes"), side("unigram")
    ends = {connect(dataclasses.replace(mine, eos_token=eos), theirs).alignment.stops for eos in ("<s>", "<pad>")}
    assert len(ends) == 2


def test_what_the_adapter_brings_is_used(tmp_path: Path) -> None:
    """Maps travel in the artifact, and one for another base of the same name is refused."""
    model = wrapped()
    adapter, base = model.adapters["default"], side("coarse bytes")
    adapter.alignments[alignment_name(base)] = VocabularyAlignment.build(adapter.side, base)
    adapter.save_pretrained(tmp_path / "adapter")
    loaded = ValueAdapter.from_pretrained(tmp_path / "adapter")
    assert list(loaded.alignments) == [alignment_name(base)]
    assert connect(loaded.side, base, loaded.alignments) is not None
    wrong = {alignment_name(base): VocabularyAlignment.build(adapter.side, side("unigram"))}
    with pytest.raises(AlignmentError, match="another base vocabulary"):
        connect(loaded.side, base, wrong)


def test_a_damaged_or_misnamed_map_in_an_artifact_is_refused(tmp_path: Path) -> None:
    """`verify` looks into every map."""
    adapter = wrapped().adapters["default"]
    adapter.alignments[alignment_name(side("unigram"))] = VocabularyAlignment.build(adapter.side, side("unigram"))
    adapter.save_pretrained(tmp_path / "adapter")
    (path,) = (tmp_path / "adapter" / "alignments").iterdir()
    path.rename(path.with_name(f"{'0' * 16}.safetensors"))
    with pytest.raises(ArtifactError, match="must be named"):
        ValueAdapter.from_pretrained(tmp_path / "adapter")
    path.with_name(f"{'0' * 16}.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ValueAdapter.from_pretrained(tmp_path / "adapter")


def test_a_permuted_base_vocabulary_runs_in_step() -> None:
    """Bit-identical logits under other ids, with no text in between."""
    theirs, mine = permuted("bytes"), side("bytes")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(theirs.tokenizer_json), eos_token="</s>", pad_token="<pad>"
    )
    base = tiny_model("llama", seed=1, width=theirs.width)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    network = tiny_model("gpt2", seed=2, width=mine.width)
    adapter = ValueAdapter.from_networks([network], tokenizer_of("bytes"), base_model_name_or_path="a/b")
    model.add_adapter(adapter, "default")
    (term,) = model.attached.terms()
    assert term.link.reading is None
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    value = network(torch.tensor([tokenizer_of("bytes")(TEXTS[0])["input_ids"]])).logits
    source = torch.from_numpy(term.link.alignment.source).long()
    with torch.no_grad():
        out = model(ids, output_value_logits=True)
    assert torch.equal(out.value_logits, value[..., source].detach())
    assert torch.equal(model.generate(ids, **GREEDY), model.generate(ids, **GREEDY, use_cache=False))


def test_a_text_beyond_the_networks_positions_is_refused() -> None:
    """Before the network runs, with what to do."""
    model = wrapped("llama", "gpt2")
    with pytest.raises(UnsupportedModeError, match="256 at most"):
        model(ids_of(model, "the quick brown fox " * 100))


def test_an_answer_that_would_not_fit_is_refused_before_it_begins() -> None:
    """In the base's tokens, and in those of a network that reads its own (about as many as the base's)."""
    model = wrapped("llama", "gpt2")
    ids = ids_of(model, "the quick brown fox")
    with pytest.raises(UnsupportedModeError, match="the base reads 256 at most"):
        model.generate(ids, **{**GREEDY, "max_new_tokens": 300})
    model.adapters["default"].networks[0].config.n_positions = 64
    with pytest.raises(UnsupportedModeError, match=r"will be about .* 64 at most"):
        model.generate(ids, **{**GREEDY, "max_new_tokens": 60})
    with model.disable_adapter():
        assert model.generate(ids, **{**GREEDY, "max_new_tokens": 70}).shape[1] == ids.shape[1] + 70


def test_a_network_of_the_same_vocabulary_has_to_have_room_too() -> None:
    """Its positions end before the base's do."""
    tokenizer = tokenizer_of("bytes")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(tokenizer)), tokenizer=tokenizer)
    network = tiny_model("gpt2", seed=2, width=len(tokenizer))
    network.config.n_positions = 64
    model.add_adapter(ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b"), "default")
    with pytest.raises(UnsupportedModeError, match=r"default\..* reads 64 at most"):
        model.generate(ids_of(model, "the quick brown fox"), **{**GREEDY, "max_new_tokens": 60})


def test_two_networks_are_summed_before_they_are_carried_over() -> None:
    """A pair of expert and reference of another vocabulary: expert - reference, then the map."""
    theirs, mine = tokenizer_of("coarse bytes"), tokenizer_of("bytes")
    networks = [tiny_model("llama", seed=3, width=len(mine)), tiny_model("gpt2", seed=4, width=len(mine) + 8)]
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    pair = ValueAdapter.from_networks(networks, mine, base_model_name_or_path="a/b", coefficients=[1, -1])
    model.add_adapter(pair, "pair", scale=0.5)
    ids = ids_of(model, TEXTS[1])
    assert torch.equal(model.generate(ids, **GREEDY), model.generate(ids, **GREEDY, use_cache=False))
    reading = model.attached.terms()[0].link.reading
    value = torch.tensor([reading.encoder.encode(TEXTS[1], start=True)])
    expert, reference = (network(value).logits[:, -1] for network in networks)
    difference = torch.nn.functional.pad(expert, (0, 8)) - reference
    expected = model.base(ids).logits[:, -1] + 0.5 * model.attached.terms()[0].link.alignment.project(difference)
    torch.testing.assert_close(model(ids).logits[:, -1], expected, rtol=1e-4, atol=1e-4)
