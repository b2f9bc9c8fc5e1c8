"""Prompts of models whose positions have three axes: time, height and width."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..calibration.images import read_image
from ..errors import UsageError
from ..plain import shown
from .prompt import Control, Rows, encode_prompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from PIL.Image import Image
    from tokenizers import Tokenizer

    Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Grid:
    """A placeholder for rows of the vision side that lie on a grid.

    Attributes:
        marker: Repeated for every row.
        steps, rows, columns: Of the grid, one behind another in time.
        interval: Positions in time from one step to the next, a float32 whose multiples are
            truncated.
    """

    marker: str
    steps: int
    rows: int
    columns: int
    interval: float = 0.0

    @property
    def count(self) -> int:
        """Rows of the vision side."""
        return self.steps * self.rows * self.columns


def encode_grids(
    tokenizer: Tokenizer, pieces: Sequence[str | Control | Grid]
) -> tuple[Ints, Ints, Ints]:
    """Encode a prompt and place its tokens along the three axes.

    Text counts up in all three. The rows of a grid begin where the text before it stopped; text
    behind it goes on one position behind its longer side.

    Args:
        tokenizer: From `load_tokenizer`, which has checked the markers.
        pieces: As for `encode_prompt`.

    Returns:
        The ids, int64 ``[n]``; the positions, int64 ``[3, n]``; the indices of the grids' rows,
        int64 ``[m]``.

    Raises:
        UsageError, BudgetError, CheckpointError: See `encode_prompt`.

    Source: transformers, ``get_rope_index``.
    """
    import numpy as np

    grids = [piece for piece in pieces if isinstance(piece, Grid)]
    ids, runs = encode_prompt(
        tokenizer, [Rows(p.marker, p.count) if isinstance(p, Grid) else p for p in pieces]
    )
    places, start, position = list[Any](), 0, 0
    for grid, run in zip(grids, runs, strict=True):
        text = int(run[0]) - start
        places += [_counted(text) + position, _axes(grid) + position + text]
        position += text + max(grid.rows, grid.columns)
        start = int(run[-1]) + 1
    places.append(_counted(len(ids) - start) + position)
    return ids, np.concatenate(places, 1), np.concatenate([np.empty(0, np.int64), *runs])


def read_video(part: Mapping[str, Any], fps: float) -> tuple[list[Image], float]:
    """Return the frames of a message's part of type ``video``, and how many of them a second has.

    Args:
        part: ``{"type": "video", "video": [images or files], "fps": ...}``.
        fps: Where the part says nothing.

    Raises:
        ImageError: A frame cannot be read.
        UsageError: There is no frame, or ``fps`` is no number above 0.
    """
    frames, rate = part["video"], part.get("fps", fps)
    if not isinstance(frames, (list, tuple)) or not frames:
        raise UsageError("a message has a video without frames", hint="give at least one frame")
    if not isinstance(rate, (int, float)) or not isfinite(rate) or rate <= 0:
        raise UsageError(
            f"a video has the fps {shown(rate)}", hint="give the frames per second that it shows"
        )
    return [read_image(frame) for frame in frames], float(rate)


def _counted(length: int) -> Ints:
    import numpy as np

    return np.tile(np.arange(length), (3, 1))


def _axes(grid: Grid) -> Ints:
    """Return int64 ``[3, count]``: step in time, row and column of every row of the grid."""
    import numpy as np

    # float32 as in transformers, because the product is truncated.
    time = (np.arange(grid.steps, dtype=np.float32) * np.float32(grid.interval)).astype(np.int64)
    axes = np.meshgrid(time, np.arange(grid.rows), np.arange(grid.columns), indexing="ij")
    return np.stack(axes).reshape(3, -1)
