"""Samples as mappings in ``.npy`` files, as `numpy.save` of numpy 1 writes them.

Such a file is a pickle. It names the functions that make arrays by their modules, which numpy 2
renamed: numpy 1 cannot read what numpy 2 writes, while numpy 2 finds the old names, too.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np

    from ..component import Shape

    Array = np.ndarray[Any, Any]

# Opcodes of protocol 3; the names are those of the standard library's `pickletools`.
_PROTO, _STOP = b"\x80\x03", b"."
_MARK, _TUPLE, _TUPLE1, _TUPLE3 = b"(", b"t", b"\x85", b"\x87"
_REDUCE, _BUILD, _NEWFALSE = b"R", b"b", b"\x89"
_EMPTY_LIST, _APPEND, _EMPTY_DICT, _SETITEM = b"]", b"a", b"}", b"s"

_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
_NDARRAY, _DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"


def object_npy(sample: Mapping[str, Array]) -> bytes:
    """Return the content of a file that `numpy.load` reads as an object array of one mapping."""
    return b"".join(one if isinstance(one, bytes) else one.tobytes() for one in _pieces(sample))


def object_arrays(content: bytes, expected: Mapping[str, tuple[Shape, str]]) -> dict[str, Array]:
    """Return the arrays of a file that `object_npy` wrote; nothing is unpickled.

    As their names, shapes and dtypes are known, all other bytes of the file are, too.

    Args:
        content: Of the file.
        expected: Name of each array to its shape and dtype, in order.

    Raises:
        ValueError: It is another file.
    """
    import numpy as np

    blank = {name: np.empty(shape, dtype) for name, (shape, dtype) in expected.items()}
    made: dict[str, Array] = {}
    names, start = iter(blank), 0
    for piece in _pieces(blank):
        size = len(piece) if isinstance(piece, bytes) else piece.nbytes
        found, start = content[start : start + size], start + size
        if isinstance(piece, bytes):
            known = found == piece
        elif known := len(found) == size:
            made[next(names)] = np.frombuffer(found, piece.dtype).reshape(piece.shape)
        if not known:
            break
    if not known or start != len(content):
        listed = ", ".join(f"{n} {dtype} {[*shape]}" for n, (shape, dtype) in expected.items())
        raise ValueError(f"it is not a sample of {listed} as they are stored here")
    return made


def _pieces(sample: Mapping[str, Array]) -> Iterator[bytes | Array]:
    """Yield the content of a file; arrays stand for their bytes."""
    import numpy as np

    file = BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    yield file.getvalue()
    yield _PROTO
    yield from _array((), "O", _boxed(sample))
    yield _STOP


def _boxed(sample: Mapping[str, Array]) -> Iterator[bytes | Array]:
    """A list that holds the mapping."""
    yield _EMPTY_LIST + _EMPTY_DICT
    for name, array in sample.items():
        yield _text(name)
        size = b"B" + struct.pack("<I", array.nbytes)
        yield from _array(array.shape, array.dtype.str, [size, array])
        yield _SETITEM
    yield _APPEND


def _array(
    shape: tuple[int, ...], dtype: str, content: Iterable[bytes | Array]
) -> Iterator[bytes | Array]:
    """An array as numpy 1 takes it apart: an empty one, and the state that fills it."""
    yield _RECONSTRUCT + _NDARRAY + _int(0) + _TUPLE1 + b"C\x01b" + _TUPLE3 + _REDUCE
    version, sizes = _int(1), b"".join(map(_int, shape))
    yield _MARK + version + _MARK + sizes + _TUPLE + _DTYPE + _text(dtype) + _TUPLE1 + _REDUCE
    yield _NEWFALSE  # not in Fortran's order
    yield from content
    yield _TUPLE + _BUILD


def _int(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data
