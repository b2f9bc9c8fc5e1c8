"""Graph passes that write an exported graph in the forms that vendor front ends accept.

No pass changes a result by a bit, but for `PowersPass` above the third power. All are idempotent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WEIGHT = "weight."
"""Names of the graph inputs that stand for parameters begin so: they become initializers."""

POWERS = (3, 5, 6, 7, 8)
"""Exponents that `PowersPass` writes out; compilers have a Pow of 2 and 4, and of their roots."""


# Before the conversion to another operator set ----------------------------------------------------


class NewerAttributesPass(ir.passes.InPlacePass):
    """Remove attributes at their default that the operator set `opset` does not have.

    Exporters write them, and onnx's version converter refuses or keeps them.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self._opset = opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove them from every node of the main graph and its subgraphs."""
        modified = False
        for node in model.graph.all_nodes():
            for name in self._newer(node, model.opset_imports.get(node.domain)):
                del node.attributes[name]
                modified = True
        return ir.passes.PassResult(model, modified)

    def _newer(self, node: ir.Node, written: int | None) -> list[str]:
        schema, older = _schema(node, written), _schema(node, self._opset)
        if schema is None or older is None:
            return []
        return [
            name
            for name, attribute in node.attributes.items()
            if name not in older.attributes
            and not attribute.is_ref()
            and attribute.value == _default(schema, name)
        ]


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
            _constant(graph, f"{output.name}.{name}", np.array([value]))
            for name, value in (("starts", start), ("ends", stop), ("axes", axis))
        ]
        part = ir.node("Slice", [data, *bounds], name=f"{split.name}.{start}")
        part.outputs[0].shape, part.outputs[0].type = output.shape, output.type
        graph.insert_before(split, part)
        ir.convenience.replace_all_uses_with(output, part.outputs[0], replace_graph_outputs=True)
        start = stop
    graph.remove(split, safe=True)


# In the final operator set ------------------------------------------------------------------------


class PowersPass(ir.passes.InPlacePass):
    """Write powers of `POWERS` as multiplications, the cube as ``x * x * x``.

    That is how torch and ONNX Runtime compute a cube, bit by bit; of higher powers they round the
    exact result once, a product each factor, which differs in the last two bits.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        powers = [(node, _power(node)) for node in _nodes(model, "Pow")]
        for node, exponent in powers:
            if exponent:
                _replace(model.graph, node, _product(node, exponent))
        return ir.passes.PassResult(model, any(exponent for _, exponent in powers))


def _power(node: ir.Node) -> int:
    """Return the exponent of a Pow that is written out, or 0."""
    base, exponent = node.inputs
    tensor = ir.convenience.get_const_tensor(exponent) if exponent is not None else None
    if base is None or base.shape is None or tensor is None or tensor.size != 1:
        return 0
    value = tensor.numpy().item()
    return int(value) if value in POWERS and len(tensor.shape) <= len(base.shape) else 0


def _product(node: ir.Node, exponent: int) -> list[ir.Node]:
    """Multiply by squaring: ``x³ = x²·x``, ``x⁵ = (x²)²·x``."""
    base, made = node.inputs[0], list[ir.Node]()

    def times(a: ir.Value | None, b: ir.Value | None) -> ir.Value:
        made.append(ir.node("Mul", [a, b], name=f"{node.outputs[0].name}.{len(made)}"))
        made[-1].outputs[0].shape, made[-1].outputs[0].type = base.shape, base.type  # type: ignore[union-attr]
        return made[-1].outputs[0]

    result = base
    for bit in bin(exponent)[3:]:
        result = times(result, result)
        if bit == "1":
            result = times(result, base)
    return made


class ReciprocalPass(ir.passes.InPlacePass):
    """Write Reciprocal as a division of 1."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        nodes = [node for node in _nodes(model, "Reciprocal") if node.outputs[0].dtype]
        for node in nodes:
            dtype = node.outputs[0].dtype
            assert dtype is not None
            one = _constant(model.graph, f"{node.outputs[0].name}.one", np.ones((), dtype.numpy()))
            _replace(model.graph, node, [ir.node("Div", [one, node.inputs[0]], name=node.name)])
        return ir.passes.PassResult(model, bool(nodes))


