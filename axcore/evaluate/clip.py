"""CLIP score: the cosine similarity of an image and a text about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..calibration import SourceImage, files_below, find_images
from ..calibration.parallel import in_order
from ..errors import ImageError
from ..progress import Progress, as_progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .clip_model import Clip

    Array = np.ndarray[Any, Any]

T = TypeVar("T")

IMAGES = 8  # in one forward pass
TEXTS = 32
LISTED = 5  # images named in one message


@dataclass(frozen=True)
class ClipScores:
    """CLIP scores, neither scaled nor clamped.

    Attributes:
        names: The images that were scored.
        values: float64 ``[sides, images]``, each between -1 and 1.
        skipped: Image that could not be read, to the reason.
    """

    names: tuple[str, ...]
    values: Array
    skipped: Mapping[str, str]

    @property
    def means(self) -> tuple[float, ...]:
        """The score of each side: the mean over its images."""
        return tuple(float(mean) for mean in self.values.mean(axis=1))


def images_by_name(source: Path, names: Iterable[str]) -> dict[str, SourceImage]:
    """Find images by their base names.

    Args:
        source: A folder, searched recursively, or whatever `find_images` takes.

    Returns:
        Base name to image. No image is read.

    Raises:
        ImageError: `source` cannot be read, an image is missing, or two share a name.
    """
    wanted = set(names)
    found: dict[str, SourceImage] = {}
    for image in _candidates(source):
        name = Path(image.name).name
        if name in wanted and name in found:
            raise ImageError(
                f"two images are called `{name}`\n  {found[name].name}\n  {image.name}",
                hint="images are found by base name: leave one of the two out",
            )
        if name in wanted:
            found[name] = image
    if missing := sorted(wanted - found.keys()):
        more = ", ..." if len(missing) > LISTED else ""
        raise ImageError(
            f"{len(missing)} of {len(wanted)} images are not in {source}\n"
            f"  missing: {', '.join(missing[:LISTED])}{more}",
            hint="give the images of the answers with --images",
        )
    return found


def clip_scores(
    clip: Clip,
    answers: Mapping[str, tuple[str, ...]],
    images: Mapping[str, SourceImage],
    progress: Progress | bool | None = None,
) -> ClipScores:
    """Score the answers of one side or several; equal images and texts are computed once.

    EXIF orientation is not applied, because open_clip's own ``preprocess(Image.open(path))``, whose
    scores these are to equal, does not apply it either.

    Args:
        answers: Image to one answer per side, as `match` returns them.
        images: Each of them, as `images_by_name` returns them.
        progress: Where to report; warns of images that cannot be read, which are left out.

    Raises:
        ImageError: No image can be read.
        CheckpointError: Features are not finite.
    """
    progress = as_progress(progress)
    embedded, skipped = _image_features(clip, {name: images[name] for name in answers}, progress)
    if not embedded:
        raise ImageError(
            f"none of {len(answers)} images can be read\n  {next(iter(skipped.values()), '')}",
            hint="check the folder given with --images",
        )
    texts = _text_features(clip, {text for name in embedded for text in answers[name]}, progress)
    values = [[embedded[name] @ texts[text] for text in answers[name]] for name in embedded]
    return ClipScores(tuple(embedded), np.array(values, np.float64).T, skipped)


def _candidates(source: Path) -> list[SourceImage]:
    if not source.is_dir():
        return find_images([source])
    # By name, not by content: a damaged image has to be found to be reported.
    return [SourceImage.of_file(path) for path in sorted(files_below(source))]


def _image_features(
    clip: Clip, images: Mapping[str, SourceImage], progress: Progress
) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the feature of every readable image, and why the others are not."""
    features: dict[str, Array] = {}
    skipped: dict[str, str] = {}
    with progress.task("judge images", len(images), "images") as task:
        loaded = in_order(partial(_load, clip), images.values())
        for group in _grouped(zip(images, loaded, strict=True), IMAGES):
            good = {name: pixels for name, pixels in group if not isinstance(pixels, str)}
            for name, reason in group:
                if isinstance(reason, str):
                    skipped[name] = reason
                    progress.warn(f"left out: {reason}")
            if good:
                made = clip.image_features(np.stack(list(good.values())))
                features.update(zip(good, made, strict=True))
            task.advance(len(group))
    return features, skipped


def _load(clip: Clip, image: SourceImage) -> Array | str:
    """Return the pixels of an image as it is stored, or why it cannot be read."""
    try:
        with image.loaded(upright=False) as shown:
            return clip.pixels(shown)
    except ImageError as error:
        return error.message


def _text_features(clip: Clip, texts: Iterable[str], progress: Progress) -> dict[str, Array]:
    features: dict[str, Array] = {}
    # Texts of like length together: a group is as long as its longest.
    ordered = sorted(texts, key=lambda text: (len(text), text))
    with progress.task("judge answers", len(ordered), "answers") as task:
        for group in _grouped(ordered, TEXTS):
            features.update(zip(group, clip.text_features(group), strict=True))
            task.advance(len(group))
    return features


def _grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
