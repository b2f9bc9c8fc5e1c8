"""Samples as mappings in ``.npy`` files, as `numpy.save` of numpy 1 writes them.

Such a file is a pickle. It names the functions that make arrays by their modules, which numpy 2
renamed: numpy 1 cannot read what numpy 2 writes, while numpy 2 finds the old names, too.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

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
    import numpy as np

    file = BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    file.writelines([_PROTO, *_array((), "O", _boxed(sample)), _STOP])
    return file.getvalue()


def _boxed(sample: Mapping[str, Array]) -> Iterable[bytes]:
    """A list that holds the mapping."""
    yield _EMPTY_LIST + _EMPTY_DICT
    for name, array in sample.items():
        yield _text(name)
        data = array.tobytes()
        yield from _array(array.shape, array.dtype.str, [b"B", struct.pack("<I", len(data)), data])
        yield _SETITEM
    yield _APPEND


def _array(shape: tuple[int, ...], dtype: str, content: Iterable[bytes]) -> Iterable[bytes]:
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
