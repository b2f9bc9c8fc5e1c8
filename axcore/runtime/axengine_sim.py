"""The API of pyaxengine over ONNX Runtime, so that scripts for a board run unchanged on a PC.

Use it with ``sys.modules["axengine"] = axcore.runtime.axengine_sim``. It is as strict as
pyaxengine, and raises where pyaxengine silently computes nonsense (arrays in Fortran order, outputs
requested in another order).

Source: the behaviour of pyaxengine 0.1.3.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from ml_dtypes import bfloat16

from ..layer_files import GROUPS, LayerSpec, Provenance
from ..system import cores, trim_memory
from .axengine_legacy import LegacySession
from .axengine_pixels import pixels_of

__all__ = [
    "InferenceSession",
    "NodeArg",
    "SessionOptions",
    "axclrt_provider_name",
    "axengine_provider_name",
    "get_all_providers",
    "get_available_providers",
]

axengine_provider_name = "AxEngineExecutionProvider"
axclrt_provider_name = "AXCLRTExecutionProvider"

COMPILED = ".axmodel"
Array = np.ndarray[Any, Any]
Provider = str | tuple[str, Mapping[str, Any]]

# The types that boards support: ONNX Runtime's name, numpy dtype, TensorProto.DataType.
_TYPES: Mapping[str, tuple[np.dtype[Any], int]] = {
    "tensor(float)": (np.dtype(np.float32), 1),
    "tensor(uint8)": (np.dtype(np.uint8), 2),
    "tensor(int8)": (np.dtype(np.int8), 3),
    "tensor(uint16)": (np.dtype(np.uint16), 4),
    "tensor(int16)": (np.dtype(np.int16), 5),
    "tensor(int32)": (np.dtype(np.int32), 6),
    "tensor(uint32)": (np.dtype(np.uint32), 12),
    "tensor(bfloat16)": (np.dtype(bfloat16), 16),
}
_NUMBERS = dict(_TYPES.values())


class ShapeGroupError(ValueError, IndexError):
    """No such shape group. pyaxengine raises either base class, depending on the number."""


@dataclass(frozen=True)
class SessionOptions:
    """Options of the simulation; pyaxengine accepts options and has none.

    Attributes:
        threads: How many threads a run uses; None for all cores.
        mapped: Whether weights stay in their file, mapped into memory and shared with other
            processes, instead of being packed for the processor and folded. Opening is a matter of
            milliseconds. Large inputs run as fast, single rows do not.
    """

    threads: int | None = None
    mapped: bool = False


@dataclass(frozen=True)
class NodeArg:
    """An input or output in one shape group."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Group:
    inputs: list[NodeArg]
    outputs: list[NodeArg]
    empty: Mapping[str, Array] = field(default_factory=dict)
    dynamic: frozenset[str] = frozenset()

    def batch(self, feed: Mapping[str, Array]) -> int:
        """Return the length of the dynamic first axis in `feed`; 1 where none is dynamic."""
        return next((len(feed[n.name]) for n in self.inputs if n.name in self.dynamic), 1)

    def sized(self, nodes: Sequence[NodeArg], batch: int) -> list[NodeArg]:
        """Return `nodes` with dynamic first axes set to `batch`."""
        return [
            replace(node, shape=(batch, *node.shape[1:])) if node.name in self.dynamic else node
            for node in nodes
        ]


def get_all_providers() -> list[str]:
    """Return the providers that pyaxengine knows: on the chip, and on a card."""
    return [axengine_provider_name, axclrt_provider_name]


def get_available_providers() -> list[str]:
    """Return the providers that a session accepts; both are simulated."""
    return get_all_providers()


