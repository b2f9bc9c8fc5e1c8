"""CLIP score: the cosine of a picture and of what was said about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..calibration import Picture, find_pictures
from ..calibration.parallel import in_order
from ..errors import PictureError
from ..progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np

    from .clip_model import Clip

    Array = np.ndarray[Any, Any]

T = TypeVar("T")

PICTURES = 8  # in one forward pass
TEXTS = 32
LISTED = 5  # pictures named in one message


@dataclass(frozen=True)
class ClipScores:
    """Raw scores.

    Attributes:
        names: The pictures that were scored.
        values: float64 ``[sides, pictures]``, each between -1 and 1.
        skipped: Picture that could not be read, to why.
    """

    names: tuple[str, ...]
    values: Array
    skipped: Mapping[str, str]

    @property
    def means(self) -> tuple[float, ...]:
        """The score of each side: the mean over its pictures, neither scaled nor clamped."""
        return tuple(float(mean) for mean in self.values.mean(axis=1))


def pictures_by_name(source: Path, names: Iterable[str]) -> dict[str, Picture]:
    """Find pictures by their base names.

    Args:
        source: A folder, searched with all below it, or whatever `find_pictures` takes.
        names: Base names.

    Returns:
        The pictures asked for; whether they can be read shows later.

    Raises:
        PictureError: `source` cannot be read, some picture is not there, or two have its name.
    """
    wanted = set(names)
    found: dict[str, Picture] = {}
    for picture in _candidates(source):
        name = Path(picture.name).name
        if name in wanted and name in found:
            raise PictureError(
                f"two pictures are called `{name}`\n  {found[name].name}\n  {picture.name}",
                hint="pictures are found by base name: leave one of the two out",
            )
        if name in wanted:
            found[name] = picture
    if missing := sorted(wanted - found.keys()):
        more = ", ..." if len(missing) > LISTED else ""
        raise PictureError(
            f"{len(missing)} of {len(wanted)} pictures are not in {source}\n"
            f"  missing: {', '.join(missing[:LISTED])}{more}",
            hint="give with --images the pictures that the answers are about",
        )
    return found


def clip_scores(
    clip: Clip,
    answers: Mapping[str, tuple[str, ...]],
    pictures: Mapping[str, Picture],
    progress: Progress | None = None,
) -> ClipScores:
    """Score the answers of one side or of several; equal pictures and texts are computed once.

    Pictures are judged as they are stored: unlike what the models see, they are not turned upright
    by their EXIF orientation, because open_clip's own ``preprocess(Image.open(path))``, whose
    scores these are to equal, does not turn them either.

    Args:
        clip: The judge.
        answers: Picture to one answer per side, as `match` returns them.
        pictures: Each of them, as `pictures_by_name` returns them.
        progress: Where to report; warned of pictures that cannot be read, which are left out.

    Raises:
        PictureError: No picture can be read.
        CheckpointError: The weights yield no finite numbers.
    """
    import numpy as np

    progress = progress or Silent()
    images, skipped = _image_features(clip, {name: pictures[name] for name in answers}, progress)
    if not images:
        raise PictureError(
            f"none of {len(answers)} pictures can be read\n  {next(iter(skipped.values()), '')}",
            hint="check the folder given with --images",
        )
    texts = _text_features(clip, {text for name in images for text in answers[name]}, progress)
    values = [[images[name] @ texts[text] for text in answers[name]] for name in images]
    return ClipScores(tuple(images), np.array(values, np.float64).T, skipped)


def _candidates(source: Path) -> list[Picture]:
    if not source.is_dir():
        return find_pictures([source])
    # By name, not by content: a damaged picture has to be found to be reported.
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return [Picture(str(path), path.read_bytes) for path in files]


def _image_features(
    clip: Clip, pictures: Mapping[str, Picture], progress: Progress
) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the feature of every readable picture, and why the others are not."""
    import numpy as np

    features: dict[str, Array] = {}
    skipped: dict[str, str] = {}
    with progress.task("judge pictures", len(pictures), "pictures") as task:
        loaded = in_order(partial(_load, clip), pictures.values())
        for group in _grouped(zip(pictures, loaded, strict=True), PICTURES):
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


def _load(clip: Clip, picture: Picture) -> Array | str:
    """Return the pixels of a picture as it is stored, or why it cannot be read."""
    try:
        return clip.pixels(picture.load(upright=False))
    except PictureError as error:
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
