"""The simulated engine against numpy, the ONNX files' own words and pyaxengine's rules."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from ml_dtypes import bfloat16
from onnx import TensorProto, helper

from axcore.runtime import axengine_sim
from axcore.runtime.axengine_sim import InferenceSession

from ..built import LAYER
from ..bundles import STEM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import ToyLanguageModel

# The types of a board.
TYPES = [np.dtype(kind) for kind in ("f4", "u1", "i1", "u2", "i2", "i4", "u4", bfloat16)]


@pytest.fixture(scope="module")
def layer(toy: ToyLanguageModel) -> InferenceSession:
    return InferenceSession(str(toy.folder / "toy_p4_l0_together.onnx"))


@pytest.fixture
def feed(layer: InferenceSession) -> dict[str, np.ndarray[Any, Any]]:
    """What group 0 of a toy layer takes, all zeros."""
    return {node.name: np.zeros(node.shape, node.dtype) for node in layer.get_inputs()}


def test_groups_are_described_as_the_file_lists_them(
    toy: ToyLanguageModel, layer: InferenceSession
) -> None:
    """Oracle: the metadata that was written, and pyaxengine's order and types."""
    for number, group in enumerate(toy.groups):
        inputs, outputs = layer.get_inputs(number), layer.get_outputs(shape_group=number)
        assert {node.name: list(node.shape) for node in inputs} == group["inputs"]
        assert {node.name: list(node.shape) for node in outputs} == group["outputs"]
        assert [node.name for node in inputs] == ["K_cache", "V_cache", "indices", "input", "mask"]
        assert [node.name for node in outputs] == ["K_cache_out", "V_cache_out", "output"]
        assert {node.name for node in inputs if node.dtype == np.uint32} == {"indices"}
        assert {node.dtype for node in (*inputs, *outputs)} == {
            np.dtype(bfloat16), np.dtype(np.uint32),
        }  # fmt: skip


@pytest.mark.parametrize("number", [-1, 4, 5, 100])
def test_other_groups_do_not_exist(
    layer: InferenceSession, feed: dict[str, Any], number: int
) -> None:
    """Oracle: pyaxengine raises IndexError for the first one too many, ValueError beyond."""
    for call in (layer.get_inputs, layer.get_outputs, lambda n: layer.run(None, feed, None, n)):
        with pytest.raises(IndexError, match=f"group {number} is out of range, the model has 4"):
            call(number)
        with pytest.raises(ValueError, match="out of range"):
            call(number)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_bit_arrives_and_comes_back(same: Callable[..., Path], dtype: np.dtype[Any]) -> None:
    """All types of a board, any bits (bfloat16 NaN included). Oracle: the input itself."""
    kind = "float" if dtype == np.float32 else dtype
    session = InferenceSession(same(f"{kind}[2,3]", name=f"{dtype}.onnx"))
    bits = nps.arrays(f"u{dtype.itemsize}", (2, 3))

    @settings(max_examples=25)
    @given(bits, st.booleans())
    def check(raw: np.ndarray[Any, Any], strided: bool) -> None:
        array = raw.view(dtype)
        if strided:
            array = np.stack([array, array], axis=-1)[..., 0]
        (result,) = session.run(["y"], {"x": array})
        session.run(None, {"x": np.zeros_like(array)})  # boards overwrote the first result then
        assert result.dtype == dtype
        assert result.flags.writeable
        assert result.tobytes() == raw.tobytes()
        assert not np.shares_memory(result, array)

    check()


