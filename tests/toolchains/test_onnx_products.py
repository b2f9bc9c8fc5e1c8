"""Products with codes, against the same matrices widened to float64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from axcore.toolchains.onnx.products import multiply_integers

Array = np.ndarray[Any, Any]
SMALL = 2**-22  # of float32 sums, relative to the sum of magnitudes


def graph(codes: Array, scales: Array, bias: Array | None = None) -> onnx.ModelProto:
    """`Gemm` by dequantised codes ``[in, out]``: what layer models are before the pass."""
    arrays = {"codes": codes, "scales": scales} | ({} if bias is None else {"bias": bias})
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["wide"], axis=1),
        helper.make_node("Gemm", ["x", "wide", *list(arrays)[2:]], ["y"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])]
        for name, width in zip("xy", codes.shape, strict=True)
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = helper.make_graph(nodes, "product", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def multiplied(model: onnx.ModelProto) -> ir.Model:
    made = ir.from_proto(model)
    multiply_integers(made.graph)
    return made


def run(model: ir.Model, states: Array) -> Array:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": states})[0])


def coarse(model: ir.Model) -> ir.Model:
    """As on a processor that adds products in 16 bits: the known product does not come out."""
    known = model.graph.initializers["integer_product.known.sum"]
    known.const_value = ir.tensor(np.int32(1), name=known.name)
    return model


def drawn(seed: int, rows: int, columns: int, out: int, outlier: float) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-6, 6, (rows, 1))
    states[:, rng.integers(columns)] *= outlier
    states[rng.random(rows) < 0.2] = 0
    codes = rng.integers(-128, 128, (columns, out), dtype=np.int8)
    scales = rng.uniform(-0.1, 0.1, out).astype(np.float32)
    return states.astype(np.float32), codes, scales, rng.standard_normal(out).astype(np.float32)


@pytest.mark.parametrize(("safe", "parts"), [(False, 64516), (True, 15876)])
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    columns=st.integers(1, 300),
    out=st.integers(1, 40),
    outlier=st.sampled_from([1.0, 100.0, 1e4]),
)
def test_a_state_is_off_by_its_share_of_the_row_at_most(
    safe: bool, parts: int, seed: int, rows: int, columns: int, out: int, outlier: float
) -> None:
    """Law: the bound of the module's docstring, times the weights. Oracle: float64."""
    states, codes, scales, bias = drawn(seed, rows, columns, out, outlier)
    model = multiplied(graph(codes, scales, bias))
    made = run(coarse(model) if safe else model, states)
    wide = codes.astype(np.float64) * scales
    exact = states.astype(np.float64) @ wide + bias
    largest = np.abs(states).max(1, keepdims=True).astype(np.float64)
    weights = np.abs(wide).sum(0)
    bound = largest / parts * weights * 1.001 + SMALL * (largest * weights + np.abs(bias)) + 1e-25
    assert np.all(np.abs(made - exact) <= bound)


@pytest.mark.parametrize("outlier", [1.0, 30.0, 1e3, 1e6])
def test_bfloat16_would_move_a_product_further(outlier: float) -> None:
    """Also where one value dwarfs the others of its row. Oracle: states rounded to bfloat16."""
    states, codes, scales, _ = drawn(7, 64, 2048, 96, outlier)
    wide = codes.astype(np.float64) * scales
    exact = states.astype(np.float64) @ wide
    made = run(multiplied(graph(codes, scales)), states)
    rounded = states.astype(ml_dtypes.bfloat16).astype(np.float64) @ wide
    size = np.linalg.norm(exact, axis=1) + 1e-30
    errors = [np.linalg.norm(y - exact, axis=1) / size for y in (made, rounded)]
    assert np.median(errors[0]) < np.median(errors[1])
    assert errors[0].max() < 2**-9


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """A chunk and single tokens give the same bits, so caches made by either agree."""
    states, codes, scales, bias = drawn(3, 33, 257, 130, 50.0)
    model = multiplied(graph(codes, scales, bias))
    together = run(model, states)
    alone = np.concatenate([run(model, states[i : i + 1]) for i in range(0, 33, 8)])
    np.testing.assert_array_equal(together[::8], alone)


def test_what_is_not_finite_stays_so() -> None:
    """Infinity is not hidden by codes, and leaves other rows alone."""
    states, codes, scales, _ = drawn(5, 4, 64, 8, 1.0)
    states[2, 3] = np.inf
    made = run(multiplied(graph(codes, scales)), states)
    assert not np.isfinite(made[2]).any()
    assert np.isfinite(np.delete(made, 2, 0)).all()


def test_a_state_is_split_once_for_all_its_products() -> None:
    """Queries, keys and values read the same state. Oracle: the count of nodes."""
    _, codes, scales, _ = drawn(1, 1, 16, 16, 1.0)
    proto = graph(codes, scales)
    again = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    again[0].output[0], again[1].input[1], again[1].output[0] = "wide2", "wide2", "z"
    proto.graph.node.extend(again)
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 16]))
    kinds = [node.op_type for node in multiplied(proto).graph]
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert kinds.count("Abs") == 1
    assert "Gemm" not in kinds
    assert kinds.count("DequantizeLinear") == 1


LOADED = """
import json, resource, sys
import numpy as np
from axcore.runtime.axengine_sim import InferenceSession
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
session = InferenceSession(sys.argv[1])
session.run(None, {"x": np.ones((1, 4096), np.float32)})
print(json.dumps(peak() - before))
"""


def test_codes_are_not_widened_in_memory(tmp_path: Path) -> None:
    """Peak memory of loading and running, in a child: a mapped file and its packed copy.

    Oracle: float32 takes four bytes a weight, which is above the limit.
    """
    codes = np.random.default_rng(0).integers(-127, 128, (4096, 4096), dtype=np.int8)
    proto = graph(codes, np.ones(4096, np.float32))
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    ir.save(multiplied(proto), tmp_path / "m.onnx", external_data="m.data")
    command = [sys.executable, "-c", LOADED, str(tmp_path / "m.onnx")]
    grown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert grown < 3 * codes.nbytes
