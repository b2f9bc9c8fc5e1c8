"""Make calibration samples, write them in the form that toolchains read, and read them back."""

from __future__ import annotations

import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ContractError, ImageError
from ..foreign import read_bytes
from ..limits import FEATURES_BYTES
from ..progress import Silent
from .npy import read_array
from .objects import object_arrays, object_npy
from .parallel import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from PIL.Image import Image

    from ..component import Calibration, Component, Port, Sample
    from ..progress import Progress
    from .arrays import SourceArray
    from .images import SourceImage

    Array = np.ndarray[Any, Any]
    Source = SourceImage | SourceArray
    Make = Callable[[Sequence[Image | Array]], Iterable[Sample]]

_SILENT = Silent()
_HINT = (
    "make_calib returns samples for each group of images, with one array for every input: "
    "a uint8 image for format Image, else the input itself"
)
PNG_LEVEL = 1  # fastest compression: each file is read only once or twice


@dataclass(frozen=True)
class CalibrationSet:
    """The files written for a component or part.

    Attributes:
        archives: The archive of each input. Files of equal name in several archives belong to one
            sample; with format "NumpyObject" all inputs share one archive.
        files: The samples as single files, in order, input by input.
        samples: Number of samples.
    """

    archives: Mapping[str, Path]
    files: list[Path]
    samples: int

    @property
    def archive(self) -> Path:
        """The archive of the first input."""
        return next(iter(self.archives.values()))


def image_samples(
    component: Component,
    make: Make,
    images: Sequence[Source],
    progress: Progress = _SILENT,
) -> Iterator[Sample]:
    """Yield the samples made from images or arrays, in order, using all cores.

    Args:
        component: Says how many of them make a sample.
        make: Turns ``component.images_per_sample`` consecutive RGB images, or float32 arrays, into
            samples; called from several threads.
        images: Used in this order; an incomplete last group is left out.
        progress: Where to report.

    Raises:
        ImageError: There are too few for one sample, or one cannot be read.
    """
    groups = _groups(component, images, progress)
    size, what = component.images_per_sample, f"{component.media}s"
    with progress.task(f"calibration of {component.name}", len(groups) * size, what) as task:
        for samples in in_order(partial(_make, make), groups):
            yield from samples
            task.advance(size)


def store_samples(
    name: str,
    ports: Sequence[Port],
    calibration: Calibration,
    samples: Iterable[Sample],
    folder: Path,
    archive: str = "",
) -> CalibrationSet:
    """Write samples; equal samples give equal bytes.

    Writes ``calib_<name>_data/data_<i>.<png|npy>`` (in a folder per input where there are
    several) and an uncompressed TAR of the same files: ``<input>.tar`` for every input,
    ``<name>.tar`` for format "NumpyObject", or ``<archive>.tar`` for a single input.

    Args:
        name: Name of the component or part.
        ports: The inputs. A sample holds an array for each: for format "Image" uint8
            ``[H, W, 3]`` where the port is ``[1, 3, H, W]``, else of the port's shape and dtype.
        calibration: How to store them.
        samples: Consumed one by one, so that few are in memory at a time.
        folder: Where to write: the folder of a step, which appears when it is complete.
        archive: Name of the archive of a single input, if not the input's.

    Raises:
        ContractError: A sample does not match the ports, or there are no samples.
    """
    archives = _archives(name, ports, calibration)
    written: dict[str, list[Path]] = {key: [] for key in archives.values()}
    encode = partial(_encode, name, ports, calibration)
    for number, encoded in enumerate(in_order(encode, samples)):
        for key, path in _members(name, ports, calibration, number).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(encoded[key])
            written[key].append(path)
    if not any(written.values()):
        raise ContractError(f"there are no calibration samples for `{name}`", hint=_HINT)
    tars = {key: folder / f"{(len(written) == 1 and archive) or key}.tar" for key in written}
    for key, files in written.items():
        _write_tar(tars[key], [folder / path for path in files])
    return CalibrationSet(
        archives={port: tars[key] for port, key in archives.items()},
        files=[folder / path for files in written.values() for path in files],
        samples=len(next(iter(written.values()))),
    )


def load_samples(
    name: str,
    ports: Sequence[Port],
    calibration: Calibration,
    count: int,
    locate: Callable[[str], Path],
) -> Iterator[Sample]:
    """Yield the samples that `store_samples` wrote, one at a time, with equal arrays.

    Args:
        name, ports, calibration: As they were given to `store_samples`.
        count: How many samples there are.
        locate: Returns where a file lies, given its path relative to the folder.
    """
    for number in range(count):
        sample: dict[str, Array] = {}
        for archive, path in _members(name, ports, calibration, number).items():
            place = locate(str(path))
            try:
                content = read_bytes(place, FEATURES_BYTES)
                sample |= _decode(content, archive, ports, calibration)
            except (OSError, ValueError, SyntaxError) as error:  # the last one is Pillow's of PNG
                raise ImageError(
                    f"the calibration sample {place} cannot be read\n  {error}",
                    hint="convert into a new folder with -o",
                ) from error
        yield sample


