"""What each graph file receives: images or arrays at the head of a chain, features behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from ..calibration import Found, checked_sample, embedded_images, find_images, image_samples
from ..component import GraphDType, feature_sources, sources
from ..errors import UsageError
from ..progress import Silent

if TYPE_CHECKING:
    from pathlib import Path

    from ..component import Component, Port, Sample
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
        before: For each file, the index of the one whose outputs it takes; None if its samples are
            made from images or arrays.

    Args:
        prepared: The conversion.
        locate: Says where a file lies.
    """

    def __init__(self, prepared: Prepared, locate: Callable[[Component, GraphFile], Path]) -> None:
        self._prepared, self._locate = prepared, locate
        self.chain, self.before = prepared.files, list[int | None]()
        taken, last = sources(prepared.components), dict[str, int]()
        for index, (component, _) in enumerate(self.chain):
            self.before.append(last.get(component.name, last.get(taken[component.name])))
            last[component.name] = index

    def path(self, index: int) -> Path:
        """Return where file `index` of the chain lies."""
        return self._locate(*self.chain[index])

    def name(self, index: int) -> str:
        """Return what a file's samples are stored under: its component, or the part itself."""
        component, graph = self.chain[index]
        before = self.before[index]
        later = before is not None and self.chain[before][0] is component
        return graph.stem if later else component.name

    def samples(self, index: int, data: Found, progress: Progress = SILENT) -> Iterator[Sample]:
        """Yield samples for a file in the form the target reads, lazily, from images or arrays."""
        before = self.before[index]
        if before is not None:
            return self.features(index, self.samples(before, data, progress))
        component, graph = self.chain[index]
        made = image_samples(component, self._maker(component), data.of(component.media), progress)
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
        place = self.before[index]
        assert place is not None
        source, graph = self.chain[place][1], self.chain[index][1]
        feeds = (_graph_inputs(source, sample) for sample in before)
        made = _features(source, self.path(place), feeds, graph)
        return (_in_precision(graph, sample) for sample in made)

    def feeds(self, index: int, data: Found) -> Iterator[Sample]:
        """Yield what a file is run on, lazily; one feed of noise where its chain has no data."""
        before, (component, graph) = self.before[index], self.chain[index]
        if before is not None:
            self._check_runnable("run to feed the one behind it")
            made = _features(
                self.chain[before][1], self.path(before), self.feeds(before, data), graph
            )
        elif data.of(component.media):
            made = (_graph_inputs(graph, sample) for sample in self.samples(index, data))
        else:
            made = iter([noise(graph.inputs)])
        return (_in_precision(graph, sample) for sample in made)

    def verify(
        self,
        component: Component,
        data: Found,
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
            next(self.feeds(mine[0], self.chosen(data))),
            dtype=self._prepared.job.options.dtype,
            progress=progress,
        )

    def chosen(self, data: Found) -> Found:
        """Return what verification looks at: the first images, or ours, and the first arrays."""
        most = max(component.images_per_sample for component in self._prepared.components)
        images = data.images or find_images(embedded_images())
        return Found(images[:most], data.arrays[:most])

    def _check_runnable(self, purpose: str) -> None:
        from ..graph.verify import THRESHOLDS

        dtype = self._prepared.job.options.dtype
        if dtype not in THRESHOLDS:
            raise UsageError(
                f"a {dtype} graph cannot be {purpose}: ONNX Runtime in Python cannot run it",
                hint=f"convert with --dtype {' or '.join(THRESHOLDS)}",
            )

    def _checked(self, component: Component, graph: GraphFile, sample: Sample) -> Sample:
        family = self._prepared.job.family
        with self._prepared.registry.blame(family, "make_calib"):
            return checked_sample(component.name, graph.inputs, graph.calibration, sample)

    def _maker(self, component: Component) -> Callable[[Sequence[Any]], list[Sample]]:
        """Return the family's `make_calib`; safe to call from several threads."""
        registry, job = self._prepared.registry, self._prepared.job

        def make(images: Sequence[Any]) -> list[Sample]:
            samples = registry.call(
                job.family, "make_calib", job=job, component=component, images=images
            )
            with registry.blame(job.family, "make_calib"):
                return list(samples)

        return make


def noise(ports: Sequence[Port]) -> Sample:
    """Return normally distributed input of float32, and zeros for whole numbers."""
    import numpy as np

    random = np.random.default_rng(0)
    return {
        port.name: random.standard_normal(port.shape, np.float32)
        if port.dtype in get_args(GraphDType)
        else np.zeros(port.shape, port.dtype)
        for port in ports
    }


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

    ports = feature_sources(graph, behind)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for feed in feeds:
        outputs: list[Any] = session.run(list(ports.values()), dict(feed))
        yield {
            port: np.ascontiguousarray(array) for port, array in zip(ports, outputs, strict=True)
        }
