"""Read arrays that numpy saved, without believing what their headers say."""

from __future__ import annotations

import math
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def read_array(file: IO[bytes]) -> Array:
    """Return the array in a ``.npy`` file.

    numpy makes an array of the shape that a header says before it reads one; here the header is
    compared with the file first. Pickled objects are never loaded.

    Args:
        file: At its beginning; it can seek.

    Raises:
        ValueError: It is no such file, or holds something else than its header says.
    """
    import numpy as np

    if file.read(4) == b"PK\3\4":
        raise ValueError("it is an archive of several arrays")
    file.seek(0)
    shape, dtype = _header(file)
    start, promised = file.tell(), math.prod(shape) * dtype.itemsize
    held = file.seek(0, 2) - start
    if promised != held:
        raise ValueError(f"its header promises {promised} bytes, it holds {held}")
    file.seek(0)
    made: Array = np.load(file, allow_pickle=False)
    return made


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    from numpy.lib import format as form

    read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    version = form.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not read")
    shape, _, dtype = read[version](file)
    if dtype.hasobject:
        raise ValueError("it holds objects, which are pickled and never loaded")
    return shape, dtype
