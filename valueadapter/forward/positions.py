"""Whether the positions of a call's tokens say that a row is one text, or that several are packed into it.

A network of another vocabulary, and a prefix, are for one text a row: the first would read all texts of a packed row as
one, the second stands before the first text only. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from valueadapter.errors import UnsupportedModeError

PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments by which collators that pack without padding say where each text begins."""


def places_of(position_ids: torch.Tensor | None, rows: int, length: int) -> list[list[int]] | None:
    """The position of every token, row by row; None where there are none.

    Args:
        position_ids: (batch, seq) or (1, seq); (planes, batch, seq) for models with positions of several kinds.
        rows: rows of the batch.
        length: tokens of this call.

    Raises:
        UnsupportedModeError: another shape, or planes that differ, as they do around images.
    """
    if position_ids is None:
        return None
    planes = position_ids if position_ids.ndim == 3 else position_ids[None]
    if planes.ndim != 3 or planes.shape[1] not in (1, rows) or planes.shape[2] != length:
        raise UnsupportedModeError(
            f"expected position_ids of (batch, seq), here {(rows, length)}; got {tuple(position_ids.shape)}"
        )
    if bool((planes != planes[:1]).any()):
        raise UnsupportedModeError(
            "position_ids of several kinds differ, as around images; a network of another vocabulary and a base prefix "
            f"are for text alone. {_REMEDY}"
        )
    return planes[0].expand(rows, -1).tolist()


def check_goes_on(
    places: Sequence[int], real: Sequence[bool], *, past: Sequence[bool] = (), past_places: Sequence[int | None] = ()
) -> None:
    """Raises unless each token of a row stands one behind the token before it.

    Padding between two tokens may be counted or not, and the first token of a text may have any position.

    Args:
        places: the position of each token of this call.
        real: which of them are tokens; the others are padding.
        past: the same of the calls before.
        past_places: their positions, None where none were given, so that the model has counted by itself.

    Raises:
        UnsupportedModeError: the positions begin anew, stand still or leap.
    """
    column = next((at for at in range(len(past) - 1, -1, -1) if past[at]), None)
    before = past_places[column] if column is not None else None
    for at, (place, is_text) in enumerate(zip(places, real, strict=True)):
        if not is_text:
            continue
        here = len(past) + at
        if column is not None:
            allowed = {before + 1, before + here - column} if before is not None else {sum(past), here}
            if place not in allowed:
                raise UnsupportedModeError(
                    f"position_ids go from {'what was counted' if before is None else before} to {place} within a row, "
                    f"so that it is several texts (packing, padding_free), and here it is read as one. {_REMEDY}"
                )
        column, before = here, place


def check_one_text(position_ids: torch.Tensor | None, mask: torch.Tensor | None, rows: int, length: int) -> None:
    """Raises unless the tokens of a call are one text in every row.

    Args:
        position_ids: as in `places_of`.
        mask: (batch, past + seq), 0 where there is padding; None where there is none.
        rows: rows of the batch.
        length: tokens of this call.

    Raises:
        UnsupportedModeError: as `places_of` and `check_goes_on`.
    """
    if length < 2:
        return  # a step of decoding, which may be compiled
    places = places_of(position_ids, rows, length)
    real = [[True] * length] * rows if mask is None else mask[:, -length:].bool().tolist()
    for own, each in zip(places or [], real, strict=places is not None):
        check_goes_on(own, each)


def check_not_packed(more: Mapping[str, Any], rows: int) -> None:
    """Raises where arguments of a call say that its rows hold several texts.

    Args:
        more: arguments, among them perhaps some of `PACKING`.
        rows: rows of the batch.

    Raises:
        UnsupportedModeError: there are more texts than rows.
    """
    texts = [len(more[key]) - 1 for key in ("cu_seq_lens_q", "cu_seq_lens_k") if more.get(key) is not None]
    if (numbers := more.get("seq_idx")) is not None:
        texts.append(rows + int((torch.diff(numbers, dim=-1) != 0).sum()))
    if max(texts, default=0) > rows:
        raise UnsupportedModeError(
            f"{rows} rows hold {max(texts)} texts (packing, padding_free), and here a row is read as one. {_REMEDY}"
        )


_REMEDY = (
    "Give each text a row of its own, padded, with an attention_mask; packed rows are for networks of the base's own "
    "vocabulary without a prefix"
)