class SqueezePass(ir.passes.InPlacePass):
    """Write Squeeze as Reshape to a constant shape, where the shape is known."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        nodes = [node for node in _nodes(model, "Squeeze") if _sizes(node.outputs[0]) is not None]
        for node in nodes:
            shape = np.array(_sizes(node.outputs[0]), np.int64)
            sizes = _constant(model.graph, f"{node.outputs[0].name}.shape", shape)
            _replace(
                model.graph, node, [ir.node("Reshape", [node.inputs[0], sizes], name=node.name)]
            )
        return ir.passes.PassResult(model, bool(nodes))


class GatherRowsPass(ir.passes.InPlacePass):
    """Gather with constant indices of one axis, and give the result its shape by Reshape.

    Compilers take indices of one axis alone; published towers have tables of them, such as the
    positions of patches as ``[1, N]``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        tables = [(node, _table(node)) for node in _nodes(model, "Gather")]
        for node, indices in tables:
            if indices is not None:
                _gather_rows(model.graph, node, indices)
        return ir.passes.PassResult(model, any(table is not None for _, table in tables))


def _table(node: ir.Node) -> np.ndarray[Any, Any] | None:
    """Return the constant indices of a Gather that have not one axis, else None."""
    tensor = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
    sizes = _sizes(node.outputs[0])
    if tensor is None or len(tensor.shape) == 1 or not sizes or 0 in sizes:
        return None  # as a length of Reshape, 0 stands for another
    return tensor.numpy()


def _gather_rows(graph: ir.Graph, node: ir.Node, indices: np.ndarray[Any, Any]) -> None:
    name = str(node.outputs[0].name)
    flat = _constant(graph, f"{name}.indices", indices.reshape(-1))
    shape = _constant(graph, f"{name}.shape", np.array(_sizes(node.outputs[0]), np.int64))
    rows = ir.node(
        "Gather",
        [node.inputs[0], flat],
        {"axis": node.attributes.get_int("axis", 0)},
        name=f"{name}.rows",
    )
    _replace(graph, node, [rows, ir.node("Reshape", [rows.outputs[0], shape], name=node.name)])


class ConstantsLastPass(ir.passes.InPlacePass):
    """Put constants, parameters among them, second in Add and Mul."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        constants, modified = _constants(model.graph), False
        for node in _nodes(model, "Add", "Mul"):
            first, second = node.inputs
            if first in constants and second not in constants:
                node.replace_input_with(0, second)
                node.replace_input_with(1, first)
                modified = True
        return ir.passes.PassResult(model, modified)


class BiasRowsPass(ir.passes.InPlacePass):
    """Give a vector added to the product of two computed matrices the shape ``[1, N]``.

    A vector would be fused with the product into a Gemm, whose weight has to be constant.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        constants, modified = _constants(model.graph), False
        for node in _nodes(model, "Add"):
            for index, (bias, product) in enumerate((node.inputs, node.inputs[::-1])):
                if bias in constants and _is_vector(bias) and _is_live(product, constants):
                    node.replace_input_with(index, _as_row(model.graph, node, bias))
                    modified = True
        return ir.passes.PassResult(model, modified)


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 1


def _is_live(value: ir.Value | None, constants: set[ir.Value | None]) -> bool:
    """Whether this is a matrix made by a MatMul whose second operand is computed, too."""
    product = value.producer() if value is not None else None
    return (
        product is not None
        and product.op_type == "MatMul"
        and product.inputs[1] not in constants
        and value is not None
        and value.shape is not None
        and len(value.shape) > 1
    )


def _as_row(graph: ir.Graph, node: ir.Node, bias: ir.Value | None) -> ir.Value:
    assert bias is not None
    assert bias.shape is not None
    name = f"{node.outputs[0].name}.bias"
    tensor = ir.convenience.get_const_tensor(bias)
    if tensor is not None:
        return _constant(graph, name, tensor.numpy()[None])
    sizes = _constant(graph, f"{name}.shape", np.array([1, -1]))
    row = ir.node("Reshape", [bias, sizes], name=name)  # of a parameter, known when it is saved
    row.outputs[0].shape, row.outputs[0].type = ir.Shape([1, bias.shape[0]]), bias.type
    graph.insert_before(node, row)
    return row.outputs[0]


