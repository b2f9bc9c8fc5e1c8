"""Compare PyTorch with ONNX Runtime, stage by stage, on the same input."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from ..errors import VerificationError
from .export import torch_dtype
from .groups import groups
from .trace import typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..checkpoint import Checkpoint
    from ..component import Component, GraphDType
    from ..progress import Progress, Task
    from .stitch import Tracer

    Array = np.ndarray[Any, Any]

_GROUP_BYTES = 256 << 20  # weights that ONNX Runtime holds at a time, a stage at least


@dataclass(frozen=True)
class Threshold:
    """The lowest cosine allowed behind any stage, and the largest absolute output difference."""

    cosine: float
    max_abs: float | None


THRESHOLDS: dict[str, Threshold] = {
    "float32": Threshold(cosine=0.9999, max_abs=1e-3),
    # Half precision has 11 significant bits; sums over thousands of terms differ in the last ones.
    "float16": Threshold(cosine=0.999, max_abs=None),
}
"""By precision. ONNX Runtime has no bfloat16 kernels for these graphs, so none is listed."""


@dataclass(frozen=True)
class Difference:
    """The difference between ONNX Runtime and PyTorch behind one stage, in its first output."""

    stage: str
    cosine: float
    max_abs: float


@dataclass(frozen=True)
class OutputDifference:
    """The difference in one output of a component."""

    output: str
    cosine: float
    max_abs: float


@dataclass(frozen=True)
class Verification:
    """The differences behind every stage, and in every output of the component.

    Attributes:
        component: Name of the component.
        stages: In the order data flows.
        outputs: In the order of the component's ports.
        onnx_s, torch_s: Inference time of each, in seconds; loading is not included.
    """

    component: str
    stages: tuple[Difference, ...]
    outputs: tuple[OutputDifference, ...]
    onnx_s: float
    torch_s: float

    @property
    def cosine(self) -> float:
        """The lowest of all outputs; NaN if one is."""
        return float(np.min([output.cosine for output in self.outputs]))

    @property
    def max_abs(self) -> float:
        """The largest of all outputs; NaN if one is."""
        return float(np.max([output.max_abs for output in self.outputs]))

    def metrics(self) -> dict[str, Any]:
        """Return the reproducible values, for the manifest; times are left out."""
        return {
            "component": self.component,
            "cosine": self.cosine,
            "max_abs": self.max_abs,
            "stages": [asdict(stage) for stage in self.stages],
            "outputs": [asdict(output) for output in self.outputs],
        }


def verify_component(
    component: Component,
    parts: Sequence[Path],
    checkpoint: Checkpoint,
    tracer: Tracer,
    feed: Mapping[str, Array],
    *,
    dtype: GraphDType,
    progress: Progress,
) -> Verification:
    """Compare the exported files with the model they came from.

    The files run in groups of stages, one behind the other, so that no more than a group's weights
    are in memory; every stage boundary is a further output. Then PyTorch runs stage by stage with
    the weights of one stage in memory at a time.

    Args:
        parts: The files made of `component`, in the order data flows.
        feed: The graph's inputs by name, with batch.
        dtype: Precision of the files; one of `THRESHOLDS`.

    Raises:
        VerificationError: A stage or the output misses its threshold; the message names the first.
    """
    wanted = torch_dtype(dtype)
    feed = {name: _cast(array, wanted) for name, array in feed.items()}
    steps = len(parts) + len(component.stages)
    with progress.task(f"verify {component.name}", steps, "steps") as task:
        values, onnx_s = _run_onnx(component, parts, feed, progress, task)
        state = tuple(torch.from_numpy(feed[port.name]) for port in component.inputs)
        differences, torch_s = [], 0.0
        for stage, boundary in zip(component.stages, _boundaries(component), strict=True):
            weights = {
                name: weight.resolve(checkpoint.tensor).to(wanted)
                for name, weight in stage.weights().items()
            }
            module = typed(tracer.patched(stage).module, wanted)
            started = time.perf_counter()
            with torch.no_grad():
                result = torch.func.functional_call(module, weights, state)
            torch_s += time.perf_counter() - started
            state = (result,) if isinstance(result, torch.Tensor) else tuple(result)
            differences.append(Difference(stage.name, *_apart(state[0], values[boundary])))
            task.advance()
    outputs = tuple(
        OutputDifference(port.name, *_apart(value, values[port.name]))
        for port, value in zip(component.outputs, state, strict=True)
    )
    result = Verification(component.name, tuple(differences), outputs, onnx_s, torch_s)
    _judge(result, THRESHOLDS[dtype])
    return result


def _run_onnx(
    component: Component,
    parts: Sequence[Path],
    feed: Mapping[str, Array],
    progress: Progress,
    task: Task,
) -> tuple[dict[str, Array], float]:
    """Run the parts in a row; return stages' first outputs, all outputs, seconds of inference."""
    values, seconds = dict(feed), 0.0
    wanted = _boundaries(component)
    kept = {*wanted, *(port.name for port in component.outputs)}
    for path in parts:
        progress.say(f"verify {component.name}: running {path.name} in ONNX Runtime")
        model = onnx.load(path, load_external_data=False)
        names = {value.name for value in model.graph.output}
        for group in groups(model, wanted, _GROUP_BYTES):
            session = None  # else the group before stays in memory while this one is loaded
            session = _open(group, path.parent)
            inputs = {entry.name: values[entry.name] for entry in session.get_inputs()}
            made = [entry.name for entry in session.get_outputs()]
            started = time.perf_counter()
            results = session.run(made, inputs)
            seconds += time.perf_counter() - started
            values |= dict(zip(made, results, strict=True))
        # What passed between groups alone is not needed behind the file.
        values = {name: value for name, value in values.items() if name in kept | names}
        task.advance()
    return values, seconds


