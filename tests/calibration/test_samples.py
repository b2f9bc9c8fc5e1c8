"""Samples and their archives, reread with PIL, numpy and tarfile."""

from __future__ import annotations

import io
import os
import pickletools
import tarfile
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from axcore.calibration import (
    SourceImage,
    embedded_images,
    find_images,
    image_samples,
    load_samples,
    store_samples,
)
from axcore.calibration.objects import object_npy
from axcore.component import Calibration, Component, Port
from axcore.errors import ContractError, ImageError
from axcore.progress import Silent
from axcore.testing import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from axcore.calibration import CalibrationSet
    from axcore.component import Sample

IMAGES = find_images(embedded_images())
STRIP = Port("strip", (1, 3, 6, 20))
ARRAY = Port("patches", (1, 4, 5))
INDEX = Port("index", (4,), "int32")


def component(form: str, *ports: Port, group: int = 1, order: str = "BGR") -> Component:
    calibration = Calibration(format=form, tensor_format=order)
    return Component("eye", "eye", (), ports, (), None, group, calibration)


def strip(images: Sequence[Image.Image]) -> Iterator[Sample]:
    """One image sample for each group, with columns of all its images."""
    columns = np.hstack([np.asarray(image.resize((20, 6))) for image in images])
    yield {"strip": columns[:, :: len(images)]}


def arrays(images: Sequence[Image.Image]) -> Iterator[Sample]:
    """Two array samples for each group."""
    for turn in range(2):
        small = np.asarray(images[0].convert("L").resize((5, 4)), np.float32)
        yield {"index": np.arange(4, dtype=np.int32) + turn, "patches": small[None] * (turn + 1)}


def expected(make: Any, images: Sequence[SourceImage], group: int = 1) -> list[Sample]:
    starts = range(0, len(images) - group + 1, group)
    return [
        sample
        for start in starts
        for sample in make([image.load() for image in images[start : start + group]])
    ]


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def write_samples(
    eye: Component, make: Any, images: Sequence[SourceImage], folder: Path, progress: Any
) -> CalibrationSet:
    samples = image_samples(eye, make, images, progress)
    return store_samples(eye.name, eye.inputs, eye.calibration, samples, folder)


@pytest.mark.parametrize(("order", "read_as"), [("BGR", -1), ("RGB", 1), ("AutoColorSpace", 1)])
def test_a_reader_gets_channel_0_as_channel_0(tmp_path: Path, order: str, read_as: int) -> None:
    """Decoded in the calibration's order, the file is the array again.

    Oracle: PIL decodes to RGB; a reader that hands over BGR reverses that, as OpenCV does.
    """
    eye = component("Image", STRIP, order=order)
    written = write_samples(eye, strip, IMAGES, tmp_path, Silent())
    for path, sample in zip(written.files, expected(strip, IMAGES), strict=True):
        with Image.open(path) as image:
            assert image.format == "PNG"
            decoded = np.asarray(image)[..., ::read_as]
        assert np.array_equal(decoded, sample["strip"])


def test_the_archive_holds_the_files(tmp_path: Path) -> None:
    """Same names, same bytes, flat, no trace of the machine; named after the input.

    Oracle: tarfile.
    """
    written = write_samples(component("Image", STRIP), strip, IMAGES, tmp_path, Silent())
    assert written.archive == tmp_path / "strip.tar"
    assert written.samples == len(written.files) == len(IMAGES)
    assert [path.relative_to(tmp_path).as_posix() for path in written.files] == [
        f"calib_eye_data/data_{i}.png" for i in range(len(IMAGES))
    ]
    assert members(written.archive) == {path.name: path.read_bytes() for path in written.files}
    with tarfile.open(written.archive) as tar:
        traces = {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in tar}
    assert traces == {(0, 0, "", "", 0, 0o644)}


def test_array_samples_of_several_inputs_pair_by_name(tmp_path: Path) -> None:
    """One archive for each input; data_i of all of them is sample i. Oracle: numpy."""
    eye = component("Numpy", ARRAY, INDEX)
    written = write_samples(eye, arrays, IMAGES, tmp_path, Silent())
    assert written.archives == {
        "patches": tmp_path / "patches.tar",
        "index": tmp_path / "index.tar",
    }
    assert written.samples == 2 * len(IMAGES)
    for name, archive in written.archives.items():
        for i, sample in enumerate(expected(arrays, IMAGES)):
            stored = np.load(io.BytesIO(members(archive)[f"data_{i}.npy"]), allow_pickle=False)
            assert stored.dtype == sample[name].dtype
            assert np.array_equal(stored, sample[name])
    assert {str(path.parent.relative_to(tmp_path)) for path in written.files} == {
        "calib_eye_data/patches",
        "calib_eye_data/index",
    }


