"""config.json: what is written is read back, to the byte, whatever the values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valueadapter import ConfigError, IncompatibleVersionError, NotAValueAdapterError, ValueAdapterConfig
from valueadapter.artifact.config import (
    EvaluationRecord,
    Message,
    NetworkSpec,
    RecommendedWeights,
    Regularisation,
    TrainingRecord,
    Weights,
)
from valueadapter.vocabulary.spec import VocabularySpec

text = st.text(max_size=20)
spoken = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)
named_so = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20).filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
share = st.none() | st.floats(0, 1)
natural = st.integers(0, 10**12)
digest = st.text("0123456789abcdef", min_size=64, max_size=64)
commit = st.text("0123456789abcdef", min_size=40, max_size=40)
weight = finite.filter(bool)
local = st.builds(
    lambda c, sums: NetworkSpec(c, path="value_network", sha256=sums),
    weight,
    st.dictionaries(st.from_regex(r"[a-z]{1,8}\.safetensors", fullmatch=True), digest, max_size=3),
)
named = st.builds(lambda c, r: NetworkSpec(c, repo="user/model", revision=r), weight, commit)
penalty = st.builds(Regularisation, st.sampled_from(["none", "l1", "l2", "entropy"]), st.floats(0, 1e9))
training = st.builds(
    TrainingRecord,
    valueadapter_version=text,
    initialisation=st.sampled_from(["zero_head", "pretrained", "random"]),
    initialised_from=st.none() | text,
    num_layers=st.none() | st.integers(1, 100),
    regularisation=penalty,
    data=text,
    num_examples=natural,
    num_response_tokens=natural,
    steps=natural,
    loss_first=st.none() | finite,
    loss_last=st.none() | finite,
    learning_rate=st.none() | finite,
    epochs=st.none() | finite,
    lora_rank=st.none() | st.integers(1, 64),
    other_bases=st.lists(text, max_size=2).map(tuple),
)
evaluation = st.builds(
    EvaluationRecord,
    base=text,
    relation=text,
    data=text,
    num_examples=st.integers(1, 10**6),
    scale=finite,
    base_bits_per_byte=finite,
    donor_bits_per_byte=st.none() | finite,
    adapted_bits_per_byte=finite,
    base_exact_match=share,
    donor_exact_match=share,
    adapted_exact_match=share,
    fewshot_bits_per_byte=st.none() | finite,
    fewshot_exact_match=share,
    num_fewshot=st.none() | natural,
    finetuned_bits_per_byte=st.none() | finite,
    finetuned_exact_match=share,
    gain_recovered=st.none() | finite,
)


def fitted(count: int) -> st.SearchStrategy[RecommendedWeights]:
    return st.builds(
        RecommendedWeights,
        base_fingerprint=digest,
        base=text,
        weights=st.builds(Weights, finite, st.tuples(*[finite] * count), finite),
        data=text,
        num_examples=st.integers(1, 10**6),
        base_bits_per_byte=finite,
        adapted_bits_per_byte=finite,
        expected_gain=st.none() | finite,
        ends_counted=st.booleans(),
        for_vocabulary=st.booleans(),
        scale=finite,
    )


networks = st.tuples(local) | st.tuples(local, named) | st.tuples(named, named)
configs = networks.flatmap(
    lambda given: st.builds(
        ValueAdapterConfig,
        base_model_name_or_path=named_so,
        networks=st.just(given),
        vocabulary=st.builds(VocabularySpec, st.integers(1, 10**6), digest, digest),
        base_model_revision=st.none() | commit,
        connection=st.sampled_from(["residual", "cascade", "cascade_with_text"]),
        scale=finite,
        base_weight=finite,
        end_weight=finite,
        weights=st.lists(fitted(len(given)), max_size=2).map(tuple),
        stop_strings=st.lists(spoken, max_size=2).map(tuple),
        base_prefix=st.none()
        | spoken
        | st.lists(st.builds(Message, spoken, spoken), min_size=1, max_size=2).map(tuple),
        training=st.none() | training,
        evaluation=st.lists(evaluation, max_size=2).map(tuple),
    )
)


@given(configs)
def test_reading_what_was_written(config: ValueAdapterConfig) -> None:
    """read(write(x)) == x, and writing that again gives the same bytes."""
    written = config.to_json()
    again = ValueAdapterConfig.from_json(written)
    assert again == config
    assert again.to_json() == written


def example(**changes: Any) -> str:
    config = {
        "model_type": "value_adapter",
        "format_version": 2,
        "base_model_name_or_path": "user/base",
        "networks": [{"path": "value_network", "sha256": {}}],
        "vocabulary": {"logits_width": 9, "byte_fingerprint": "0" * 64, "behaviour_fingerprint": "1" * 64},
    }
    return json.dumps({key: value for key, value in {**config, **changes}.items() if value != "absent"})


def test_defaults_are_those_of_the_format() -> None:
    """A config.json with the required keys only."""
    config = ValueAdapterConfig.from_json(example())
    assert (config.scale, config.connection, config.base_prefix) == (1.0, "residual", None)
    assert config.networks[0].coefficient == 1.0


WRONG = [
    ({"scale": True}, "'scale' must be a number; got bool"),
    ({"networks": []}, "at least one value network"),
    ({"networks": "absent"}, "key 'networks' is missing"),
    ({"networks": [{"coefficient": 0, "path": "a"}]}, "finite and not 0"),
    ({"networks": [{}]}, "either 'path' or 'repo'"),
    ({"networks": [{"repo": "a/b", "revision": "main"}]}, "40-hex commit"),
    ({"networks": [{"path": "a"}, {"path": "a/b"}]}, "separate directories"),
    ({"networks": [{"path": "a\\b"}]}, "plain relative path"),
    ({"networks": [{"path": "a", "colour": 1}]}, r"unknown key 'colour' in networks\[0\]"),
    ({"connection": "parallel"}, "'connection' must be one of 'residual', 'cascade', 'cascade_with_text'"),
    ({"connection": "telepathy"}, "must be one of 'residual'"),
    ({"base_prefix": 3}, "'base_prefix' must be a string or a list or null; got int 3"),
    ({"base_prefix": ""}, "'base_prefix' is empty"),
    ({"base_prefix": [{"role": "user"}]}, r"'content' is missing in base_prefix\[0\]"),
    ({"architectures": ["Other"]}, "'architectures' must be"),
    ({"vocabulary": {"logits_width": 0, "byte_fingerprint": "", "behaviour_fingerprint": ""}}, "at least 1"),
    ({"format_version": "1"}, "whole number"),
    ({"base_weight": "much"}, "'base_weight' must be a number"),
    ({"end_weight": None}, "'end_weight' must be a number"),
    ({"weights": [{}]}, r"key 'base_fingerprint' is missing in weights\[0\]"),
    ({"stop_strings": [""]}, "'stop_strings' must be texts that are not empty"),
    ({"scales": []}, "unknown key 'scales'"),
    ({"format_version": 1, "base_weight": 1.0}, "unknown key 'base_weight' in config.json of format version 1"),
    ({"format_version": 1, "scales": {"a": 1}}, "'scales' must be a list of objects"),
    ({"format_version": 1, "scales": [{"base": "x"}]}, "'scales' must be a list of objects"),
    ({"base_model_revision": 3}, "a string or null"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_values_name_their_key(changes: dict[str, Any], message: str) -> None:
    """Every message says where, what came, and what was expected."""
    with pytest.raises(ConfigError, match=message):
        ValueAdapterConfig.from_json(example(**changes))


def test_other_files_and_newer_versions() -> None:
    """Another model's config, and a format from the future."""
    with pytest.raises(NotAValueAdapterError, match="model_type 'llama'"):
        ValueAdapterConfig.from_json('{"model_type": "llama"}')
    with pytest.raises(IncompatibleVersionError, match="pip install --upgrade"):
        ValueAdapterConfig.from_json(example(format_version=7))