def test_a_placeholder_never_reaches_the_graph(
    toy: ToyLanguageModel, layer: InferenceSession
) -> None:
    """The first chunk attends to itself alone, whatever its caches hold. Oracle: other contents."""
    random = np.random.default_rng(0)
    feeds = {
        node.name: random.integers(0, 4, node.shape).astype(node.dtype)
        for node in layer.get_inputs(1)
    }
    other = feeds | {name: feeds[name] + bfloat16(9) for name in ("K_cache", "V_cache")}
    assert feeds["K_cache"].shape == (1, 1, 8)
    results = [layer.run(None, fed, None, shape_group=1) for fed in (feeds, other)]
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("mask", np.zeros((1, 1, 15), bfloat16), r"`mask` takes bfloat16 \[1, 1, 16\].*1, 15\]"),
        ("mask", np.zeros((1, 1, 16), np.float32), "got float32"),
        ("mask", np.zeros((1, 16), bfloat16), r"got bfloat16 \[1, 16\]"),
        ("input", np.zeros((1, 1, 8), np.uint16), "got uint16"),
        ("indices", np.zeros((1, 1), np.int64), "`indices` takes uint32.*got int64"),
        ("K_cache", np.zeros((1, 4, 15), bfloat16).transpose(0, 2, 1)[:, :14], r"\[1, 14, 4\]"),
        ("K_cache", np.zeros((15, 4, 1), bfloat16).T.reshape(1, 15, 4, order="F"), "Fortran"),
    ],
)
def test_shape_and_dtype_are_exact(
    layer: InferenceSession, feed: dict[str, Any], name: str, array: Any, message: str
) -> None:
    """Oracle: pyaxengine asserts both; Fortran order it would misread."""
    with pytest.raises(AssertionError, match=message):
        layer.run(None, feed | {name: array})


def test_names_are_checked_and_extra_feeds_ignored(
    layer: InferenceSession, feed: dict[str, Any]
) -> None:
    """Oracle: pyaxengine's rules; outputs in another order it would mix up."""
    assert len(layer.run(None, feed | {"extra": np.zeros(3)})) == 3
    with pytest.raises(ValueError, match=r"\['V_cache'\] are missing, got \['K_cache', 'ind"):
        layer.run(None, {name: array for name, array in feed.items() if name != "V_cache"})
    for names in (["output"], ["V_cache_out", "K_cache_out", "output"], ["nothing"]):
        with pytest.raises(ValueError, match="request None or"):
            layer.run(names, feed)