def test_object_samples_share_an_archive(tmp_path: Path) -> None:
    """A dict of all inputs a file, in one archive named after the component. Oracle: numpy."""
    eye = component("NumpyObject", ARRAY, INDEX)
    written = write_samples(eye, arrays, IMAGES[:1], tmp_path, Silent())
    assert set(written.archives.values()) == {tmp_path / "eye.tar"}
    assert [path.name for path in written.files] == ["data_0.npy", "data_1.npy"]
    for path, sample in zip(written.files, expected(arrays, IMAGES[:1]), strict=True):
        stored = np.load(path, allow_pickle=True).item()
        assert list(stored) == ["patches", "index"]
        assert all(np.array_equal(stored[name], sample[name]) for name in sample)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9),
        hnp.arrays(
            st.sampled_from(["u1", "i4", "i8", "f2", "f4", "f8", "?"]).map(np.dtype),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        ),
        max_size=3,
    )
)
def test_any_object_sample_is_read_back(sample: dict[str, Any]) -> None:
    """Names, shapes, types and values, writable as what numpy writes. Oracle: `numpy.load`."""
    read = np.load(io.BytesIO(object_npy(sample)), allow_pickle=True).item()
    assert list(read) == list(sample)
    for name, array in sample.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()
        assert read[name].flags.writeable


def test_object_samples_name_modules_of_every_numpy(tmp_path: Path) -> None:
    """Neither one that numpy 1 lacks, nor one that numpy 2 warns of. Oracle: the pickle's opcodes.

    Data that looks like such a name stays: the array is read back as it was.
    """
    hostile = np.frombuffer(b"cnumpy._core.multiarray\n_reconstruct\nxxxxx", np.uint8)
    port = Port("bytes", hostile.shape, "uint8")
    made = store_samples("eye", [port], Calibration("NumpyObject"), [{"bytes": hostile}], tmp_path)
    content = made.files[0].read_bytes()
    start = content.index(b"\n") + 1  # behind the header
    opcodes = list(pickletools.genops(content[start:]))
    names = {argument for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert not {"STACK_GLOBAL", "FRAME"} & {opcode.name for opcode, _, _ in opcodes}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = np.load(io.BytesIO(content), allow_pickle=True).item()
    np.testing.assert_array_equal(read["bytes"], hostile)


@pytest.mark.parametrize(
    ("form", "order", "ports"),
    [
        ("Image", "BGR", [STRIP]),
        ("Image", "RGB", [STRIP]),
        ("Numpy", "RGB", [ARRAY]),
        ("Numpy", "RGB", [ARRAY, INDEX]),
        ("NumpyObject", "RGB", [ARRAY, INDEX]),
    ],
)
def test_stored_samples_are_read_back(
    tmp_path: Path, form: str, order: str, ports: list[Port]
) -> None:
    """In order, each input's array as it was. Oracle: the samples that were written."""
    made = [
        {
            port.name: np.arange(360, dtype=np.uint8).reshape(6, 20, 3) + number
            if form == "Image"
            else np.full(port.shape, number, port.dtype)
            for port in ports
        }
        for number in range(11)
    ]
    calibration = Calibration(format=form, tensor_format=order)
    store_samples("eye", ports, calibration, made, tmp_path)
    loaded = load_samples("eye", ports, calibration, len(made), tmp_path.joinpath)
    for sample, expected in zip(loaded, made, strict=True):
        assert list(sample) == list(expected)
        for name, array in sample.items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name])


def test_a_stored_sample_runs_no_code(tmp_path: Path) -> None:
    """A pickle in place of an array is refused. Oracle: the folder it would have made."""

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (tmp_path / "ran",)

    (tmp_path / "calib_eye_data").mkdir()
    np.save(tmp_path / "calib_eye_data" / "data_0.npy", np.array(Trap()), allow_pickle=True)
    loaded = load_samples("eye", (ARRAY,), Calibration("Numpy"), 1, tmp_path.joinpath)
    with pytest.raises(ImageError, match="pickled and never loaded"):
        next(loaded)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["trap", "cut", "longer", "name", "shape", "opcode"])
def test_a_stored_mapping_is_the_one_that_was_written(tmp_path: Path, change: str) -> None:
    """No byte around the arrays may differ, and nothing is unpickled. Oracle: what is changed."""
    ports, calibration = (ARRAY, INDEX), Calibration("NumpyObject")
    made = [{port.name: np.zeros(port.shape, port.dtype) for port in ports}]
    (file,) = store_samples("eye", ports, calibration, made, tmp_path).files
    content, others = file.read_bytes(), ports
    if change == "trap":

        class Trap:
            def __reduce__(self) -> Any:
                return os.mkdir, (tmp_path / "ran",)

        np.save(file, np.array(Trap()), allow_pickle=True)
    elif change in ("cut", "longer"):
        file.write_bytes(content[:-1] if change == "cut" else content + b"x")
    elif change == "opcode":
        file.write_bytes(content.replace(b"cnumpy\nndarray\n", b"cposix\nxndarra\n", 1))
    else:
        name, shape = ("other", ARRAY.shape) if change == "name" else (ARRAY.name, (7, 9))
        others = (Port(name, shape, ARRAY.dtype), INDEX)
    with pytest.raises(ImageError, match="not a sample of"):
        next(load_samples("eye", others, calibration, 1, tmp_path.joinpath))
    assert not (tmp_path / "ran").exists()


