"""What each graph file receives: images at the head of a chain, features behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..calibration import checked_sample, embedded_images, find_images, image_samples
from ..errors import UsageError
from ..progress import Silent
from ..runtime.vision import feature_sources
from .prepared import graph_files

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from ..calibration import SourceImage
    from ..component import Component, Sample
    from ..graph.stitch import Tracer
    from ..graph.verify import Verification
    from ..progress import Progress
    from ..toolchains.contract import GraphFile
    from .prepared import Prepared


SILENT = Silent()


class Flow:
    """The graph files of a conversion in the order data flows.

    Attributes:
        chain: Each file with the component it belongs to.

    Args:
        prepared: The conversion.
        locate: Says where a file lies.
    """

    def __init__(self, prepared: Prepared, locate: Callable[[Component, GraphFile], Path]) -> None:
        self._prepared, self._locate = prepared, locate
        self.chain: list[tuple[Component, GraphFile]] = [
            (component, graph)
            for component, cuts in zip(prepared.components, prepared.cuts, strict=True)
            for graph in graph_files(component, cuts, prepared.job)
        ]

    def path(self, index: int) -> Path:
        """Return where file `index` of the chain lies."""
        return self._locate(*self.chain[index])

    def takes_images(self, index: int) -> bool:
        """Whether a file's samples are made from images, not from features."""
        return self._is_head(index) and self.chain[index][0].preprocess is not None

    def name(self, index: int) -> str:
        """Return what a file's samples are stored under: its component, or the part itself."""
        component, graph = self.chain[index]
        return component.name if self._is_head(index) else graph.stem

    def samples(
        self, index: int, images: Sequence[SourceImage], progress: Progress = SILENT
    ) -> Iterator[Sample]:
        """Yield samples for a file in the form the target reads, lazily, starting from images."""
        if not self.takes_images(index):
            return self.features(index, self.samples(index - 1, images, progress))
        component, graph = self.chain[index]
        made = image_samples(component, self._maker(component), images, progress)
        return (self._checked(component, graph, _in_precision(graph, sample)) for sample in made)

    def features(self, index: int, before: Iterable[Sample]) -> Iterator[Sample]:
        """Yield samples for a file behind another, lazily.

        Args:
            index: The file.
            before: Samples of the file before it, which is run on each.

        Raises:
            UsageError: ONNX Runtime cannot run a graph of this precision.
        """
        self._check_runnable("run to calibrate the one behind it")
        (_, source), (_, graph) = self.chain[index - 1 : index + 1]
        feeds = (_graph_inputs(source, sample) for sample in before)
        made = _features(source, self.path(index - 1), feeds, graph)
        return (_in_precision(graph, sample) for sample in made)

    def feeds(self, index: int, images: Sequence[SourceImage]) -> Iterator[Sample]:
        """Yield what a file is run on, lazily."""
        graph = self.chain[index][1]
        return (_graph_inputs(graph, sample) for sample in self.samples(index, images))

    def verify(
        self,
        component: Component,
        images: Sequence[SourceImage],
        tracer: Tracer,
        progress: Progress,
    ) -> Verification:
        """Compare a component's files with PyTorch on the first sample.

        Raises:
            VerificationError: They differ by more than the thresholds.
        """
        from ..graph.verify import verify_component

        self._check_runnable("verified")
        mine = [index for index, (owner, _) in enumerate(self.chain) if owner is component]
        return verify_component(
            component,
            [self.path(index) for index in mine],
            self._prepared.job.checkpoint,
            tracer,
            next(self.feeds(mine[0], self.chosen(images))),
            dtype=self._prepared.job.options.dtype,
            progress=progress,
        )

    def chosen(self, images: Sequence[SourceImage]) -> Sequence[SourceImage]:
        """Return the images that verification looks at: the first, or one of ours."""
        sources = images or find_images(embedded_images())
        return sources[: self._prepared.components[0].images_per_sample]

    def _check_runnable(self, purpose: str) -> None:
        from ..graph.verify import THRESHOLDS

        dtype = self._prepared.job.options.dtype
        if dtype not in THRESHOLDS:
            raise UsageError(
                f"a {dtype} graph cannot be {purpose}: ONNX Runtime in Python cannot run it",
                hint=f"convert with --dtype {' or '.join(THRESHOLDS)}",
            )

    def _is_head(self, index: int) -> bool:
        return index == 0 or self.chain[index - 1][0] is not self.chain[index][0]

    def _checked(self, component: Component, graph: GraphFile, sample: Sample) -> Sample:
        family = self._prepared.job.family
        with self._prepared.registry.blame(family, "make_calib"):
            return checked_sample(component.name, graph.inputs, graph.calibration, sample)

    def _maker(self, component: Component) -> Callable[[Sequence[Image]], list[Sample]]:
        """Return the family's `make_calib`; safe to call from several threads."""
        registry, job = self._prepared.registry, self._prepared.job

        def make(images: Sequence[Image]) -> list[Sample]:
            samples = registry.call(
                job.family, "make_calib", job=job, component=component, images=images
            )
            with registry.blame(job.family, "make_calib"):
                return list(samples)

        return make


def _graph_inputs(graph: GraphFile, sample: Sample) -> Sample:
    """Return what a file receives for one stored sample."""
    made = {name: graph.calibration.graph_input(array) for name, array in sample.items()}
    return _in_precision(graph, made)


def _in_precision(graph: GraphFile, sample: Sample) -> Sample:
    """Cast float arrays to the dtype of their port; stored images are integers and stay."""
    dtypes = {port.name: port.dtype for port in graph.inputs}
    return {
        name: array.astype(dtypes.get(name, array.dtype)) if array.dtype.kind == "f" else array
        for name, array in sample.items()
    }


def _features(
    graph: GraphFile, path: Path, feeds: Iterable[Sample], behind: GraphFile
) -> Iterator[Sample]:
    """Run an exported file on `feeds` and yield what the file behind it receives."""
    import numpy as np
    import onnxruntime as ort

    sources = feature_sources(graph, behind)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for feed in feeds:
        outputs: list[Any] = session.run(list(sources.values()), dict(feed))
        yield {
            port: np.ascontiguousarray(array) for port, array in zip(sources, outputs, strict=True)
        }
