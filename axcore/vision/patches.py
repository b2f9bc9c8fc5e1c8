"""Images cut into patches, several frames deep, and the sizes of images for which that works."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import UnsupportedProfile

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class PatchGrid:
    """How a tower cuts an image: square patches, and square cells of them that become one token.

    A size fits if the published image processor would keep it: it is made of whole cells, and its
    area and its ratio are within bounds.

    Attributes:
        patch_px: Side of a patch.
        min_px, max_px: Bounds of an image's area.
        merge: Patches along each side of a cell.
        frames: Frames that a patch is deep; a still image is shown so often.
        max_ratio: How many times a side may be as long as the other.
    """

    patch_px: int
    min_px: int
    max_px: int
    merge: int = 2
    frames: int = 2
    max_ratio: int = 200

    @property
    def cell_px(self) -> int:
        """Side of a cell."""
        return self.patch_px * self.merge

    @property
    def columns(self) -> int:
        """Values of one patch and channel."""
        return self.frames * self.patch_px**2

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of cells of an image that fits."""
        return height // self.cell_px, width // self.cell_px

    def patches(
        self, frames: Sequence[Image.Image], height: int, width: int
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize frames and cut them into patches, listed cell by cell.

        Args:
            frames: RGB images, as many as a patch is deep; the last fills what is missing.
            height: Target height in px, a multiple of a cell's side.
            width: Target width in px, likewise.

        Returns:
            uint8 ``[N, frames * patch_px**2, 3]`` with N = height * width / patch_px**2: row n is
            a patch, column ``(frame * patch_px + y) * patch_px + x`` a pixel of it, channels R, G,
            B.

        Source: transformers, ``patchify`` of the image processors with a ``merge_size``.
        """
        size = (width, height)
        resized = [frame.convert("RGB").resize(size, Image.Resampling.BICUBIC) for frame in frames]
        last = len(resized) - 1
        pixels = np.stack([np.asarray(resized[min(i, last)]) for i in range(self.frames)])
        rows, columns = self.cells(height, width)
        blocks = (rows, self.merge, self.patch_px, columns, self.merge, self.patch_px)
        listed = pixels.reshape(self.frames, *blocks, 3).transpose(1, 4, 2, 5, 0, 3, 6, 7)
        return np.ascontiguousarray(listed.reshape(-1, self.columns, 3))

    def check(self, height: int, width: int) -> None:
        """Check that the tower can take an image size.

        Raises:
            UnsupportedProfile: It cannot; the message says why, the hint suggests sizes.
        """
        if reason := self._misfit(height, width):
            nearest = " or ".join(f"{h}x{w}" for h, w in self.nearest(height, width))
            raise UnsupportedProfile(
                f"an image of {height}x{width} px (height x width) does not fit: {reason}",
                hint=f"nearest that fit: {nearest}",
            )

    def nearest(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the one or two sizes that fit, below and above, nearest to a size in px."""
        cell, ratio = self.cell_px, self.max_ratio
        height, width = max(height, cell), max(width, cell)
        area = height * width
        scale = sqrt(min(self.max_px, max(self.min_px, area)) / area)
        found = set()
        for rounded in (floor, ceil):
            rows, columns = (
                max(1, rounded(side * scale / cell)) * cell for side in (height, width)
            )
            found.add((min(rows, ratio * columns), min(columns, ratio * rows)))
        return sorted(size for size in found if not self._misfit(*size))

    def _misfit(self, height: int, width: int) -> str:
        """Return what is wrong with a size; an empty string if nothing is."""
        if min(height, width) <= 0 or height % self.cell_px or width % self.cell_px:
            return f"both sides must be multiples of {self.cell_px} px"
        if not self.min_px <= height * width <= self.max_px:
            return f"its area of {height * width} px is outside {self.min_px}..{self.max_px} px"
        if max(height, width) > self.max_ratio * min(height, width):
            return f"one side is more than {self.max_ratio} times the other"
        return ""
