"""The map between two vocabularies: what it says, that it survives saving, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from vocabularies import KINDS, tokenizer_of

from valueadapter import AlignmentError
from valueadapter.vocabulary.alignment import EXACT, FIRST, NONE, PADDING, STOP, VocabularyAlignment
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

pairs = pytest.mark.parametrize(("base", "value"), [(b, v) for b in KINDS for v in KINDS if b != v])


def side(kind: str, width: int | None = None) -> ModelVocabulary:
    tokenizer = tokenizer_of(kind)
    return ModelVocabulary(tokenizer.backend_tokenizer.to_str(), width or len(tokenizer), tokenizer.eos_token)


def permuted(kind: str, shift: int = 7) -> ModelVocabulary:
    """The same tokenizer under other ids."""
    state = json.loads(side(kind).tokenizer_json)
    size = len(state["model"]["vocab"])
    move = {index: (index + shift) % size for index in range(size)}
    vocab = state["model"]["vocab"]
    if isinstance(vocab, dict):
        state["model"]["vocab"] = {text: move[index] for text, index in vocab.items()}
    else:
        state["model"]["vocab"] = [vocab[(index - shift) % size] for index in range(size)]
        state["model"]["unk_id"] = move[state["model"]["unk_id"]]
    for added in state["added_tokens"]:
        added["id"] = move[added["id"]]
    state["post_processor"] = None
    return ModelVocabulary(json.dumps(state), size, "</s>")


def is_text(data: bytes) -> bool:
    return "\ufffd" not in data.decode("utf-8", "replace")


def cannot_spell(mine: ModelVocabulary, data: bytes) -> bool:
    """Whether the tokenizer has nothing, or its unknown token, for the beginning of a text."""
    ids = mine.encoder.encode_pieces([data.decode("utf-8", "replace")])[0]
    return not is_text(data) or not ids or ids[0] in mine.vocabulary.special


@pairs
def test_every_base_token_gets_the_value_token_its_bytes_begin_with(base: str, value: str) -> None:
    """Exact rows have the same bytes; first rows a value token that the canonical split of the text begins with."""
    theirs, mine = side(base), side(value)
    alignment = VocabularyAlignment.build(mine, theirs)
    assert alignment.relation == "static"
    for token, (source, kind) in enumerate(zip(alignment.source, alignment.kind, strict=True)):
        data = theirs.vocabulary.tokens.get(token)
        if kind == EXACT:
            assert mine.vocabulary.tokens[source] == data
        elif kind == FIRST:
            assert source not in mine.vocabulary.special
            if is_text(data):
                assert mine.encoder.encode_pieces([data.decode()])[0][0] == source
            else:
                assert data.startswith(mine.vocabulary.tokens[source])
        elif kind == NONE:
            assert token in theirs.vocabulary.special or cannot_spell(mine, data)
        elif kind == STOP:
            assert token in theirs.stops
    assert alignment.coverage()["end of text"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_permuted_copy_gives_bit_identical_logits(kind: str) -> None:
    """Identity is recognised under other ids, and carries every logit unchanged."""
    alignment = VocabularyAlignment.build(side(kind), permuted(kind))
    assert alignment.relation == "permuted"
    logits = torch.randn(2, 3, side(kind).width)
    projected = alignment.project(logits)
    for row in range(side(kind).width):
        assert torch.equal(projected[..., row], logits[..., alignment.source[row]])


def test_padding_and_added_tokens_are_still_the_same_vocabulary() -> None:
    """A wider base, and a family that adds a control token behind, are `identity`."""
    mine = side("bytes")
    assert VocabularyAlignment.build(mine, side("bytes", mine.width + 64)).relation == "identity"
    more = tokenizer_of.__wrapped__("bytes")
    more.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    theirs = ModelVocabulary(more.backend_tokenizer.to_str(), len(more), "</s>")
    alignment = VocabularyAlignment.build(mine, theirs)
    assert alignment.relation == "identity"
    assert alignment.kind[len(more) - 1] == NONE


def test_another_behaviour_is_another_vocabulary() -> None:
    """The same tokens, to which text is brought in another way, are not taken for the same vocabulary."""
    state = json.loads(side("bytes").tokenizer_json)
    state["normalizer"] = {"type": "Lowercase"}
    theirs = ModelVocabulary(json.dumps(state), side("bytes").width, "</s>")
    assert theirs.vocabulary.tokens == side("bytes").vocabulary.tokens
    assert VocabularyAlignment.build(side("bytes"), theirs).relation == "static"


def test_a_constant_added_to_the_value_logits_moves_every_row_alike() -> None:
    """Control tokens and padding too, so that the constant cancels in the softmax."""
    alignment = VocabularyAlignment.build(side("bytes"), side("sentencepiece", 900))
    logits = torch.randn(4, side("bytes").width, dtype=torch.float64)
    moved = alignment.project(logits + 3.0) - alignment.project(logits)
    torch.testing.assert_close(moved, torch.full_like(moved, 3.0))
    assert {NONE, PADDING, STOP} <= set(alignment.kind.tolist())


def test_zero_value_logits_are_zero_for_every_base_token() -> None:
    """A network with a zero head leaves any base as it is, its ends of text included."""
    alignment = VocabularyAlignment.build(side("bytes"), side("unigram"))
    assert not alignment.project(torch.zeros(1, side("bytes").width)).any()


def test_ends_of_text_get_what_the_network_gave_to_its_own() -> None:
    """The log of the mean of the exponentials over all value tokens that end a text."""
    alignment = VocabularyAlignment.build(side("bytes"), side("sentencepiece"))
    logits = torch.randn(1, side("bytes").width)
    expected = logits[0, list(side("bytes").stops)].exp().mean().log()
    got = alignment.project(logits)[0, list(side("sentencepiece").stops)]
    torch.testing.assert_close(got, expected.expand_as(got))


def test_project_writes_where_it_is_told() -> None:
    """`out` is filled and returned."""
    alignment = VocabularyAlignment.build(side("bytes"), side("unigram"))
    logits, out = torch.randn(2, side("bytes").width), torch.empty(2, side("unigram").width)
    expected = alignment.project(logits)
    assert alignment.project(logits, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_never_passes(bad: float) -> None:
    """One NaN in one row stops it, and the message says what to do."""
    alignment = VocabularyAlignment.build(side("bytes"), side("unigram"))
    logits = torch.randn(2, side("bytes").width)
    logits[1, 3] = bad
    with pytest.raises(AlignmentError, match="NaN or infinity"):
        alignment.project(logits)
    with pytest.raises(AlignmentError, match="columns; got 5"):
        alignment.project(torch.zeros(1, 5))


@pairs
def test_load_gives_what_was_saved(base: str, value: str, tmp_path: Path) -> None:
    """read(write(x)) == x, and equal maps give equal bytes."""
    alignment = VocabularyAlignment.build(side(value), side(base))
    for name in "ab":
        alignment.save(tmp_path / name)
    loaded = VocabularyAlignment.load(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(loaded.source, alignment.source)
    assert np.array_equal(loaded.kind, alignment.kind)
    assert (loaded.relation, loaded.stops) == (alignment.relation, alignment.stops)
    loaded.check(side(value).spec, side(base).spec)


def test_a_map_that_does_not_fit_says_what_differs() -> None:
    """Either side, with both fingerprints."""
    alignment = VocabularyAlignment.build(side("bytes"), side("unigram"))
    other = side("metaspace").spec
    with pytest.raises(AlignmentError, match=rf"another value vocabulary.*got {other.byte_fingerprint}"):
        alignment.check(other, side("unigram").spec)
    with pytest.raises(AlignmentError, match=rf"another base vocabulary.*got {other.byte_fingerprint}"):
        alignment.check(side("bytes").spec, other)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """No file, no safetensors, another kind of safetensors, ids beyond the rows."""
    path = tmp_path / "map.safetensors"
    with pytest.raises(AlignmentError, match="cannot be read"):
        VocabularyAlignment.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(AlignmentError, match="cannot be read"):
        VocabularyAlignment.load(path)
    save_file({"source": np.zeros(3, np.int32)}, path)
    with pytest.raises(AlignmentError, match="no vocabulary alignment of version 1"):
        VocabularyAlignment.load(path)
    alignment = VocabularyAlignment.build(side("bytes"), side("unigram"))
    alignment.source[5] = alignment.value.logits_width
    alignment.save(path)
    with pytest.raises(AlignmentError, match="points to value token"):
        VocabularyAlignment.load(path)
    assert set(load_file(path)) == {"source", "kind"}