class ReductionAxesPass(ir.passes.InPlacePass):
    """Name all axes of a reduction that names none: some compilers then take the last alone."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        reductions = [
            node
            for node in model.graph
            if node.op_type.startswith("Reduce") and not node.domain and _reduces_all(node)
        ]
        for node in reductions:
            assert node.inputs[0] is not None
            assert node.inputs[0].shape is not None
            axes = range(len(node.inputs[0].shape))
            schema = _schema(node, model.opset_imports.get(""))
            if schema is not None and "axes" in schema.attributes:
                node.attributes.add(ir.AttrInt64s("axes", list(axes)))
            else:
                value = _constant(model.graph, f"{node.outputs[0].name}.axes", np.array(axes))
                node.resize_inputs(2)
                node.replace_input_with(1, value)
        return ir.passes.PassResult(model, bool(reductions))


def _reduces_all(node: ir.Node) -> bool:
    given = node.attributes.get_ints("axes") or (len(node.inputs) > 1 and node.inputs[1])
    source = node.inputs[0]
    rank = 0 if source is None or source.shape is None else len(source.shape)
    return not given and rank > 0 and not node.attributes.get_int("noop_with_empty_axes", 0)


class ExplicitAttributesPass(ir.passes.InPlacePass):
    """Write out every attribute that has a default; some front ends know none of them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add them to every node of the main graph and its subgraphs."""
        modified = False
        for node in model.graph.all_nodes():
            if _allows_zero_idly(node):
                del node.attributes["allowzero"]
            schema = _schema(node, model.opset_imports.get(node.domain))
            for name, value in _unwritten(node, schema):
                node.attributes.add(ir.convenience.convert_attribute(name, value))
                modified = True
        return ir.passes.PassResult(model, modified)


def _unwritten(node: ir.Node, schema: onnx.defs.OpSchema | None) -> Iterator[tuple[str, Any]]:
    if schema is None:
        return
    prose = _prose_defaults(node)
    for name in schema.attributes:
        value = _default(schema, name)
        value = prose.get(name) if value is None else value
        if name not in node.attributes and value is not None:
            yield name, value


def _prose_defaults(node: ir.Node) -> Mapping[str, Any]:
    """Return the defaults that ONNX states in words, as they follow from shapes."""
    source = _sizes(node.inputs[0]) if node.inputs else None
    if node.op_type == "Transpose":
        known = node.inputs[0].shape if node.inputs[0] is not None else None
        return {} if known is None else {"perm": [*reversed(range(len(known)))]}
    if node.op_type not in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"):
        return {}
    if "Conv" in node.op_type:
        source = _sizes(node.inputs[1])
        kernel = None if source is None else source[2:]
    else:
        kernel = list(node.attributes.get_ints("kernel_shape"))
    if not kernel:
        return {}
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    found = {"kernel_shape": kernel, "strides": ones, "dilations": ones}
    if node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET":
        # Beside `output_shape` the pads would be ignored, and `output_padding` mean something else.
        fixed = "output_shape" in node.attributes
        found |= {} if fixed else {"pads": zeros * 2, "output_padding": zeros}
    return found


PASSES = (
    ReciprocalPass,
    SqueezePass,
    GatherRowsPass,
    PowersPass,
    ReductionAxesPass,
    BiasRowsPass,
    ConstantsLastPass,
    ExplicitAttributesPass,
)
"""The passes of a graph in its final operator set, in their order."""


def rewrite(model: ir.Model) -> ir.Model:
    """Apply `PASSES` in place; shapes in the model are relied upon."""
    return ir.passes.Sequential(*(kind() for kind in PASSES))(model).model


# What passes share --------------------------------------------------------------------------------


def _nodes(model: ir.Model, *operators: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in operators and not node.domain]


def _constants(graph: ir.Graph) -> set[ir.Value | None]:
    """Return what is the same at every call: constants, parameters, and what follows from them."""
    found: set[ir.Value | None] = {None, *graph.initializers.values()}
    found |= {value for value in graph.inputs if str(value.name).startswith(WEIGHT)}
    for node in graph:
        if not node.op_type.startswith("Random") and found.issuperset(node.inputs):
            found.update(node.outputs)
    return found


def _constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put `nodes` in the place of `node`; the last one's output takes the place of its output."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name, old.name = old.name, None
    new.name = name
    graph.remove(node, safe=True)


def _sizes(value: ir.Value | None) -> list[int] | None:
    """Return the shape of a value, or None where a length is not known."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return list(value.shape.numpy())


def _schema(node: ir.Node, opset: int | None) -> onnx.defs.OpSchema | None:
    if opset is None:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _default(schema: onnx.defs.OpSchema, name: str) -> Any:
    """Return an attribute's default; None where the schema gives none."""
    attribute = schema.attributes.get(name)
    if attribute is None or not attribute.default_value.type:
        return None
    return ir.serde.deserialize_attribute(attribute.default_value).value


def _allows_zero_idly(node: ir.Node) -> bool:
    """Whether a Reshape says what 0 means although its constant shape has none."""
    if node.op_type != "Reshape" or node.domain or not node.attributes.get_int("allowzero", 0):
        return False
    shape = node.inputs[1]
    tensor = ir.convenience.get_const_tensor(shape) if shape is not None else None
    return tensor is not None and bool((tensor.numpy() != 0).all())