def _boundaries(component: Component) -> list[str]:
    """Return the name of every stage's first output in the graph."""
    return [*(stage.name for stage in component.stages[:-1]), component.outputs[0].name]


def _open(model: onnx.ModelProto, folder: Path) -> Any:
    """Open a part of an exported file whose weights lie in `folder`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Weights that are used once need no second form, which costs time and as much memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    # Loaded from bytes, ONNX Runtime has to be given the folder of the weights, as set above.
    content = model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _cast(array: Array, dtype: torch.dtype) -> Array:
    if array.dtype != np.float32:
        return array
    return torch.from_numpy(array).to(dtype).numpy()


def _apart(value: torch.Tensor, made: Array) -> tuple[float, float]:
    """Return cosine and greatest difference, rounded as they are reported."""
    ours, theirs = value.double().flatten(), torch.from_numpy(made).double().flatten()
    norms = ours.norm() * theirs.norm()
    cosine = float(ours @ theirs / norms) if norms > 0 else float(torch.equal(ours, theirs))
    return round(cosine, 9), float(f"{float((ours - theirs).abs().max()):.6g}")


def _judge(result: Verification, threshold: Threshold) -> None:
    failures = [
        f"cosine {one.cosine:.6f} behind stage `{one.stage}`, at least {threshold.cosine} expected"
        for one in result.stages
        # Not `cosine < threshold`: that would let NaN pass.
        if not one.cosine >= threshold.cosine
    ]
    most = threshold.max_abs
    for one in result.outputs:
        where = f"at the output `{one.output}`"
        if not one.cosine >= threshold.cosine:
            failures.append(f"cosine {one.cosine:.6f} {where}, {threshold.cosine} expected")
        if most is not None and not one.max_abs <= most:
            failures.append(f"max abs {one.max_abs:.3g} {where}, at most {most:g} expected")
    if failures:
        listed = "".join(
            f"\n  output `{one.output}`: cosine {one.cosine:.6f}, max abs {one.max_abs:.3g}"
            for one in result.outputs
        )
        raise VerificationError(
            f"the ONNX graph of `{result.component}` differs from PyTorch\n"
            f"  first: {failures[0]}{listed}",
            hint="look at the first stage named; try a newer onnxruntime or another --opset to see"
            " whether a tool or the model is at fault",
        )
