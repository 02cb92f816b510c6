"""The verdict before loading: its numbers are what reading gives, and small files suffice for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters_on_hub import WEIGHTS, publish, put, requests, save, server  # noqa: F401  # server is a fixture
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from vocabularies import KINDS, TEXTS, tokenizer_of

from testkit.local_hub import LocalHub
from valueadapter import AlignmentError, ConfigError, IncompatibleBaseError, ValueAdapter
from valueadapter.errors import MissingFileError
from valueadapter.hub.small_files import SmallFiles, adapter_side, base_side, sides
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.compatibility import SAMPLE, Compatibility, assess
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.retokenizer import RetokenizingRules

pairs = pytest.mark.parametrize(("base", "value"), [(b, v) for b in KINDS for v in KINDS if b != v])


def side(kind: str, width: int | None = None) -> ModelVocabulary:
    tokenizer = tokenizer_of(kind)
    return ModelVocabulary(tokenizer.backend_tokenizer.to_str(), width or len(tokenizer), tokenizer.eos_token)


def reversed_ids(kind: str) -> ModelVocabulary:
    """The same byte-level tokenizer with its ids in reverse."""
    mine = side(kind)
    state = json.loads(mine.tokenizer_json)
    last = len(state["model"]["vocab"]) - 1
    state["model"]["vocab"] = {text: last - index for text, index in state["model"]["vocab"].items()}
    for added in state["added_tokens"]:
        added["id"] = last - added["id"]
    return ModelVocabulary(json.dumps(state), last + 1, "</s>")


def words() -> ModelVocabulary:
    """A tokenizer whose tokens do not spell the text."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "dog": 2, "fox": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return ModelVocabulary(backend.to_str(), 4)


def counted_anew(value: ModelVocabulary, base: ModelVocabulary, text: str) -> tuple[float, float]:
    """Same-event share and value tokens per base token, every beginning of the text encoded from scratch."""
    source, reading = VocabularyAlignment.build(value, base).source, RetokenizingRules.between(value, base)
    ids = base.encoder.encode(text, start=True)
    same, read, data, before = 0, 0, b"", list(value.encoder.prefix)
    for token in ids:
        data += reading.data[token]
        seen = data.decode("utf-8", "ignore")  # in these texts only the last character can be incomplete
        seen = seen.removeprefix(" ") if reading.opens_with_space else seen
        after = [*value.encoder.prefix, *value.encoder.encode(seen, start=True)]
        kept = next((i for i, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), len(before))
        kept = min(kept, len(after))
        same += kept == len(before) < len(after) and after[kept] == source[token]
        read, before = read + len(after) - kept, after
    return same / len(ids), read / len(ids)


@pairs
def test_shares_are_those_of_reading_every_beginning_anew(base: str, value: str) -> None:
    """The incremental walk counts what the definition says."""
    mine, theirs = side(value), side(base)
    for text in TEXTS:
        found = assess(mine, theirs, text=text)
        assert (found.same_event_share, found.value_tokens_per_base_token) == counted_anew(mine, theirs, text)
        assert found.relation == "static"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vocabulary_is_an_identity(kind: str) -> None:
    """Equal tokenizers, padded or not: nothing is lost, whatever the text."""
    for width in (None, len(tokenizer_of(kind)) + 7):
        found = assess(side(kind), side(kind, width))
        assert found.advice == "identity: ids pass through"
        assert (found.same_event_share, found.value_tokens_per_base_token, found.text_coverage) == (1, 1, 1)
        assert found.special_without_counterpart == ()
        assert found.coverage["same bytes"] == len(tokenizer_of(kind))
        assert found.coverage["no token"] == (0 if width is None else 7)


def test_other_ids_of_the_same_vocabulary_lose_nothing() -> None:
    """A permutation is said to be one."""
    found = assess(side("bytes"), reversed_ids("bytes"))
    assert found.relation == "permuted"
    assert (found.same_event_share, found.text_coverage, found.value_tokens_per_base_token) == (1, 1, 1)
    assert found.advice.startswith("permuted")


def test_identity_needs_no_byte_view() -> None:
    """A tokenizer of whole words goes with itself, and with no other."""
    assert assess(words(), words(), text="the dog the fox").relation == "identity"
    with pytest.raises(AlignmentError, match="no byte view"):
        assess(side("bytes"), words(), text="the dog")


def test_control_tokens_without_counterpart_are_named() -> None:
    """Those that end a text have one; the others do not."""
    found = assess(side("bytes"), side("coarse bytes"))
    assert found.special_without_counterpart == ("<pad>", "<s>", "<|turn|>")
    assert found.coverage["end of text"] == 2


@pytest.mark.parametrize(
    ("share", "advice"),
    [(0.97, "close to exact"), (0.96, "some loss"), (0.7, "some loss"), (0.69, "much loss"), (0.49, "not advisable")],
)
def test_advice_follows_the_share(share: float, advice: str) -> None:
    """The worse the share, the stronger the warning."""
    found = Compatibility("static", {}, 1.0, share, 1.0, ())
    assert advice in found.advice
    assert found.advice.startswith("static map")
    assert dataclasses.replace(found, relation="identity").advice == "identity: ids pass through"


def test_it_can_be_said_in_json() -> None:
    """Numbers are Python's own."""
    found = assess(side("unigram"), side("bytes"))
    again = json.loads(json.dumps(found.to_dict()))
    assert again["advice"] == found.advice
    assert again["same_event_share"] == found.same_event_share


