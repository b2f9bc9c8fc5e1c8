"""Attention whose keys are copied head by head, and turned by the product."""

from __future__ import annotations

import onnx_ir as ir

_BY_HEAD, _TURNED = (0, 2, 1, 3), (0, 2, 3, 1)  # of ``[batch, positions, heads, width]``


def turn_keys_in_products(graph: ir.Graph) -> None:
    """Let products by keys ``[batch, heads, width, positions]`` turn these themselves.

    Copying a row of a head is fast; scattering its values is not, and with a long cache takes
    longer than the product. Sums may be taken in another order.

    Args:
        graph: Changed in place.
    """
    for node in [node for node in graph if node.op_type == "MatMul"]:
        state, keys = node.inputs
        source = keys.producer() if keys is not None else None
        if source is None or source.op_type != "Transpose" or keys is None:
            continue
        if tuple(source.attributes.get_ints("perm", ())) != _TURNED or len(keys.uses()) > 1:
            continue
        heads = ir.node("Transpose", [source.inputs[0]], {"perm": _BY_HEAD}, name=source.name)
        heads.outputs[0].name, heads.outputs[0].type = f"{keys.name}.by_head", keys.type
        product = ir.node(
            "FusedMatMul",
            [state, heads.outputs[0]],
            {"transB": 1},
            domain="com.microsoft",
            name=node.name,
        )
        old, new = node.outputs, product.outputs
        ir.convenience.replace_nodes_and_values(
            graph, node, [source, node], [heads, product], old, new
        )
        graph.opset_imports["com.microsoft"] = 1