def _archives(name: str, ports: Sequence[Port], calibration: Calibration) -> dict[str, str]:
    """Return, for every input, the name of the archive that holds its samples."""
    shared = calibration.format == "NumpyObject"
    return {port.name: name if shared else port.name for port in ports}


def _data(name: str) -> str:
    return f"calib_{name}_data"


def _members(
    name: str, ports: Sequence[Port], calibration: Calibration, number: int
) -> dict[str, Path]:
    """Map each archive to its member `number` as a single file, relative to the folder."""
    archives = dict.fromkeys(_archives(name, ports, calibration).values())
    file = f"data_{number}.{'png' if calibration.format == 'Image' else 'npy'}"
    return {
        archive: Path(_data(name), archive if len(archives) > 1 else "", file)
        for archive in archives
    }


# Make --------------------------------------------------------------------------------------------


def _groups(
    component: Component, images: Sequence[Source], progress: Progress
) -> list[Sequence[Source]]:
    size, what = component.images_per_sample, f"{component.media}s"
    used = len(images) - len(images) % size
    if not used:
        raise ImageError(
            f"a calibration sample of `{component.name}` takes {size} {what}, "
            f"but only {len(images)} were given",
            hint=f"give more {what}",
        )
    if used < len(images):
        progress.say(
            f"the last {len(images) - used} of {len(images)} {what} are left out: "
            f"a calibration sample of `{component.name}` takes {size}"
        )
    return [images[start : start + size] for start in range(0, used, size)]


def _make(make: Make, group: Sequence[Source]) -> list[Sample]:
    with ExitStack() as stack:
        loaded: list[Any] = [stack.enter_context(one.loaded()) for one in group]
        return list(make(loaded))


# Encode ------------------------------------------------------------------------------------------


def _encode(
    name: str, ports: Sequence[Port], calibration: Calibration, sample: Sample
) -> dict[str, bytes]:
    """Return the file content for each archive."""
    checked = checked_sample(name, ports, calibration, sample)
    if calibration.format == "NumpyObject":
        return {name: object_npy(checked)}
    if calibration.format == "Numpy":
        return {port: _npy(array) for port, array in checked.items()}
    return {port: _png(array, calibration) for port, array in checked.items()}


def _npy(array: Array) -> bytes:
    import numpy as np

    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _png(array: Array, calibration: Calibration) -> bytes:
    """Return PNG bytes; read in the calibration's channel order, they give the array."""
    import numpy as np
    from PIL import Image as PillowImage

    stored = array[..., ::-1] if calibration.tensor_format == "BGR" else array
    file = BytesIO()
    image = PillowImage.fromarray(np.ascontiguousarray(stored))
    image.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def _decode(
    content: bytes, archive: str, ports: Sequence[Port], calibration: Calibration
) -> dict[str, Array]:
    """Return the arrays of one file: the inverse of `_encode`."""
    import numpy as np
    from PIL import Image as PillowImage

    if calibration.format == "NumpyObject":
        return object_arrays(content, {port.name: (port.shape, port.dtype) for port in ports})
    file = BytesIO(content)
    if calibration.format == "Numpy":
        return {archive: read_array(file)}
    with PillowImage.open(file, formats=["PNG"]) as image:
        stored = np.asarray(image)
    return {archive: stored[..., ::-1] if calibration.tensor_format == "BGR" else stored}


def checked_sample(
    name: str, ports: Sequence[Port], calibration: Calibration, sample: Sample
) -> dict[str, Array]:
    """Return the arrays of a sample in the order of the ports, contiguous.

    Raises:
        ContractError: They are not what the ports take; see `store_samples`.
    """
    import numpy as np

    expected = [port.name for port in ports]
    if set(sample) != set(expected):
        raise ContractError(
            f"a calibration sample of `{name}` has the wrong inputs\n"
            f"  found: {', '.join(sample) or 'none'}\n"
            f"  expected: {', '.join(expected)}",
            hint=_HINT,
        )
    for port in ports:
        _check_array(name, port, calibration, sample[port.name])
    return {port: np.ascontiguousarray(sample[port]) for port in expected}


def _check_array(name: str, port: Port, calibration: Calibration, array: object) -> None:
    import numpy as np

    image = calibration.format == "Image"
    expected = f"uint8 {[*port.shape[2:], 3]}" if image else f"{port.dtype} {[*port.shape]}"
    found = type(array).__name__
    if isinstance(array, np.ndarray):
        found = f"{array.dtype} {[*array.shape]}"
    if found != expected:
        raise ContractError(
            f"a calibration sample of `{name}` has {found} for input `{port.name}`\n"
            f"  expected: {expected}",
            hint=_HINT,
        )


# Write -------------------------------------------------------------------------------------------


def _write_tar(path: Path, files: Iterable[Path]) -> None:
    """Write an archive that depends only on names and contents, not on times or owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(file.name)
            member.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(member, content)
