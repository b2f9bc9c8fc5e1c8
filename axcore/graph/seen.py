"""A node of a graph, as the restrictions of an operator table ask about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_FOLDED_DEPTH = 8  # how far constants are followed through nodes that compilers fold
_SMALL = 64  # elements of a constant whose values are looked at


class Unknown(Exception):
    """A restriction cannot be decided from the file; the message says what is missing."""


class Seen:
    """A node and the ONNX schema it is written in: what the restrictions ask about."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.schema = _schema(node.op_type, node.domain, opset)

    @property
    def name(self) -> str:
        """Name of the node, or of its first named output."""
        return self.node.name or next((value.name for value in self.node.outputs if value.name), "")

    @property
    def malformed(self) -> str:
        """Say how many inputs a node has that its operator does not take; empty for others."""
        count, schema = len(self.node.inputs), self.schema
        if schema is None or schema.min_input <= count <= schema.max_input:
            return ""
        return f"it has {count} inputs"

    @property
    def op(self) -> str:
        """The operator, with its domain where that is not ONNX's own."""
        return f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type

    def written(self, name: str) -> Any:
        """Return an attribute as the node gives it: a number, a string, a list, or None."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_ref():
            raise Unknown(f"{name} is set by the caller of the function")
        if name == "to":
            return dtype_name(attribute.as_int())
        return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value

    def default(self, name: str) -> Any:
        """Return an attribute's default, or None where the schema has none."""
        import onnx

        attribute = self.schema.attributes.get(name) if self.schema else None
        if attribute is None or not attribute.default_value.type:
            return None
        value = onnx.helper.get_attribute_value(attribute.default_value)
        return value.decode() if isinstance(value, bytes) else value

    def value_of(self, name: str) -> Any:
        """Return an attribute as it takes effect: written, or the default."""
        written = self.written(name)
        return self.default(name) if written is None else written

    def input(self, name: str) -> ir.Value | None:
        """Return what is connected to the input that the schema calls `name`."""
        names = [formal.name for formal in self.schema.inputs] if self.schema else []
        index = names.index(name) if name in names else len(self.node.inputs)
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, name: str) -> list[Any] | None:
        """Return the elements of a small constant input, or None of any other."""
        import onnx_ir as ir

        value = self.input(name)
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        return None if tensor is None or tensor.size > _SMALL else tensor.numpy().ravel().tolist()

    @property
    def folds(self) -> bool:
        """Whether all inputs are constants, so that the node can be computed beforehand."""
        return all(value is None or is_constant(value) for value in self.node.inputs)


def is_constant(value: ir.Value, depth: int = _FOLDED_DEPTH) -> bool:
    """Whether a value follows from constants alone, through at most `depth` nodes."""
    node = value.producer()
    if node is None:
        return value.is_initializer()
    return depth > 0 and all(
        source is None or is_constant(source, depth - 1) for source in node.inputs
    )


@cache
def _schema(op: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    import onnx

    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:  # an operator that ONNX does not know
        return None


def dtype_name(number: int) -> str:
    """Return numpy's name of an ONNX type."""
    import onnx_ir as ir

    try:
        return str(ir.DataType(number).numpy().name)
    except (TypeError, ValueError):  # no number has such a type, or ONNX has none of that number
        return f"ONNX type {number}"


def dimensions(value: ir.Value | None) -> list[Any]:
    """Return the dimensions of a value: numbers, or names where they are not static."""
    import onnx_ir as ir

    if value is None:
        raise Unknown("the input is missing")
    constant = ir.convenience.get_const_tensor(value)
    shape = value.shape if constant is None else constant.shape
    if shape is None:
        raise Unknown(f"the shape of `{value.name}` is not in the file")
    return [dim if isinstance(dim, int) else str(dim) for dim in shape]


Check = Callable[[Seen], str]
"""Returns what violates a restriction, with the value found, or the empty string.

Raises `Unknown` where the file does not tell.
"""
