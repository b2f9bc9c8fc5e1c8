"""Arrays for components that take no pictures, such as log-mel features: ``.npy`` files."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..foreign import reason
from ..limits import ARRAY_BYTES
from .npy import read_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    Array = np.ndarray[Any, Any]


def is_array(data: bytes) -> bool:
    """Whether data begins as numpy's files of one array do."""
    return data.startswith(b"\x93NUMPY")


@dataclass(frozen=True)
class SourceArray:
    """One array, read on demand.

    Attributes:
        name: Path of the file, or of the archive and the member in it.
        read: Returns the content of the file; may be called from any thread.
    """

    name: str
    read: Callable[[], bytes]

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal sha256 of the file; read once, then cached.

        Raises:
            ImageError: It cannot be read.
        """
        with self._explained():
            return hashlib.sha256(self.read()).hexdigest()

    @contextmanager
    def loaded(self) -> Iterator[Array]:
        """Read the array for a block.

        Yields:
            float32, all of it finite.

        Raises:
            ImageError: It cannot be read, or holds something else.
        """
        with self._explained():
            array = _checked(self.read())
        yield array

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # numpy raises many kinds on damaged bytes
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise ImageError(
                f"`{self.name}` cannot be used as an array\n  {why}",
                hint="save it as float32 with `numpy.save(path, array)`, or leave it out",
            ) from error


def _checked(content: bytes) -> Array:
    import numpy as np

    if len(content) > ARRAY_BYTES:
        raise ValueError(f"the file has more than {ARRAY_BYTES >> 20} MiB")
    array = read_array(BytesIO(content))
    if array.dtype != np.float32:
        raise ValueError(f"it holds {array.dtype} {[*array.shape]}, not float32")
    if not (array.size and np.isfinite(array).all()):
        raise ValueError("it is empty, or holds infinities or NaNs")
    return array
