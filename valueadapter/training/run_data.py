"""What a run reads: the demonstrations that are trained on, shown before each, or held out; knows no models."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from valueadapter.artifact.config import Prefix
from valueadapter.artifact.config.prefix import Recorded, as_prefix
from valueadapter.demonstrations.record_checks import shape_of
from valueadapter.demonstrations.responses import same_demonstration, separators
from valueadapter.demonstrations.selection import draw
from valueadapter.demonstrations.sources import Demonstrations
from valueadapter.demonstrations.tokenized import as_context, load_demonstrations
from valueadapter.errors import ConfigError
from valueadapter.training.recipe_settings import (
    HELD_OUT_LEAST,
    HELD_OUT_MOST,
    HELD_OUT_SHARE,
    PREFIX_EXAMPLES,
    Recipe,
)


def demonstrations_of(recipe: Recipe) -> Demonstrations:
    """All demonstrations that a recipe names, or the first of them."""
    data = load_demonstrations(recipe.data, split=recipe.split or "train")
    return data if recipe.limit is None or recipe.limit >= len(data) else data.select(range(recipe.limit))


def data_and_prefix(recipe: Recipe) -> tuple[Demonstrations, Prefix | None]:
    """The demonstrations to train on, and what the base reads before each."""
    data, given = demonstrations_of(recipe), recipe.base_prefix
    count = recipe.base_prefix_examples
    if count is None:
        shapes = {shape_of(record) for record in data}  # plain text shows nothing, and a context is of one shape
        count = 0 if given is not None or "text" in shapes or len(shapes) > 1 else PREFIX_EXAMPLES
    if not count:
        return data, None if isinstance(given, Recorded) else as_prefix(given)
    if given is not None:
        raise ConfigError("base_prefix and base_prefix_examples exclude each other; give one of them")
    drawn = draw(list(data), count, seed=int(recipe.arguments.get("seed", 0))) if count < len(data) else list(data)
    rest = [index for index in range(len(data)) if data[index] not in drawn]
    if not rest:
        raise ConfigError(
            f"base_prefix_examples={count} leaves nothing to train on of {len(data)} demonstrations; take fewer "
            "(0: no prefix)"
        )
    return data.select(rest), as_prefix(as_context(drawn))


def with_some_held_out(recipe: Recipe, data: Demonstrations) -> tuple[Demonstrations, list[Any]]:
    """The demonstrations to train on, and a few that are held out."""
    count = min(HELD_OUT_MOST, len(data) // HELD_OUT_SHARE) if len(data) >= HELD_OUT_LEAST else 0
    if recipe.arguments.get("release_base"):  # whose memory is needed to fit
        count = 0
    drawn = sorted(random.Random(int(recipe.arguments.get("seed", 0))).sample(range(len(data)), count))
    taken = {same_demonstration(data[index]) for index in drawn}  # one that occurs again is held out there, too
    rest = [index for index in range(len(data)) if same_demonstration(data[index]) not in taken] if taken else None
    if not rest:
        return data, []
    return data.select(rest), [data[index] for index in drawn]


def check_room(demonstrations: Iterable[Sequence[int]], prefix: int, limit: int | None) -> None:
    """Whether prefix and demonstration can be read as one text.

    Args:
        demonstrations: ids of each.
        prefix: tokens that are read before them.
        limit: tokens that the base reads at most, where it says so.

    Raises:
        ConfigError: the longest does not fit; says by how much.
    """
    longest = max(map(len, demonstrations), default=0)
    if limit is not None and prefix + longest > limit:
        raise ConfigError(
            f"the prefix has {prefix:,} tokens and the longest demonstration {longest:,}, and the base reads {limit:,} "
            "at most; give a lower base_prefix_examples (--base-prefix-examples) or max_length (--max-length)"
        )


def stop_strings_of(recipe: Recipe, prefix: Prefix | None) -> tuple[str, ...]:
    """What ends an answer behind a prefix that the run wrote of demonstrations: what stands between them."""
    written = recipe.base_prefix is None and isinstance(prefix, str)
    return separators(demonstrations_of(recipe)) if written else ()


def name_of_data(recipe: Recipe) -> str:
    """A Hub ID as it is, the name of a file without its place, and nothing of what objects hold."""
    data = recipe.data
    if recipe.data_name:
        return recipe.data_name
    if not isinstance(data, (str, Path)):
        return "unnamed"
    return Path(data).name if Path(data).exists() else str(data)
