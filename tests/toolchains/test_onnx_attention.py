"""Products by keys that are turned by the product, against those by keys turned before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from axcore.toolchains.onnx.attention import turn_keys_in_products

Array = np.ndarray[Any, Any]


def scores(uses: int = 1) -> onnx.ModelProto:
    """Queries ``[b, heads, n, width]`` by keys ``[b, positions, heads, width]``."""
    nodes = [helper.make_node("Transpose", ["keys"], ["turned"], perm=[0, 2, 3, 1])]
    nodes += [helper.make_node("MatMul", ["queries", "turned"], [f"s{i}"]) for i in range(uses)]

    def port(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4)

    outputs = [port(f"s{i}") for i in range(uses)]
    made = helper.make_graph(nodes, "scores", [port("queries"), port("keys")], outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, feed: dict[str, Array]) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


@pytest.mark.parametrize("positions", [0, 1, 7, 256])
@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 5), (3, 2)])
def test_scores_stay(batch: int, count: int, positions: int) -> None:
    """Also without a history, where there is nothing to turn. Oracle: the graph before."""
    plain = scores()
    model = ir.from_proto(plain)
    turn_keys_in_products(model.graph)
    assert [node.op_type for node in model.graph] == ["Transpose", "FusedMatMul"]
    rng = np.random.default_rng(positions)
    feed = {
        "queries": rng.standard_normal((batch, 2, count, 16)).astype(np.float32),
        "keys": rng.standard_normal((batch, positions, 2, 16)).astype(np.float32),
    }
    made, expected = run(ir.to_proto(model), feed), run(plain, feed)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_keys_that_others_read_stay_turned() -> None:
    """The pass then leaves the graph alone. Oracle: the nodes before."""
    model = ir.from_proto(scores(uses=2))
    turn_keys_in_products(model.graph)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "MatMul"]
