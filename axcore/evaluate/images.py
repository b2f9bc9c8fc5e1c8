"""The images of an evaluation: finding, drawing, and skipping those that fail."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..calibration import SourceImage, files_below, find_images
from ..errors import AxcoreError
from .memory import explained_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

    from ..progress import Progress

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DESCRIBE = "Describe this image in detail."


@dataclass(frozen=True)
class Question:
    """What is asked of every image.

    Attributes:
        prompt: The user's words, behind the image.
        system: System message; None uses the model's default.
    """

    prompt: str = DESCRIBE
    system: str | None = None

    def messages(self, image: Image | None) -> list[dict[str, Any]]:
        """Return the conversation, in the form that `prepare_prompt` takes."""
        before: list[dict[str, Any]] = []
        if self.system is not None:
            before = [{"role": "system", "content": self.system}]
        shown = [] if image is None else [{"type": "image", "image": image}]
        content = [*shown, {"type": "text", "text": self.prompt}]
        return [*before, {"role": "user", "content": content}]


def images_to_judge(source: Path) -> list[SourceImage]:
    """Return the files that are images by content or by name.

    So damaged and empty image files are reported rather than ignored.

    Raises:
        ImageError: No file is an image by its content.
    """
    found = {image.name: image for image in find_images([source])}
    if source.is_dir():
        for path in files_below(source):
            if path.suffix.lower() in SUFFIXES:
                found.setdefault(str(path), SourceImage.of_file(path))
    return [found[name] for name in sorted(found, key=lambda name: Path(name).parts)]


def drawn(images: Sequence[SourceImage], count: int | None, seed: int) -> list[SourceImage]:
    """Draw `count` images, in their order; all if it is None or more than there are.

    The same images and seed give the same draw.
    """
    if count is None or count >= len(images):
        return list(images)
    chosen = random.Random(seed).sample(range(len(images)), count)  # noqa: S311 - no secret
    return [images[index] for index in sorted(chosen)]


def tried(
    label: str, images: Sequence[SourceImage], work: Callable[[SourceImage], T], progress: Progress
) -> Iterator[tuple[SourceImage, T | AxcoreError]]:
    """Yield each image with the result of `work`, or with the error it raised."""
    with progress.task(label, len(images), "images") as task:
        for image in images:
            made = _attempt(partial(work, image), image)
            if isinstance(made, AxcoreError):
                progress.warn(f"left out: {one_line(made)}")
            yield image, made
            task.advance()


def one_line(error: AxcoreError) -> str:
    """Return an error's message without its line breaks."""
    return "; ".join(line.strip() for line in error.message.splitlines())


def _attempt(work: Callable[[], T], image: SourceImage) -> T | AxcoreError:
    fact = f"`{image.name}` does not fit into memory"
    try:
        with explained_memory(fact, "close other programs, or leave the image out"):
            return work()
    except AxcoreError as error:
        return error
    except RuntimeError as error:  # what engines raise
        made = AxcoreError(f"`{image.name}` could not be run\n  {error}")
        made.__cause__ = error
        return made
