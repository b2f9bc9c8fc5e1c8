"""Graph passes that simplify an exported graph to what vendor front ends accept."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx_ir as ir


class DefaultAttributesPass(ir.passes.InPlacePass):
    """Remove attributes that are set to their default value.

    Exporters write defaults explicitly. Operator tables list some of those attributes as
    unsupported (``noop_with_empty_axes``, ``alpha``), and older operator sets do not have them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them from every node of the main graph and its subgraphs."""
        modified = False
        for node in model.graph.all_nodes():
            for name in _redundant(node, model.opset_imports.get(node.domain)):
                del node.attributes[name]
                modified = True
        return ir.passes.PassResult(model, modified)


class SplitToSlicesPass(ir.passes.InPlacePass):
    """Replace every Split by Slices with constant bounds.

    Opset 18 changed Split (``num_outputs``), and onnx's converter cannot convert it back to 17.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        splits = [node for node in model.graph if node.op_type == "Split" and not node.domain]
        for node in splits:
            _slice(model.graph, node)
        return ir.passes.PassResult(model, bool(splits))


def _slice(graph: ir.Graph, split: ir.Node) -> None:
    data = split.inputs[0]
    axis = split.attributes.get_int("axis", 0)
    start = 0
    for output in split.outputs:
        assert output.shape is not None
        stop = start + int(output.shape[axis])  # type: ignore[arg-type]
        bounds = [
            _constant(graph, f"{output.name}.{name}", value)
            for name, value in (("starts", start), ("ends", stop), ("axes", axis))
        ]
        part = ir.node("Slice", [data, *bounds], name=f"{split.name}.{start}")
        part.outputs[0].shape, part.outputs[0].type = output.shape, output.type
        graph.insert_before(split, part)
        ir.convenience.replace_all_uses_with(output, part.outputs[0], replace_graph_outputs=True)
        start = stop
    graph.remove(split, safe=True)


def _constant(graph: ir.Graph, name: str, number: int) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor([number], name=name))
    graph.register_initializer(value)
    return value


def _redundant(node: ir.Node, opset: int | None) -> list[str]:
    if opset is None or not onnx.defs.has(node.op_type, node.domain):
        return []
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    found = []
    for name, attribute in node.attributes.items():
        declared = schema.attributes.get(name)
        if declared is None or attribute.is_ref():
            continue
        default = declared.default_value
        if default.type and ir.serde.deserialize_attribute(default).value == attribute.value:
            found.append(name)
    if node.op_type == "Reshape" and "allowzero" in node.attributes and _has_no_zero(node):
        found.append("allowzero")
    return list(dict.fromkeys(found))


def _has_no_zero(node: ir.Node) -> bool:
    """Whether a Reshape has a constant shape without 0; `allowzero` only changes what 0 means."""
    shape = node.inputs[1]
    tensor = ir.convenience.get_const_tensor(shape) if shape is not None else None
    return tensor is not None and bool((tensor.numpy() != 0).all())
