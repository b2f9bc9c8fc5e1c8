"""Answers of a model about images, written to a file one by one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import MANIFEST, Bundle
from ..errors import AxcoreError
from ..plugins import Registry
from ..progress import as_progress
from ..runtime.runner import Runner
from ..runtime.sampling import Sampling
from .images import Question, drawn, images_to_judge, one_line, tried
from .memory import explained_memory
from .predictions import LISTED, PredictionFile, keys_of, sharing_a_base_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..calibration import SourceImage
    from ..progress import Progress
    from ..runtime.contract import Backend

MAX_NEW_TOKENS = 256
_TOO_LARGE = (
    "the model does not fit into memory",
    "close other programs, or use a backend or a --dtype that needs less memory",
)


@dataclass(frozen=True)
class Captions:
    """How a model is asked.

    Attributes:
        question: The question.
        sampling: How tokens are chosen.
        max_new_tokens: Maximum length of an answer, in tokens.
    """

    question: Question = Question()
    sampling: Sampling = Sampling()
    max_new_tokens: int = MAX_NEW_TOKENS

    def ask(self, runner: Runner, image: SourceImage) -> str:
        """Return the answer about one image, independent of earlier ones.

        Raises:
            ImageError: The image cannot be read.
            BudgetError: It makes the prompt too long.
        """
        runner.forget()
        prompt = runner.prepare(self.question.messages(image.load()))
        return "".join(runner.answer(prompt, self.sampling, self.max_new_tokens))


def write_captions(
    bundle: Path,
    images: Path,
    out: Path,
    captions: Captions | None = None,
    *,
    sample: int | None = None,
    seed: int = 1234,
    base_names: bool = False,
    backend: str = "onnx",
    options: Mapping[str, str] | None = None,
    progress: Progress | bool | None = None,
    registry: Registry | None = None,
) -> PredictionFile:
    """Ask about every image and write the answers; a second run continues the first.

    The file is complete after each image. An image that fails is recorded with the reason and
    tried again in the next run. The model is loaded only if an answer is missing.

    Args:
        images: Folder (searched recursively), archive or image.
        out: The prediction file, see `PredictionFile`.
        captions: Question, sampling and length; None takes `Captions`' defaults, which are greedy.
        sample: Number of images to draw at random; None, or more than there are, takes all.
        base_names: Name images by their base names, as the reference side of a comparison does.
        progress: Where to report; warns of images that fail, and of names that a comparison
            would refuse.

    Returns:
        The file. Its errors are of this run; its answers may include those of earlier runs.

    Raises:
        ImageError: There is no image, or none can be read.
        BudgetError: The model does not fit into memory.
        UsageError: The file was written with other settings (such as another build of the model)
            or with unknown ones; or two images would share an entry.
        AxcoreError: The model cannot be run.
    """
    captions, options = captions or Captions(), options or {}
    progress, registry = as_progress(progress), registry or Registry()
    chosen = drawn(images_to_judge(images), sample, seed)
    keys = keys_of([image.name for image in chosen], base_names=base_names)
    _warn_of_shared_names(keys, progress)
    opened = Bundle.open(bundle)
    settings = _settings(opened, captions, backend, options, base_names)
    settings["model_files"] = _model_files(opened, registry.backends.get(backend))
    file = PredictionFile(out, settings)
    file.ask_about(keys.values())
    waiting = [image for image in chosen if keys[image.name] not in file.answers]
    if kept := len(chosen) - len(waiting):
        progress.say(f"{kept} of {len(chosen)} images have their answers already")
    if waiting:
        with explained_memory(*_TOO_LARGE):
            runner = Runner.open(bundle, registry, backend, options, progress, keep_vision=True)
        answer_images(runner, waiting, keys, captions, file, progress)
    return file


def answer_images(
    runner: Runner,
    images: list[SourceImage],
    keys: Mapping[str, str],
    captions: Captions,
    file: PredictionFile,
    progress: Progress,
) -> None:
    """Write an answer, or why there is none, for each of `images`.

    Args:
        keys: Name of an image to its name in the file.

    Raises:
        AxcoreError: Every image failed and the file is empty: the last error.
    """
    failure: AxcoreError | None = None
    for image, made in tried("answer", images, partial(captions.ask, runner), progress):
        if isinstance(made, AxcoreError):
            file.fail(keys[image.name], one_line(made))
            failure = made
        else:
            file.record(keys[image.name], made)
    if failure and not file.answers:
        raise failure


def _settings(
    bundle: Bundle, captions: Captions, backend: str, options: Mapping[str, str], base_names: bool
) -> dict[str, Any]:
    """Return what the answers depend on. Not the draw of images: a later run may add others."""
    manifest = (bundle.folder / MANIFEST).read_bytes()
    return {
        "model": bundle.manifest.model.id,
        "task": bundle.manifest.model.task,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        **asdict(captions),
        "backend": backend,
        "options": dict(options),
        "base_names": base_names,
    }


def _model_files(bundle: Bundle, backend: Backend | None) -> str:
    """Return the SHA-256 of the names, sizes and times of a build's files, not of gigabytes."""
    read = (path for path in bundle.folder.iterdir() if backend and backend.reads(path.name))
    stats = ((path.name, path.stat()) for path in sorted(read))
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _warn_of_shared_names(images: Iterable[str], progress: Progress) -> None:
    if sharing := sharing_a_base_name(images):
        progress.warn(
            f"{len(sharing)} images share the base name `{Path(sharing[0]).name}`"
            f" ({', '.join(sharing[:LISTED])}): clip-score and agreement match answers by base name"
            " and will refuse this file"
        )