@pytest.mark.parametrize("path", ["runs", "checkpoint-1/net", "optimizer.pt", "custom_generate", "alignments/x"])
def test_a_network_does_not_lie_where_nothing_is_verified(path: str) -> None:
    """What verification passes over may hold no weights."""
    with pytest.raises(ConfigError, match="not verified"):
        NetworkSpec(path=path)


def test_version_1_gives_the_logits_that_it_gave() -> None:
    """Its coefficients are the weights, on every base, and its scales are the scales that are acted at."""
    measured = {"base_bits_per_byte": 2.0, "adapted_bits_per_byte": 1.0, "data": "d", "num_examples": 3}
    scales = [
        {"base_fingerprint": "a" * 64, "base": f"u/{name}", "scale": s, **measured}
        for name, s in (("x", 0.5), ("y", 2))
    ]
    networks = [{"path": "value_network"}, {"coefficient": -0.5, "repo": "u/b", "revision": "c" * 40}]
    config = ValueAdapterConfig.from_json(example(format_version=1, scale=0.25, scales=scales, networks=networks))
    assert (config.format_version, config.scale) == (2, 0.25)
    assert config.default_weights == Weights(1.0, (1.0, -0.5), 0.0)
    found = [config.weights_for("a" * 64, name) for name in ("u/y", "u/other")]
    assert config.weights_for("a" * 64, "v/y") == found[1]  # another user's: version 1 went by whole names
    assert [(one.weights, one.scale, one.ends_counted) for one in found if one is not None] == [
        (config.default_weights, 2.0, False),
        (config.default_weights, 0.5, False),
    ]
    assert ValueAdapterConfig.from_json(config.to_json()) == config


def test_weights_are_for_the_networks_that_there_are() -> None:
    """One for each."""
    record = {"base_fingerprint": "a" * 64, "base": "u/x", "weights": {"base": 1.0, "networks": [1.0, 2.0]}}
    record |= {"base_bits_per_byte": 2.0, "adapted_bits_per_byte": 1.0, "data": "d", "num_examples": 3}
    with pytest.raises(ConfigError, match="one for each of 1 networks; got 2"):
        ValueAdapterConfig.from_json(example(weights=[record]))
