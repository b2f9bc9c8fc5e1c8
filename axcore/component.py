"""The vision side of a model: components, their stages and ports, and the origin of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import ContractError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor, nn

Shape = tuple[int, ...]
Sample = Mapping[str, "np.ndarray[Any, Any]"]
"""One calibration sample: input name to array."""

GraphDType = Literal["float32", "float16", "bfloat16"]
CalibrationFormat = Literal["Image", "Numpy", "NumpyObject"]
ChannelOrder = Literal["AutoColorSpace", "RGB", "BGR"]
Media = Literal["image", "array"]


@dataclass(frozen=True)
class Weight:
    """The origin of a parameter: a checkpoint tensor and cheap steps applied while reading it.

    >>> Weight("patch_embed.proj.weight").reshape(1280, 1176)
    >>> Weight("attn.qkv.weight").slice(0, 1024, 2048)
    >>> Weight.concat([Weight("q.weight"), Weight("k.weight")], axis=0)
    >>> Weight("positions").project(0, ((0.5, 0.5, 0.0), (0.0, 0.5, 0.5)))
    """

    source: str | tuple[Weight, ...]
    axis: int = 0
    steps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @classmethod
    def concat(cls, parts: Sequence[Weight], axis: int) -> Weight:
        """Concatenate `parts` along `axis`."""
        return cls(tuple(parts), axis)

    def reshape(self, *shape: int) -> Weight:
        """View as `shape`; one entry may be -1."""
        return self._then("reshape", shape)

    def transpose(self, *order: int) -> Weight:
        """Permute the axes."""
        return self._then("transpose", order)

    def slice(self, axis: int, start: int, stop: int) -> Weight:
        """Take ``start:stop`` along `axis`."""
        return self._then("slice", (axis, start, stop))

    def project(self, axis: int, matrix: Sequence[Sequence[float]]) -> Weight:
        """Multiply `axis` by `matrix`, ``[new length, old length]``, in float32.

        For any linear map: selecting and repeating entries (exact), interpolation, scaling.
        """
        return self._then("project", (axis, tuple(map(tuple, matrix))))

    def keys(self) -> Iterator[str]:
        """Yield the canonical keys of the tensors that are read."""
        if isinstance(self.source, str):
            yield self.source
        else:
            for part in self.source:
                yield from part.keys()

    def resolve(self, tensor_of: Callable[[str], Tensor]) -> Tensor:
        """Return the parameter; `tensor_of` returns the (real or meta) tensor of a key."""
        if isinstance(self.source, str):
            value = tensor_of(self.source)
        else:
            import torch

            value = torch.cat([part.resolve(tensor_of) for part in self.source], self.axis)
        for step, numbers in self.steps:
            if step == "reshape":
                value = value.reshape(numbers)
            elif step == "transpose":
                value = value.permute(numbers)
            elif step == "project":
                value = _projected(value, *numbers)
            else:
                axis, start, stop = numbers
                value = value.narrow(axis, start, stop - start)
        return value

    def _then(self, step: str, numbers: tuple[Any, ...]) -> Weight:
        return replace(self, steps=(*self.steps, (step, numbers)))


def _projected(value: Tensor, axis: int, matrix: Sequence[Sequence[float]]) -> Tensor:
    import torch

    factors = torch.tensor(matrix, dtype=torch.float32, device=value.device)
    product: Tensor = torch.tensordot(factors, value.float(), dims=([1], [axis]))
    return product.movedim(0, axis)


@dataclass(frozen=True)
class Stage:
    """One step of a component: a torch module without weights, and the origin of its weights.

    The module's ``forward`` takes the component's inputs (first stage) or the result of the
    previous stage, and returns a tensor or a tuple of tensors.

    Attributes:
        name: Unique in the component, e.g. ``blocks.7``; prefix of the names of its ONNX nodes.
        module: Its parameters are on the meta device; its buffers hold data and become constants.
        keys: Prefix that turns each parameter's name into its key, or a mapping from parameter
            name to `Weight` or key.
        kind: Stages of the same kind differ only in their weights, so that one of them is traced
            for all. Defaults to the name.
    """

    name: str
    module: nn.Module
    keys: str | Mapping[str, str | Weight] = ""
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.name)

    def weights(self) -> dict[str, Weight]:
        """Return the origin of every parameter by its name, in the module's order."""
        names = [name for name, _ in self.module.named_parameters()]
        if isinstance(self.keys, str):
            return {name: Weight(self.keys + name) for name in names}
        found = {name: self.keys[name] for name in names}
        return {name: Weight(key) if isinstance(key, str) else key for name, key in found.items()}


