"""What each graph file receives: images at the head of a chain, features behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..calibration import embedded_images, find_images, image_samples
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

    def is_head(self, index: int) -> bool:
        """Whether a file is the first one of its component."""
        return index == 0 or self.chain[index - 1][0] is not self.chain[index][0]

    def samples(
        self, index: int, images: Sequence[SourceImage], progress: Progress = SILENT
    ) -> Iterator[Sample]:
        """Yield samples for a file in the form the target reads, lazily."""
        component, graph = self.chain[index]
        if self.is_head(index) and component.preprocess is not None:
            made = image_samples(component, self._maker(component), images, progress)
        else:
            before = self.chain[index - 1][1]
            feeds = self.feeds(index - 1, images, progress)
            made = _features(before, self.path(index - 1), feeds, graph)
        return (_fit(graph, sample) for sample in made)

    def feeds(
        self, index: int, images: Sequence[SourceImage], progress: Progress = SILENT
    ) -> Iterator[Sample]:
        """Yield what a file is run on, lazily."""
        calibration = self.chain[index][1].calibration
        for sample in self.samples(index, images, progress):
            yield {name: calibration.graph_input(array) for name, array in sample.items()}

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
        from ..graph.verify import THRESHOLDS, verify_component

        dtype = self._prepared.job.options.dtype
        if dtype not in THRESHOLDS:
            raise UsageError(
                f"a {dtype} graph cannot be verified: ONNX Runtime in Python cannot run it",
                hint=f"convert with --dtype {' or '.join(THRESHOLDS)} to verify",
            )
        mine = [index for index, (owner, _) in enumerate(self.chain) if owner is component]
        return verify_component(
            component,
            [self.path(index) for index in mine],
            self._prepared.job.checkpoint,
            tracer,
            next(self.feeds(mine[0], self.chosen(images))),
            dtype=dtype,
            progress=progress,
        )

    def chosen(self, images: Sequence[SourceImage]) -> Sequence[SourceImage]:
        """Return the images that verification looks at: the first, or one of ours."""
        sources = images or find_images(embedded_images())
        return sources[: self._prepared.components[0].images_per_sample]

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


def _fit(graph: GraphFile, sample: Sample) -> Sample:
    """Bring float arrays into the precision of the graph; images stay as they are."""
    if graph.calibration.format == "Image":
        return sample
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
