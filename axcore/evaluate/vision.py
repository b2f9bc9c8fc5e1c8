"""Compare the vision features of a backend, a quantised graph or a board with a reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..choices import resolve
from ..errors import AxcoreError, GraphError, UsageError
from ..plugins import Registry
from ..progress import as_progress
from ..runtime.deployment import Deployment
from ..runtime.engine import load_engine
from ..runtime.runner import available_backend
from ..runtime.vision import VisionSessions
from .fidelity import Fidelity, dumped_features, fidelity, load_features, worst_first
from .images import Question, images_to_judge, one_line, tried
from .memory import explained_memory
from .predictions import keys_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..calibration import SourceImage
    from ..component import Port, Sample
    from ..progress import Progress
    from ..runtime.engine import Node, Session
    from ..runtime.vision import VisionModel

Array = np.ndarray[Any, Any]
Named = dict[str, Array]


@dataclass(frozen=True)
class VisionFidelity:
    """How close the features are to the reference.

    Attributes:
        results: One per image and component, the worst first.
        skipped: Image that failed, to why.
    """

    results: tuple[Fidelity, ...]
    skipped: Mapping[str, str]


def measure_vision(
    bundle: Path,
    images: Path,
    *,
    backend: str = "onnx",
    onnx: Sequence[Path] = (),
    features: Path | None = None,
    against: str = "torch",
    options: Mapping[str, str] | None = None,
    reference_options: Mapping[str, str] | None = None,
    progress: Progress | bool | None = None,
    registry: Registry | None = None,
) -> VisionFidelity:
    """Compare features image by image and component by component.

    The features of a component are its first output; further outputs are compared under the name
    ``component/output``. If an image is run in several pieces (tiles, slices), their features are
    stacked along a new first axis.

    Args:
        images: Folder (searched recursively), archive or image.
        backend: Computes the features to compare, unless `onnx` or `features` is given.
        onnx: Files, such as quantised graphs, that replace the exported graphs with the same inputs
            and outputs; the other graphs are used as they are.
        features: Folder of features computed elsewhere, see `dumped_features`. Components without a
            folder in it are not compared.
        against: Backend that is the reference.
        options: Options of the backend that is compared, never of the reference. `onnx` and
            `features` take none.
        reference_options: Options of the reference; by default PyTorch computes in float32.
        progress: Where to report; warned of images that fail.

    Raises:
        ImageError: There is no image, or none can be read.
        UsageError: `onnx` and `features` are both given, there is nothing to compare, or a
            backend has no such option.
        GraphError: A file of `onnx` is not a model, or matches no graph.
        BudgetError: A side does not fit into memory.
        AxcoreError: A side cannot be run.
    """
    progress, registry, options = as_progress(progress), registry or Registry(), options or {}
    if onnx and features:
        raise UsageError(
            "ONNX files and features were both given", hint="give --onnx or --features, not both"
        )
    deployment = Deployment.open(bundle, registry, progress)
    side: VisionModel | _Dump
    if onnx or features:
        resolve("a comparison of files", {}, options)
        side = _Dump.find(features, deployment) if features else _with_files(deployment, onnx)
    else:
        side = _open(deployment, backend, options, registry)
    reference = _open(deployment, against, reference_options or {}, registry)
    shown = images_to_judge(images)
    if features:
        keys_of([image.name for image in shown], base_names=True)
    # Before the first image: what keeps a side from opening would else be told of every image.
    hint = "free memory, or compare on a machine that has more"
    with explained_memory("the vision side does not fit into memory", hint):
        side.open()
        reference.open()
    return _compare(deployment, shown, side, reference, progress)


def _compare(
    deployment: Deployment,
    images: Sequence[SourceImage],
    side: VisionModel | _Dump,
    reference: VisionModel,
    progress: Progress,
) -> VisionFidelity:
    def work(image: SourceImage) -> list[Fidelity]:
        shown = _samples(deployment, image)
        ours = side.of(image) if isinstance(side, _Dump) else _features(side, shown)
        theirs = _features(reference, shown)
        compared = [name for name in ours if name in theirs]
        return [fidelity(image.name, name, ours[name], theirs[name]) for name in compared]

    results: list[Fidelity] = []
    skipped: dict[str, str] = {}
    failure: AxcoreError | None = None
    for image, made in tried("compare", images, work, progress):
        if isinstance(made, AxcoreError):
            skipped[image.name], failure = one_line(made), made
        else:
            results += made
    if failure and not results:
        raise failure
    return VisionFidelity(tuple(worst_first(results)), skipped)


def _samples(deployment: Deployment, image: SourceImage) -> Mapping[str, Sequence[Sample]]:
    """Turn an image into the inputs of the vision side, as a prompt does: by chain."""
    messages = Question().messages(image.load())
    prompt = deployment.hook("prepare_prompt", job=deployment.job, messages=messages)
    images: Mapping[str, Sequence[Sample]] = prompt.images
    return images


@dataclass(frozen=True)
class _Dump:
    """Features of some components, read from a folder."""

    folder: Path
    components: tuple[str, ...]

    @classmethod
    def find(cls, folder: Path, deployment: Deployment) -> _Dump:
        """Look for the components of a model.

        Raises:
            UsageError: There are none.
        """
        names = tuple(dict.fromkeys(graph.component for graph in deployment.graphs))
        there = tuple(name for name in names if (folder / name).is_dir())
        if not there:
            missing = f"has no folder {' or '.join(names)}" if folder.is_dir() else "is no folder"
            raise UsageError(
                f"{folder} {missing}",
                hint="save the features of photo.jpg in"
                f" {dumped_features(folder, names[-1], 'photo.jpg')}",
            )
        return cls(folder, there)

    def open(self) -> None:
        """Do nothing: each image has files of its own."""

    def of(self, image: SourceImage) -> Named:
        name = Path(image.name).name
        return {
            part: load_features(dumped_features(self.folder, part, name))
            for part in self.components
        }


def _features(model: VisionModel, shown: Mapping[str, Sequence[Sample]]) -> Named:
    found: Named = {}
    for first, samples in shown.items():
        made = [model.features(sample, first) for sample in samples]
        found |= {name: np.stack([one[name] for one in made]) for name in made[0]} if made else {}
    return found


def _open(
    deployment: Deployment, name: str, options: Mapping[str, str], registry: Registry
) -> VisionModel:
    found = available_backend(name, registry)
    return found.vision(deployment, resolve(f"backend `{name}`", found.options, options))


# ONNX files in place of graphs -------------------------------------------------------------------


def _with_files(deployment: Deployment, files: Sequence[Path]) -> VisionSessions:
    """Return the exported graphs under ONNX Runtime, with `files` in place of those they match."""
    instead = {_place(deployment, path): path for path in files}
    if len(instead) < len(files):
        raise UsageError(
            f"{len(files)} files replace only {len(instead)} graphs",
            hint="give one file for each graph",
        )
    return VisionSessions(deployment, load_engine("onnx", mapped=True), ".onnx", instead)


def _place(deployment: Deployment, path: Path) -> str:
    """Return the stem of the graph that has the inputs and outputs of `path`.

    Where several have them, the file's name must begin with the stem.
    """
    session = _opened(path)
    sides = session.get_inputs(), session.get_outputs()
    fitting = [
        graph.stem
        for graph in deployment.graphs
        if all(map(_same, (graph.inputs, graph.outputs), sides))
    ]
    if len(fitting) > 1:
        fitting = [stem for stem in fitting if path.stem.startswith(stem)]
    if len(fitting) != 1:
        raise GraphError(
            f"{path} matches no graph of {deployment.folder}\n"
            f"  it has: {_listed(sides)}\n"
            + "\n".join(f"  {g.stem}: {_listed((g.inputs, g.outputs))}" for g in deployment.graphs),
            hint="inputs and outputs must be those of the graph, and where graphs are alike the"
            " file's name must begin as the graph's",
        )
    return fitting[0]


def _opened(path: Path) -> Session:
    """Load a file that the user named; the hints of `open_session` suit files of a bundle."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="name a quantised graph with --onnx")
    try:
        return load_engine("onnx").InferenceSession(str(path))
    except (RuntimeError, ValueError) as error:
        raise GraphError(
            f"{path} cannot be loaded by ONNX Runtime\n  {error}",
            hint="name an ONNX file of static shapes that has its external data, if any, beside it",
        ) from error


def _same(ports: Sequence[Port], nodes: Sequence[Node]) -> bool:
    return {(p.name, tuple(p.shape)) for p in ports} == {(n.name, tuple(n.shape)) for n in nodes}


def _listed(sides: Sequence[Sequence[Port] | Sequence[Node]]) -> str:
    texts = [", ".join(f"{port.name} {list(port.shape)}" for port in side) for side in sides]
    return " → ".join(texts)