@dataclass(frozen=True)
class Port:
    """A named input or output with a static shape.

    Attributes:
        name: Unique among the component's inputs, or outputs.
        shape: Every axis has a fixed length.
        dtype: "float32" stands for the precision chosen for the conversion.
        layer: Of a further output of the last component of a chain: its rows, as many and as wide
            as those of the first output, are added to the state behind this decoder layer, at the
            places of the same tokens. None for outputs that do not reach the language model.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    layer: int | None = None


@dataclass(frozen=True)
class Calibration:
    """How a component's calibration samples are stored, and how the target reads them.

    Attributes:
        format: "Image" (PNG images, uint8), "Numpy" (one array a file) or "NumpyObject" (a
            dict of arrays a file).
        mean, std: Per channel, in units of 0..255. The target subtracts `mean` from "Image"
            samples and divides by `std`.
        tensor_format: Channel order in which the target passes an image to the graph; of "Image"
            samples, "RGB" or "BGR".
        src_dtype, src_layout: Type and layout of the input on the board, as Pulsar2 spells them;
            None keeps the default.
        src_normalised: The input on the board is normalised already, so that the target applies
            `mean` and `std` only to samples.
        size: Maximum number of samples that the target uses; -1 for all.
        minimum: Number of samples below which results are unreliable.
    """

    format: CalibrationFormat = "Numpy"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tensor_format: ChannelOrder = "AutoColorSpace"
    src_dtype: str | None = None
    src_layout: str | None = None
    src_normalised: bool = False
    size: int = 32
    minimum: int = 4

    @classmethod
    def of_pixels(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> Calibration:
        """Images, uint8 ``[H, W, 3]``, that the host normalises on the board: RGB, float32, NCHW.

        Args:
            mean, std: Per channel, in units of 0..255.
        """
        return cls(
            format="Image",
            mean=mean,
            std=std,
            tensor_format="RGB",
            src_dtype="FP32",
            src_layout="NCHW",
            src_normalised=True,
            size=-1,
        )

    def graph_input(self, sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the graph's input for one stored array.

        "Image" samples, uint8 ``[H, W, 3]``, become float32 ``[1, 3, H, W]`` with mean and
        standard deviation applied; arrays of other formats are the input already.
        """
        if self.format != "Image":
            return sample
        import numpy as np

        mean = np.asarray(self.mean or (0.0,), np.float32)
        std = np.asarray(self.std or (1.0,), np.float32)
        normalised: np.ndarray[Any, Any] = (sample.astype(np.float32) - mean) / std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


@dataclass(frozen=True)
class Component:
    """One vision graph: a chain of stages between named ports.

    Attributes:
        name: Short name, e.g. ``vision``.
        stem: Name of the exported file, without suffix.
        stages: In the order data flows.
        inputs, outputs: In the order of the first stage's arguments and the last stage's results.
        preprocess: Turns `images_per_sample` RGB images into samples, arrays in the form that the
            target reads (see `Calibration.graph_input`). None if the inputs are features of
            another component.
        images_per_sample: Number of images, or of arrays, that one call of `preprocess` takes.
        calibration: How samples are stored.
        build_options: Toolchain name to settings in that toolchain's own terms, merged into the
            configuration that it writes by default.
        after: Name of the component, listed before, whose outputs it takes; "" for none: it begins
            a chain of its own, such as a second tower. None for the one before it, or for none if
            it has a `preprocess`.
        media: What `preprocess` takes: "image", or "array" for data that are not pictures, such as
            log-mel features. Calibration then reads ``.npy`` files, float32.
    """

    name: str
    stem: str
    stages: tuple[Stage, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    preprocess: Callable[[Sequence[Image]], Iterable[Sample]] | None = None
    images_per_sample: int = 1
    calibration: Calibration = Calibration()
    build_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    after: str | None = None
    media: Media = "image"

    @property
    def rows(self) -> int:
        """Rows of the first output, which are tokens if it feeds the language model."""
        return math.prod(self.outputs[0].shape[:-1])


def sources(components: Iterable[Component]) -> dict[str, str]:
    """Map each component to the one whose outputs it takes; "" for the first of a chain."""
    found: dict[str, str] = {}
    before = ""
    for component in components:
        implied = "" if component.preprocess else before
        found[component.name] = implied if component.after is None else component.after
        before = component.name
    return found


def heads(sources: Mapping[str, str]) -> dict[str, str]:
    """Map each component to the first one of its chain, given what `sources` returned."""
    found: dict[str, str] = {}
    for name, source in sources.items():
        found[name] = found[source] if source else name
    return found


class Graph(Protocol):
    """What has ports: a component, or one of the files that it becomes."""

    @property
    def stem(self) -> str:
        """Name of the file."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it returns."""


def feature_sources(graph: Graph, behind: Graph) -> dict[str, str]:
    """Map each input of `behind` to an output of `graph`, by name, else by position.

    Raises:
        ContractError: An input has no matching output.
    """
    made = {port.name: port for port in graph.outputs}
    named = any(port.name in made for port in behind.inputs)
    sources = {}
    for position, port in enumerate(behind.inputs):
        in_place = graph.outputs[position] if position < len(graph.outputs) else None
        source = made.get(port.name) if named else in_place
        if source is None or source.shape != port.shape:
            returned = ", ".join(f"{out.name} {list(out.shape)}" for out in graph.outputs)
            raise ContractError(
                f"`{behind.stem}` takes {port.name} {list(port.shape)};"
                f" `{graph.stem}` returns {returned}",
                hint="give it a `preprocess`, or make its inputs match those outputs",
            )
        sources[port.name] = source.name
    return sources