def test_a_stored_sample_is_as_large_as_it_says(tmp_path: Path) -> None:
    """A header of a terabyte before a few bytes makes no array. Oracle: the size of the file."""
    (tmp_path / "calib_eye_data").mkdir()
    path = tmp_path / "calib_eye_data" / "data_0.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"few")
    loaded = load_samples("eye", (ARRAY,), Calibration("Numpy"), 1, tmp_path.joinpath)
    with pytest.raises(ImageError, match="promises 4000000000000 bytes, it holds 3"):
        next(loaded)


@pytest.mark.parametrize("form", ["Image", "Numpy", "NumpyObject"])
def test_two_runs_write_the_same_bytes(tmp_path: Path, form: str) -> None:
    """Files and archives depend on the images alone; oracle: a second run elsewhere."""
    ports, make = ((STRIP,), strip) if form == "Image" else ((ARRAY, INDEX), arrays)
    runs = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_samples(component(form, *ports), make, IMAGES, folder, Silent())
        files = [path for path in folder.rglob("*") if path.is_file()]
        runs.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert runs[0] == runs[1]


def test_groups_are_consecutive_and_the_rest_is_said(tmp_path: Path) -> None:
    """Three images a sample, in their order; what is left over is counted aloud."""
    recorder = Recorder()
    eye, images = component("Image", STRIP, group=3), (IMAGES * 2)[:8]
    written = write_samples(eye, strip, images, tmp_path, recorder)
    assert written.samples == 2
    assert len(recorder.said) == 1
    assert "last 2 of 8 images" in recorder.said[0]
    for path, sample in zip(written.files, expected(strip, images, 3), strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image)[..., ::-1], sample["strip"])


def test_too_few_images_for_one_sample_are_refused(tmp_path: Path) -> None:
    """Nothing is written where no sample can be made."""
    with pytest.raises(ImageError, match="takes 9 images, but only 6"):
        write_samples(component("Image", STRIP, group=9), strip, IMAGES, tmp_path, Silent())
    assert list(tmp_path.iterdir()) == []


BROKEN = {
    "another shape": {"strip": np.zeros((6, 21, 3), np.uint8)},
    "another dtype": {"strip": np.zeros((6, 20, 3), np.float32)},
    "no array": {"strip": [[0, 0, 0]]},
    "another input": {"image": np.zeros((6, 20, 3), np.uint8)},
    "no input": {},
}


@pytest.mark.parametrize("sample", BROKEN.values(), ids=BROKEN)
def test_what_the_ports_rule_out_is_refused(tmp_path: Path, sample: dict[str, Any]) -> None:
    """The error names component and input, and an earlier set stays as it was."""
    eye = component("Image", STRIP)
    write_samples(eye, strip, IMAGES[:1], tmp_path, Silent())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ContractError, match="sample of `eye`") as refusal:
        write_samples(eye, lambda _: [sample], IMAGES, tmp_path, Silent())
    assert "strip" in refusal.value.message
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("port", [replace(ARRAY, dtype="float16"), replace(ARRAY, shape=(4, 5))])
def test_arrays_equal_the_graph_input_exactly(tmp_path: Path, port: Port) -> None:
    """Formats that are loaded untouched need the batch axis and the very dtype."""
    with pytest.raises(ContractError, match="`patches`"):
        write_samples(component("Numpy", port, INDEX), arrays, IMAGES, tmp_path, Silent())


def test_no_sample_at_all_is_refused(tmp_path: Path) -> None:
    """A hook that yields nothing would leave an empty archive."""
    with pytest.raises(ContractError, match="no calibration samples for `eye`"):
        write_samples(component("Image", STRIP), lambda _: [], IMAGES, tmp_path, Silent())


def test_one_sample_can_be_had_without_the_others() -> None:
    """Verification wants the first sample only: an image far behind is never read."""

    def unreadable() -> bytes:
        raise AssertionError

    far = [SourceImage("far", unreadable)] * 1000
    first = next(image_samples(component("Image", STRIP), strip, IMAGES * 100 + far))
    assert np.array_equal(first["strip"], expected(strip, IMAGES[:1])[0]["strip"])