def test_a_given_map_must_fit_and_the_text_must_have_tokens() -> None:
    """A map for another base is refused; so is a text that says nothing."""
    mine, theirs = side("bytes"), side("coarse bytes")
    alignment = VocabularyAlignment.build(mine, theirs)
    assert assess(mine, theirs, alignment=alignment) == assess(mine, theirs, text=SAMPLE)
    with pytest.raises(AlignmentError, match="another base vocabulary"):
        assess(mine, side("unigram"), alignment=alignment)
    with pytest.raises(ConfigError, match="no tokens"):
        assess(mine, theirs, text="")


# -- from names to vocabularies ------------------------------------------------------------------------------------
def model_directory(folder: Path, config: dict[str, object] | None = None) -> Path:
    """A base's small files."""
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 97} if config is None else config))
    return folder


def test_sides_are_those_of_the_loaded_models(tmp_path: Path) -> None:
    """Widths, fingerprints and ends of text agree with what loading finds."""
    save(tmp_path / "adapter")
    tiny_model("llama", seed=1, width=101).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    mine, theirs = sides(SmallFiles(str(tmp_path / "adapter")), SmallFiles(str(tmp_path / "base")))
    loaded = ValueAdapter.from_pretrained(tmp_path / "adapter").side
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert (mine.spec, mine.eos, mine.stops) == (loaded.spec, loaded.eos, loaded.stops)
    assert theirs.spec == ModelVocabulary(tokenizer.backend_tokenizer.to_str(), 101).spec
    assert theirs.eos_token == tokenizer.eos_token == "</s>"


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"vocab_size": 99}, 99),
        ({"text_config": {"vocab_size": 98}, "vocab_size": 5}, 98),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, 262_208),
    ],
)
def test_width_is_the_text_models(tmp_path: Path, config: dict[str, object], width: int) -> None:
    """Multimodal configurations nest it, and some leave it to the model type."""
    assert base_side(SmallFiles(str(model_directory(tmp_path, config)))).width == width


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}])
def test_end_of_text_is_found_in_every_form(tmp_path: Path, name: str, token: object) -> None:
    """A string or an object, in the file of today or of earlier days."""
    model_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / name).write_text(json.dumps({"eos_token": token}))
    assert base_side(SmallFiles(str(tmp_path))).eos == 1


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), IncompatibleBaseError, r"tokenizer of base model .*tokenizer="),
        (lambda d: (d / "config.json").unlink(), IncompatibleBaseError, "has no config.json"),
        (lambda d: (d / "config.json").write_text("{}"), IncompatibleBaseError, "no usable vocab_size"),
        (lambda d: (d / "config.json").write_text('{"vocab_size": "9"}'), IncompatibleBaseError, "got '9'"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "value_adapter"}'),
            IncompatibleBaseError,
            "value_ad",
        ),
        (lambda d: (d / "config.json").write_text("{"), ConfigError, "is not JSON"),
        (lambda d: (d / "tokenizer_config.json").write_text("[]"), ConfigError, "JSON object; got list"),
    ],
)
def test_a_base_without_what_is_needed(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[Exception], match: str
) -> None:
    """Each message says what is missing and what to do."""
    spoil(model_directory(tmp_path))
    with pytest.raises(error, match=match):
        base_side(SmallFiles(str(tmp_path)))


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    """Neither a directory nor a Hub ID; an adapter without its tokenizer."""
    with pytest.raises(MissingFileError, match="neither a directory here nor"):
        base_side(SmallFiles("./no/such/place"))
    (save(tmp_path / "adapter") / "tokenizer.json").unlink()
    with pytest.raises(MissingFileError, match=r"has no tokenizer\.json"):
        adapter_side(SmallFiles(str(tmp_path / "adapter")))


def test_the_hub_gives_small_files_only(server: LocalHub, tmp_path: Path) -> None:  # noqa: F811
    """Both sides of Hub IDs come without a byte of weights, and then from the cache."""
    commit = publish(tmp_path / "adapter")
    model_directory(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"x" * 1000)
    HfApi().create_repo("alice/base")
    HfApi().upload_folder(repo_id="alice/base", folder_path=tmp_path / "base")
    seen = sides(SmallFiles("alice/adapter", commit), SmallFiles("alice/base"))
    assert assess(*seen).relation == "identity"
    assert requests(server, "GET", ".safetensors") == []
    assert SmallFiles("alice/base").weight_bytes() == 1000
    count = len(server.log)
    again = sides(
        SmallFiles("alice/adapter", commit, local_files_only=True), SmallFiles("alice/base", local_files_only=True)
    )
    assert [s.spec for s in again] == [s.spec for s in seen]
    assert SmallFiles("alice/base", local_files_only=True).weight_bytes() is None
    assert len(server.log) == count


def test_a_base_on_the_hub_without_tokenizer(server: LocalHub) -> None:  # noqa: F811
    """A repository that lacks the file is told from one that is not there."""
    HfApi().create_repo("alice/base")
    put("alice/base", config__json='{"vocab_size": 9}')
    with pytest.raises(IncompatibleBaseError, match="tokenizer of base model 'alice/base' was not found"):
        base_side(SmallFiles("alice/base"))
    assert SmallFiles("alice/base").weight_bytes() is None
    assert SmallFiles("alice/none").weight_bytes() is None


def test_weights_in_a_directory(tmp_path: Path) -> None:
    """Shards add up; without safetensors the size is unknown."""
    assert SmallFiles(str(tmp_path)).weight_bytes() is None
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors", "consolidated.safetensors", "model.bin"):
        (tmp_path / name).write_bytes(b"12345")
    assert SmallFiles(str(tmp_path)).weight_bytes() == 10
    assert (save(tmp_path / "a") / WEIGHTS).exists()
    assert (
        SmallFiles(str(tmp_path), subfolder="a/value_network").weight_bytes()
        == (tmp_path / "a" / WEIGHTS).stat().st_size
    )