def test_an_onnx_file_stands_in_for_a_missing_axmodel(
    same: Callable[..., Path], tmp_path: Path
) -> None:
    """Oracle: files of different shape, so that one sees which was taken."""
    same().rename(tmp_path / "a.onnx")
    assert InferenceSession(str(tmp_path / "a.axmodel")).get_inputs()[0].shape == (2, 3)
    same("float[5]").rename(tmp_path / "a.axmodel")
    assert InferenceSession(tmp_path / "a.axmodel").get_inputs()[0].shape == (5,)
    for name in ("b.axmodel", "b.onnx", "a.bin", "."):
        with pytest.raises(FileNotFoundError):
            InferenceSession(str(tmp_path / name))
    with pytest.raises(TypeError, match="not from bytes"):
        InferenceSession((tmp_path / "a.onnx").read_bytes())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "groups", "message"),
    [
        ("int64[2]", None, r"`x` is a tensor\(int64\), which boards do not"),
        ("float16[2]", None, "float16"),
        ("float[1,n]", None, r"`x` has the shape \[1, 'n'\], which is not static"),
        ("float[1,n]", [{"inputs": {"z": [1]}, "outputs": {"y": [1]}}], "'z'"),
        ("float[1,n]", [{"inputs": {"x": [1, 2]}}], "outputs"),
        ("float[1,n]", {"x": [1, 2]}, "shape groups"),
    ],
)
def test_a_model_that_no_board_could_run_is_refused(
    same: Callable[..., Path], kind: str, groups: Any, message: str
) -> None:
    """Oracle: types of a board, static shapes, and groups for the inputs that the graph has."""
    path = same(kind, groups)
    with pytest.raises(RuntimeError, match=message) as caught:
        InferenceSession(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", [b"no model", b"", None])
def test_a_damaged_file_is_refused_by_name(
    same: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: bytes | None,
) -> None:
    """A foreign, an empty and a truncated file; what is wrong is raised, and printed nowhere."""
    content = same().read_bytes()
    path = tmp_path / "broken.onnx"
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(RuntimeError, match=r"Failed to load model .*broken\.onnx"):
        InferenceSession(path)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_fails_while_running_raises(
    same: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Groups that contradict the graph show in a run, as an error of the board would."""
    groups = [{"inputs": {"x": [1, 2]}, "outputs": {"y": [1, 3]}}]
    session = InferenceSession(same("float[1,n]", groups))
    with pytest.raises(RuntimeError, match="Failed to run model"):
        session.run(None, {"x": np.zeros((1, 2), np.float32)})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("providers", "taken"),
    [
        (None, "AxEngineExecutionProvider"),
        ("AXCLRTExecutionProvider", "AXCLRTExecutionProvider"),
        (["CPUExecutionProvider", "AxEngineExecutionProvider"], "AxEngineExecutionProvider"),
        ([("AXCLRTExecutionProvider", {"device_id": 1})], "AXCLRTExecutionProvider"),
    ],
)
def test_providers_are_chosen_as_on_a_board(
    same: Callable[..., Path], providers: Any, taken: str
) -> None:
    """Oracle: pyaxengine takes the first available one, names it alone, and raises for others."""
    options = axengine_sim.SessionOptions()
    session = InferenceSession(same(), options, providers, [{"device_id": 0}])
    assert session.get_providers() == taken
    assert session.get_session_options() is options
    assert taken in axengine_sim.get_available_providers()
    with pytest.raises(ValueError, match="CUDAExecutionProvider"):
        InferenceSession(same(), providers=["CUDAExecutionProvider"])


def test_mapped_weights_take_no_memory_of_their_own(tmp_path: Path) -> None:
    """Nor does a cast that widens them, but while it runs. Oracle: the session that packs them.

    The process's memory that no file backs is what is counted.
    """
    program = """
import re, sys
import numpy as np
from axcore.runtime.axengine_sim import InferenceSession, SessionOptions
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
x = np.ones((64, 2048), np.float32)
before = anonymous()
session = InferenceSession(sys.argv[1], SessionOptions(mapped=sys.argv[2] == "mapped"))
made = session.run(None, {"x": x})[0]
np.save(sys.argv[3], made)
print(anonymous() - before)
"""
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        agraph (float[64, 2048] x) => (float[64, 2048] y) {
            w1f = Cast <to = 1> (w1)
            h = MatMul (x, w1f)
            w2f = Cast <to = 1> (w2)
            y = MatMul (h, w2f)
        }"""
    )
    random = np.random.default_rng(0)
    for name in ("w1", "w2"):
        matrix = random.standard_normal((2048, 2048), np.float32).astype(bfloat16) / 64
        tensor = helper.make_tensor(
            name, TensorProto.BFLOAT16, matrix.shape, matrix.tobytes(), True
        )
        graph.graph.initializer.append(tensor)
    onnx.save(graph, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    taken, made = {}, {}
    for form in ("mapped", "packed"):
        asked = [sys.executable, "-c", program, tmp_path / "m.onnx", form, tmp_path / f"{form}.npy"]
        done = subprocess.run([*map(str, asked)], capture_output=True, text=True, check=True)
        taken[form], made[form] = int(done.stdout) << 10, np.load(tmp_path / f"{form}.npy")
    np.testing.assert_allclose(made["mapped"], made["packed"], rtol=1e-4, atol=1e-4)
    matrices = 2 * 4 * 2048**2
    assert taken["mapped"] < matrices / 2 < matrices <= taken["packed"]


def test_bound_arrays_are_read_and_written_in_place(same: Callable[..., Path]) -> None:
    """Again and again. Oracle: `run`; arrays of other shapes, or not contiguous, are refused."""
    session = InferenceSession(same())
    (given_, made_) = session.get_inputs()[0], session.get_outputs()[0]
    x, y = (np.zeros(node.shape, node.dtype) for node in (given_, made_))
    run = session.bind(0, {given_.name: x, made_.name: y})
    for value in (1, 2):
        x[:] = value
        run()
        np.testing.assert_array_equal(y, session.run(None, {given_.name: x})[0])
    for wrong in (x[:, :2], np.zeros((2, 6), x.dtype)[:, ::2], np.asfortranarray(x)):
        with pytest.raises(AssertionError, match=given_.name):
            session.bind(0, {given_.name: wrong, made_.name: y})


def test_other_sessions_of_the_process_are_left_alone(same: Callable[..., Path]) -> None:
    """Scripts use ONNX Runtime beside `axengine`: a session of its defaults opens and runs."""
    ours = InferenceSession(same())
    plain = ort.InferenceSession(same(), providers=["CPUExecutionProvider"])
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(plain.run(None, {"x": x})[0], ours.run(None, {"x": x})[0])


def test_scripts_of_the_older_interface_run(toy: ToyLanguageModel, layer: InferenceSession) -> None:
    """A group chosen beforehand, arrays read as bytes, outputs by number and name.

    Oracle: the same run through the present interface.
    """
    path = toy.folder / "toy_p4_l0_together.axmodel"  # as scripts name it; the file is the .onnx
    session = InferenceSession.load_from_model(str(path))
    rng = np.random.default_rng(0)
    feed = {
        node.name: rng.standard_normal(node.shape).astype(node.dtype)
        if node.dtype == bfloat16
        else np.zeros(node.shape, node.dtype)
        for node in layer.get_inputs(1)
    }
    expected = layer.run(None, feed, shape_group=1)
    session.set_runtime_context(group_id=1)
    flat = {name: array.reshape(-1).view(np.uint8) for name, array in feed.items()}
    made = session.run(flat)
    assert session.get_output_shapes() == [array.shape for array in expected]
    for number, node in enumerate(layer.get_outputs(1)):
        np.testing.assert_array_equal(made[number], expected[number])
        np.testing.assert_array_equal(made[node.name], expected[number])


def test_the_older_interface_fills_up_what_scripts_leave_out(
    toy: ToyLanguageModel, layer: InferenceSession
) -> None:
    """Scripts pass the rows of a prompt to the second layer, without the padding of its chunk.

    Oracle: the present interface, fed with zeros there.
    """
    path = toy.folder / "toy_p4_l0_together.axmodel"
    session = InferenceSession.load_from_model(path)
    feed = {node.name: np.zeros(node.shape, node.dtype) for node in layer.get_inputs(1)}
    feed["input"][:, :2] = 1
    expected = layer.run(None, feed, shape_group=1)
    session.set_runtime_context(group_id=1)
    made = session.run({**feed, "input": feed["input"][:, :2]})
    for number, array in enumerate(expected):
        np.testing.assert_array_equal(made[number], array)


def test_the_older_interface_reads_no_other_number_of_bytes(toy: ToyLanguageModel) -> None:
    """What would be read beyond an array's end on a board is refused here, with both sizes."""
    path = toy.folder / "toy_p4_l0_together.onnx"
    session = InferenceSession.load_from_model(path)
    with pytest.raises(ValueError, match="`K_cache` is missing"):
        session.run({})
    with pytest.raises(ValueError, match=r"`K_cache` takes bfloat16 .* 4 bytes"):
        session.run({"K_cache": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=r"`K_cache` takes bfloat16 .* 200000 bytes"):
        session.run({"K_cache": np.zeros(100_000, bfloat16)})
    with pytest.raises(ValueError, match="out of range"):
        session.set_runtime_context(group_id=99)


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_link_to_a_model_finds_the_weights_of_the_model(own: Path, place: str) -> None:
    """Scripts look for ``.axmodel``, also in a folder of their own. Oracle: the model itself."""
    model = own / LAYER.format(1)
    folder = own if place == "beside" else own.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    link = folder / f"{model.stem}.axmodel"
    link.symlink_to(model.name if place == "beside" else model)
    session, expected = InferenceSession(link), InferenceSession(model)
    feed = {node.name: np.ones(node.shape, node.dtype) for node in expected.get_inputs()}
    for made, array in zip(session.run(None, feed), expected.run(None, feed), strict=True):
        np.testing.assert_array_equal(made, array)


def test_a_vision_graph_opened_for_a_board_takes_what_the_board_takes(own: Path) -> None:
    """Pixels, which the compiled model normalises; the ONNX graph itself takes normalised values.

    Oracle: mean and deviation in the configuration for Pulsar2, and the graph fed with the result.
    """
    written = json.loads((own / f"{STEM}.pulsar2.json").read_text())["quant"]["input_configs"][0]
    mean, std = (np.array(written[f"calibration_{n}"], np.float32) for n in ("mean", "std"))
    graph, compiled = (
        InferenceSession(own / f"{STEM}{suffix}") for suffix in (".onnx", ".axmodel")
    )
    (port,), (fed,) = graph.get_inputs(), compiled.get_inputs()
    one, channels, height, width = port.shape
    assert (fed.dtype, fed.shape) == (np.uint8, (one, height, width, channels))
    pixels = np.random.default_rng(0).integers(0, 256, fed.shape, np.uint8)
    normalised = ((pixels.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
    (expected,) = graph.run(None, {port.name: np.ascontiguousarray(normalised)})
    np.testing.assert_array_equal(compiled.run(None, {port.name: pixels})[0], expected)
    legacy = InferenceSession.load_from_model(own / f"{STEM}.axmodel")
    np.testing.assert_array_equal(legacy.run({port.name: pixels[0]})[0], expected)
