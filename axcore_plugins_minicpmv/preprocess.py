"""Image preprocessing: valid sizes, and images brought to the static size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import Choice, UnsupportedProfile

from .slicing import Slicing, slicing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from PIL.Image import Image

    from axcore import Job

    Array = np.ndarray[Any, np.dtype[np.float32]]

PATCH_PX = 14
SIDE = 70  # patches along a side that the stored tables have positions for
GRAY = (128, 128, 128)  # what "pad" fills with: nearly 0 once normalised

FIT = Choice(
    ("stretch", "pad", "slice"),
    "how an image meets the static size (the published processor picks a size of the image's"
    " own proportions instead). stretch: one run and 64 tokens, all is seen, proportions change."
    " pad: one run and 64 tokens, proportions stay, gray bars take their share of the patches."
    " slice: the image and up to 9 cells of it, cut as published and each stretched: full"
    " detail, for up to 10 runs and 640 tokens an image",
)


def grid(job: Job) -> tuple[int, int]:
    """Return the number of patches down and across an image of the static size."""
    return job.profile.height // PATCH_PX, job.profile.width // PATCH_PX


def pieces(job: Job, images: Iterable[Image], multiple: int = PATCH_PX) -> Iterator[Array]:
    """Yield the graph's inputs for all `images`; see `samples`."""
    for image in images:
        yield from samples(
            image, job.profile.height, job.profile.width, job.choice("fit"), multiple
        )


def samples(
    image: Image, height: int, width: int, fit: str, multiple: int = PATCH_PX
) -> Iterator[Array]:
    """Yield the graph's inputs for one image.

    Args:
        image: RGB.
        height, width: The static size in px.
        fit: A value of `FIT`; "slice" yields a sample for every piece, in the order of
            `slicing.Slicing.sizes`.
        multiple: Sides of a piece are rounded to multiples of this, in px, before it is resized to
            the static size.

    Yields:
        float32 ``[1, 3, height, width]``, RGB in -1..1.
    """
    if fit == "pad":
        yield normalised(_padded(image, height, width))
        return
    cells = cut(*image.size, fit, multiple)
    for piece in cells.cut(image) if fit == "slice" else [image]:
        yield normalised(_stretched(piece, height, width))


def cut(width: int, height: int, fit: str, multiple: int = PATCH_PX) -> Slicing:
    """Return the pieces that an image of ``width x height`` px is cut into; see `samples`."""
    if fit == "slice":
        return slicing(width, height, multiple=multiple)
    return Slicing((width, height))


def normalised(image: Image) -> Array:
    """Return float32 ``[1, 3, H, W]``: scaled to 0..1, less 0.5, divided by 0.5."""
    import numpy as np

    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
    return np.ascontiguousarray((pixels / 255 - 0.5) / 0.5)


def strip(pixels: Array) -> Array:
    """Lay the patches side by side: ``[1, 3, H, W]`` to ``[1, 3, 14, 14 * N]``, row by row.

    Source: MiniCPM-V-4, ``MiniCPMVImageProcessor.reshape_by_patch``.
    """
    import numpy as np

    _, channels, height, width = pixels.shape
    split = (channels, height // PATCH_PX, PATCH_PX, width // PATCH_PX, PATCH_PX)
    patches = pixels.reshape(split).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(patches.reshape(1, channels, PATCH_PX, -1))


def buckets(count: int, side: int) -> list[int]:
    """Return the table position of each of `count` patches along a side, as upstream rounds it.

    The fraction i / count falls between boundaries k / side. Both are float32, and upstream holds
    `count` in a tensor, so that the step is float32 as well. For some counts, patches on a boundary
    get a position one lower than in exact arithmetic.

    Source: MiniCPM-V-4, ``SiglipVisionEmbeddings.forward``.
    """
    import numpy as np

    boundaries = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)
    step, index = float(np.float32(1) / np.float32(count)), np.arange(count)
    # torch computes a range in blocks of eight: only the first value of each is rounded.
    firsts = (index // 8 * 8 * step).astype(np.float32)
    fractions = (firsts + index % 8 * step).astype(np.float32)
    indices: list[int] = np.searchsorted(boundaries, fractions, side="right").tolist()
    return indices


def position_ids(rows: int, columns: int, side: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return the table index of every patch, int32 ``[1, rows * columns]``."""
    import numpy as np

    down, across = np.array(buckets(rows, side)), np.array(buckets(columns, side))
    ids: np.ndarray[Any, np.dtype[np.int64]] = down[:, None] * side + across
    return ids.reshape(1, -1).astype(np.int32)


def check_size(height: int, width: int, multiple: int = PATCH_PX) -> None:
    """Check that an image size is made of whole cells, and that all patches have positions.

    Args:
        height, width: In px.
        multiple: Side of a cell in px: a patch, or the square that becomes a token.

    Raises:
        UnsupportedProfile: The size does not fit; the hint suggests the nearest that does.
    """
    longest = SIDE * PATCH_PX // multiple * multiple
    if all(side % multiple == 0 and 0 < side <= longest for side in (height, width)):
        return
    nearest = [min(max(round(side / multiple), 1) * multiple, longest) for side in (height, width)]
    raise UnsupportedProfile(
        f"an image of {height}x{width} px (height x width) does not fit: both sides must be"
        f" multiples of {multiple} px, up to {longest} px (a grid of {SIDE}x{SIDE} patches)",
        hint=f"nearest that fits: {nearest[0]}x{nearest[1]}",
    )


def _stretched(image: Image, height: int, width: int) -> Image:
    from PIL.Image import Resampling

    return image.resize((width, height), Resampling.BICUBIC)


def _padded(image: Image, height: int, width: int) -> Image:
    from PIL import Image as PillowImage

    scale = min(width / image.width, height / image.height)
    inner_height = max(1, round(image.height * scale))
    inner_width = max(1, round(image.width * scale))
    canvas = PillowImage.new("RGB", (width, height), GRAY)
    corner = (width - inner_width) // 2, (height - inner_height) // 2
    canvas.paste(_stretched(image, inner_height, inner_width), corner)
    return canvas