class InferenceSession:
    """An ONNX file with the interface of a compiled model: one or more groups of static shapes.

    A file with dynamic dimensions lists its groups in a metadata property (`layer_files.GROUPS`),
    each ``{"inputs": {name: shape}, "outputs": {name: shape}, "empty": {name: shape}}``. An input
    named in ``empty`` (optional) is a placeholder: the caller feeds an array of its shape in
    ``inputs``, which is ignored, and the graph receives zeros of its shape in ``empty``. A file
    without that property has static shapes and one group. Beyond what boards offer, a group may
    list names in ``dynamic``; their first axis can then have any length, the same for all of them.

    Attributes:
        dynamic_batch: Whether the first axis is dynamic.
        provenance: What a layer model was made from; None for files without such metadata.
        layer: What a layer model keeps and takes, where it is not a plain one; else None.

    Args:
        path_or_bytes: The file. If ``x.axmodel`` does not exist, ``x.onnx`` is opened instead. A
            vision graph of a bundle that is opened as ``x.axmodel`` takes what the compiled one
            does: images as uint8 ``[1, H, W, 3]``, if that is how they reach the board.
        sess_options: `SessionOptions`; any other object is ignored.
        providers: A provider's name, or a list of names or pairs of name and options; the first
            that is available is used.
        provider_options: Ignored.

    Raises:
        FileNotFoundError: Neither that file nor its ONNX counterpart exists.
        RuntimeError: ONNX Runtime cannot load the file, or a board could not run it.
        TypeError: A model in memory was given, which pyaxengine cannot load on the chip.
        ValueError: No provider of that name is available.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str],
        sess_options: object = None,
        providers: str | Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        del provider_options
        self._sess_options, self._provider = sess_options, _provider(providers)
        path = _model_file(path_or_bytes)
        self._session = _load(
            path, sess_options if isinstance(sess_options, SessionOptions) else SessionOptions()
        )
        self._pixels = pixels_of(path) if Path(path_or_bytes).suffix == COMPILED else None
        described = self._session.get_modelmeta()
        try:
            self._groups = _groups(self._session)
            self.layer = LayerSpec.read(described.custom_metadata_map)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RuntimeError(f"Failed to read the shape groups of {path}: {error!r}") from error
        self.dynamic_batch = all(group.dynamic for group in self._groups)
        self.provenance = Provenance.of(described.graph_name, described.custom_metadata_map)

    @classmethod
    def load_from_model(cls, path: str | os.PathLike[str]) -> LegacySession:
        """Open a model with the interface that came before pyaxengine; raises as the class does."""
        return LegacySession(cls(path))

    def get_session_options(self) -> object:
        """Return the ``sess_options`` passed at creation."""
        return self._sess_options

    def get_providers(self) -> str:
        """Return the name of the provider in use (pyaxengine returns one, not a list)."""
        return self._provider

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        """Return the inputs of a group; `ShapeGroupError` where there is no such group."""
        return [self._fed(node) for node in self._group(shape_group).inputs]

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        """Return the outputs of a group; `ShapeGroupError` where there is no such group."""
        return list(self._group(shape_group).outputs)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[Array]:
        """Run the model once.

        Args:
            output_names: None, or the names of all outputs in the model's order.
            input_feed: Input name to array, with exactly the shape and dtype that `get_inputs`
                returns for the group. Other names are ignored.
            run_options: Ignored.
            shape_group: Number of the shape group.

        Returns:
            The outputs in the model's order, newly allocated.

        Raises:
            AssertionError: An array has the wrong shape or dtype, or is in Fortran order.
            ValueError: An input is missing, `output_names` is incomplete or in another order, or
                there is no such group.
            RuntimeError: ONNX Runtime failed.
        """
        del run_options
        group = self._group(shape_group)
        _check_names(group, output_names, input_feed)
        batch = group.batch(input_feed)
        nodes = group.sized(group.inputs, batch)
        fed = [_checked(self._fed(node), input_feed[node.name]) for node in nodes]
        feeds = [self._read(node, array) for node, array in zip(nodes, fed, strict=True)]
        outputs = [np.empty(n.shape, n.dtype) for n in group.sized(group.outputs, batch)]
        binding, values = self._session.io_binding(), []
        for node, array in zip(group.inputs, feeds, strict=True):
            if node.name in group.empty:
                array = group.empty[node.name].repeat(batch, 0)
            values.append(_value(array))
            binding.bind_ortvalue_input(node.name, values[-1])
        for node, array in zip(group.outputs, outputs, strict=True):
            values.append(_value(array))
            binding.bind_ortvalue_output(node.name, values[-1])
        self._run_bound(binding, values)
        return outputs

    def bind(self, shape_group: int, arrays: Mapping[str, Array]) -> Callable[[], None]:
        """Return what runs a group on the same arrays each time; pyaxengine has no such method.

        Args:
            shape_group: Number of the shape group.
            arrays: Every input and output by name, contiguous, with the group's shapes and dtypes.
                Inputs are read and outputs written in place.

        Raises:
            AssertionError: An array has the wrong shape or dtype, or is not contiguous.
            ValueError: There is no such group, or it takes placeholders or pixels.
        """
        group = self._group(shape_group)
        if group.empty or self._pixels:
            raise ValueError(f"shape group {shape_group} takes arrays that cannot be bound")
        binding, values = self._session.io_binding(), []
        for nodes, bound in (
            (group.inputs, binding.bind_ortvalue_input),
            (group.outputs, binding.bind_ortvalue_output),
        ):
            for node in nodes:
                array = _checked(node, arrays[node.name])
                if array is not arrays[node.name]:
                    raise AssertionError(f"`{node.name}` got an array that is not contiguous")
                values.append(_value(array))
                bound(node.name, values[-1])
        return partial(self._run_bound, binding, values)

    def _run_bound(self, binding: Any, values: Sequence[Any]) -> None:
        del values  # an OrtValue keeps its array alive; not every version's binding keeps those
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base
            raise RuntimeError(f"Failed to run model: {error}") from error

    def _fed(self, node: NodeArg) -> NodeArg:
        if not (self._pixels and self._pixels.fill(node)):
            return node
        count, channels, height, width = node.shape
        return replace(node, dtype=np.dtype(np.uint8), shape=(count, height, width, channels))

    def _read(self, node: NodeArg, array: Array) -> Array:
        if not (self._pixels and self._pixels.fill(node)):
            return array
        return self._pixels.graph_input(node, array)

    def _group(self, number: int) -> _Group:
        if not 0 <= number < len(self._groups):
            count = len(self._groups)
            raise ShapeGroupError(f"shape group {number} is out of range, the model has {count}")
        return self._groups[number]


def _provider(providers: str | Sequence[Provider] | None) -> str:
    wanted = [providers] if isinstance(providers, str) else providers or get_all_providers()
    names = [entry if isinstance(entry, str) else entry[0] for entry in wanted]
    for name in names:
        if name in get_available_providers():
            return name
    raise ValueError(f"providers {names} are not available, only {get_available_providers()}")


def _model_file(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a model is loaded from a path, not from {type(path).__name__}")
    found = Path(path)
    if found.suffix == COMPILED and not found.exists():
        found = found.with_suffix(".onnx")
    if not found.is_file():
        raise FileNotFoundError(f"neither {path} nor an ONNX file in its place exists")
    return found.resolve()  # weights are found beside the file, not beside a link to it


def _load(path: Path, chosen: SessionOptions) -> Any:
    # Folding a constant means a copy of it in memory.
    without = ["ConstantFolding"] if chosen.mapped else None
    try:
        session = ort.InferenceSession(
            path,
            _options(chosen),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=without,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise RuntimeError(f"Failed to load model {path}: {error}") from error
    # Constant folding frees about as many bytes as the file has, and glibc keeps them on its heap:
    # for a whole language model, half as much again as the weights take.
    trim_memory()
    return session


@cache
def _options(chosen: SessionOptions) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = chosen.threads or cores()
    # Sessions run one after the other: spinning threads would take cores from the next session and
    # from other programs. A thread pool shared by all sessions is not an alternative, because other
    # sessions in this process would then fail to open.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An arena would keep the largest buffers of every layer; without it they are freed.
    options.enable_cpu_mem_arena = False
    # Its handling of quantised graphs would convert int8 weights in every run, not fold them once.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if chosen.mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Packing matrices for the processor is most of loading a layer model.
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    options.log_severity_level = 4  # errors are raised as exceptions anyway
    return options


def _groups(session: Any) -> list[_Group]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    listed = session.get_modelmeta().custom_metadata_map.get(GROUPS)
    if listed is None:
        return [_Group(_nodes(inputs, _shapes(inputs)), _nodes(outputs, _shapes(outputs)))]
    return [_group(inputs, outputs, **entry) for entry in json.loads(listed)]


def _group(
    graph_inputs: Sequence[Any],
    graph_outputs: Sequence[Any],
    *,
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    empty: Mapping[str, Sequence[int]] | None = None,
    dynamic: Sequence[str] = (),
) -> _Group:
    nodes = _nodes(graph_inputs, inputs)
    dtypes = {node.name: node.dtype for node in nodes}
    zeros = {name: np.zeros(shape, dtypes[name]) for name, shape in (empty or {}).items()}
    return _Group(nodes, _nodes(graph_outputs, outputs), zeros, frozenset(dynamic))


def _shapes(values: Sequence[Any]) -> dict[str, Sequence[int]]:
    for value in values:
        if not all(isinstance(length, int) for length in value.shape):
            raise ValueError(f"`{value.name}` has the shape {value.shape}, which is not static")
    return {value.name: value.shape for value in values}


def _nodes(values: Sequence[Any], shapes: Mapping[str, Sequence[int]]) -> list[NodeArg]:
    names = [value.name for value in values]
    if set(names) != set(shapes):
        raise ValueError(
            f"shapes are given for {sorted(shapes)}, but the graph has {sorted(names)}"
        )
    for value in values:
        if value.type not in _TYPES:
            raise ValueError(f"`{value.name}` is a {value.type}, which boards do not support")
    return [NodeArg(v.name, _TYPES[v.type][0], tuple(shapes[v.name])) for v in values]


def _check_names(
    group: _Group, output_names: Sequence[str] | None, input_feed: Mapping[str, Array]
) -> None:
    missing = [node.name for node in group.inputs if node.name not in input_feed]
    if missing:
        raise ValueError(f"inputs {missing} are missing, got {list(input_feed)}")
    made = [node.name for node in group.outputs]
    if output_names is not None and list(output_names) != made:
        raise ValueError(f"outputs {list(output_names)} were requested; request None or {made}")


def _checked(node: NodeArg, array: Array) -> Array:
    """Return `array` in C order, after checking it against `node`."""
    if array.shape != node.shape or array.dtype != node.dtype:
        raise AssertionError(
            f"input `{node.name}` takes {node.dtype} {list(node.shape)},"
            f" got {array.dtype} {list(array.shape)}"
        )
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        raise AssertionError(
            f"input `{node.name}` got an array in Fortran order, which a board would read as if it"
            " were in C order: pass it through numpy.ascontiguousarray"
        )
    return np.ascontiguousarray(array)


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _NUMBERS[array.dtype])
