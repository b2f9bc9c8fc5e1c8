"""The embedded toolchain: files that keep the contract of the board's layer models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

import axcore
from axcore import BudgetError, BundleError, Registry, UsageError
from axcore.checkpoint import Checkpoint
from axcore.runtime.axengine_sim import InferenceSession
from axcore.step import STATE
from axcore.testing import Recorder
from axcore.toolchains.onnx.precision import row_codes

from ..built import CACHE, CHUNK, HEAD, HISTORIES, LAYER, LENGTHS
from ..bundles import Interrupted, change_tensors, contents, convert, largest_file, shard_of


@pytest.fixture(name="built")
def of_the_default_precision(finished: Path) -> Path:
    """A bundle with layer models of the default precision."""
    return finished


@pytest.fixture
def config(built: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((built / "config.json").read_text())
    return loaded


def described(session: InferenceSession, group: int) -> list[tuple[str, str, tuple[int, ...]]]:
    nodes = [*session.get_inputs(group), *session.get_outputs(group)]
    return [(node.name, str(np.dtype(node.dtype)), tuple(node.shape)) for node in nodes]


def expected(config: dict[str, Any], history: int, count: int, rows: int) -> list[Any]:
    """Write a group down as the board's documentation does."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config["num_key_value_heads"] * (hidden // heads)
    cached = (1, history, width) if history else (1, 1, hidden)
    bf16 = "bfloat16"
    return [
        ("K_cache", bf16, cached),
        ("V_cache", bf16, cached),
        ("indices", "uint32", (rows, count)),
        ("input", bf16, (1, count, hidden)),
        ("mask", bf16, (1, count, history + count)),
        ("K_cache_out", bf16, (1, count, width)),
        ("V_cache_out", bf16, (1, count, width)),
        ("output", bf16, (1, count, hidden)),
    ]


def test_every_group_has_the_names_order_dtypes_and_shapes_of_the_board(
    built: Path, config: dict[str, Any]
) -> None:
    """One token after a full cache, a first chunk with placeholders, chunks behind histories.

    Oracle: the published contract, written out in `expected`.
    """
    for layer in range(config["num_hidden_layers"]):
        session = InferenceSession(str(built / LAYER.format(layer)))
        assert described(session, 0) == expected(config, CACHE, 1, 1)
        assert described(session, 1) == expected(config, 0, CHUNK, 3)
        for number, history in enumerate(HISTORIES, 2):
            assert described(session, number) == expected(config, history, CHUNK, 3)
        # Ours, behind the board's: a token after a shorter cache, and shorter chunks.
        assert described(session, 4) == expected(config, 256, 1, 1)
        for number, history in enumerate((0, *HISTORIES), 5):
            assert described(session, number) == expected(config, history, 32, 3)
        with pytest.raises(ValueError, match="shape group 8 is out of range"):
            session.get_inputs(8)
    head = InferenceSession(str(built / HEAD))
    shape = (1, 1, config["hidden_size"]), (1, 1, config["vocab_size"])
    assert [node[2] for node in described(head, 0)] == list(shape)


def test_weights_lie_on_disk_as_in_the_checkpoint(own: Path, checkpoint: Path) -> None:
    """bfloat16 weights keep their bytes, so no parameter takes four.

    Oracle: the checkpoint's own bytes.
    """
    axcore.build(own, toolchain="onnx", options={"weight-type": "bf16"})
    model = onnx.load(own / LAYER.format(1))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    name = "self_attn.q_proj.weight"
    with Checkpoint.open(checkpoint) as opened:
        source = next(key for key in opened.tensors if key.endswith(f"layers.1.{name}"))
        assert stored[name].raw_data == opened.array(source).tobytes()
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(np.prod(t.dims) for t in floats) < 200  # constants alone


def test_codes_lie_on_disk_by_columns(built: Path, checkpoint: Path) -> None:
    """The head, which is read in blocks of rows, as ``[in, out]`` with a scale per output.

    Oracle: the rule, applied to the whole matrix; `test_onnx_precision` holds the rule.
    """
    stored = {tensor.name: tensor for tensor in onnx.load(built / HEAD).graph.initializer}
    with Checkpoint.open(checkpoint) as opened:
        keys = ("lm_head.weight", "model.embed_tokens.weight")
        key = next(key for name in keys for key in opened.tensors if key.endswith(name))
        codes, scales = row_codes(opened.tensor(key).float(), "s8", "absmax")
    made = onnx.numpy_helper.to_array(stored["lm_head.weight.s8"])
    np.testing.assert_array_equal(made, codes.T.numpy())
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(stored["lm_head.weight.scale"]), scales.numpy()
    )


def test_groups_agree_where_they_overlap(built: Path, config: dict[str, Any]) -> None:
    """A chunk behind a history, read in one go or a token at a time, gives the same rows.

    Oracle: the decode group, whose cache is filled by hand.
    """
    session = InferenceSession(str(built / LAYER.format(0)))
    rng = np.random.default_rng(0)
    bf16 = ml_dtypes.bfloat16
    state = rng.standard_normal((1, CHUNK, config["hidden_size"])).astype(bf16)
    hidden = np.float32(-65536)
    mask = np.triu(np.full((1, CHUNK, CHUNK), hidden), 1).astype(bf16)
    indices = np.tile(np.arange(CHUNK, dtype=np.uint32), (3, 1))
    first = session.get_inputs(1)[0]
    none = np.zeros(first.shape, bf16)
    feed = {"K_cache": none, "V_cache": none, "indices": indices, "input": state, "mask": mask}
    keys, values, out = session.run(None, feed, shape_group=1)
    cache = session.get_inputs(0)[0]
    k_cache, v_cache = np.zeros(cache.shape, bf16), np.zeros(cache.shape, bf16)
    step_mask = np.full((1, 1, CACHE + 1), hidden).astype(bf16)
    step_mask[..., -1] = 0
    for index in range(CHUNK):
        step = {
            "K_cache": k_cache,
            "V_cache": v_cache,
            "indices": np.array([[index]], np.uint32),
            "input": state[:, index : index + 1],
            "mask": step_mask,
        }
        key, value, row = session.run(None, step)
        k_cache[:, index], v_cache[:, index] = key[:, 0], value[:, 0]
        step_mask[0, 0, index] = 0
        np.testing.assert_allclose(
            row[0, 0].astype(np.float32), out[0, index].astype(np.float32), atol=0.02, rtol=0.02
        )
    np.testing.assert_array_equal(k_cache[:, :CHUNK], keys)
    np.testing.assert_array_equal(v_cache[:, :CHUNK], values)


@pytest.mark.parametrize(("states", "weights"), [("fp32", "fp32"), ("bf16", "bf16")])
def test_precisions_are_chosen(built: Path, tmp_path: Path, states: str, weights: str) -> None:
    """States, caches and stored weights take the precision asked for, and answers stay close.

    8 bits, the default, move an output by little; oracle: the build without them.
    """
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    axcore.build(
        bundle, toolchain="onnx", options={"hidden-state-type": states, "weight-type": weights}
    )
    file = LAYER.format(0)
    session = InferenceSession(str(bundle / file))
    dtype = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16}[states]
    assert [node.dtype for node in session.get_inputs(1)][3] == np.dtype(dtype)
    kinds = {t.data_type for t in onnx.load(bundle / file).graph.initializer if len(t.dims) == 2}
    assert onnx.TensorProto.INT8 not in kinds
    made, reference = (first_chunk(folder / file).astype(np.float32) for folder in (bundle, built))
    assert np.abs(made - reference).max() < 0.05 * np.abs(reference).max()
    assert np.abs(made - reference).max() > 0


def matrix_kinds(path: Path) -> set[int]:
    """Types of the matrices in a layer model."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {tensor.data_type for tensor in tensors if len(tensor.dims) == 2 and tensor.dims[1] > 1}


def test_a_build_is_as_on_a_board(built: Path, tmp_path: Path) -> None:
    """Without an option, matrices are s8; the head is s8 even where the layers are not.

    Oracle: what published builds hold, and what transformers computes with: no integers.
    """
    int8, bf16 = onnx.TensorProto.INT8, onnx.TensorProto.BFLOAT16
    assert matrix_kinds(built / LAYER.format(0)) == matrix_kinds(built / HEAD) == {int8}
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    axcore.build(bundle, toolchain="onnx", options={"weight-type": "bf16"})
    assert matrix_kinds(bundle / LAYER.format(0)) == {bf16}
    assert matrix_kinds(bundle / HEAD) == {int8}
    axcore.build(bundle, toolchain="onnx", options={"exact": "float32"})
    assert matrix_kinds(bundle / LAYER.format(0)) == matrix_kinds(bundle / HEAD) == {1}


def test_states_are_rounded_inside_on_request(built: Path, tmp_path: Path) -> None:
    """Outputs move by about what bfloat16 keeps. Oracle: the build that rounds at the borders."""
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    axcore.build(bundle, toolchain="onnx", options={"round-inside": "yes"})
    made, reference = (
        first_chunk(folder / LAYER.format(0)).astype(np.float32) for folder in (bundle, built)
    )
    assert 0 < np.abs(made - reference).max() < 0.05 * np.abs(reference).max()


def first_chunk(path: Path, rounded: Any = np.float32) -> np.ndarray[Any, Any]:
    """The output for a chunk of seeded states, rounded to a type; nothing is hidden."""
    opened, rng = InferenceSession(str(path)), np.random.default_rng(1)
    feed = {node.name: np.zeros(node.shape, node.dtype) for node in opened.get_inputs(1)}
    shape, dtype = feed["input"].shape, feed["input"].dtype
    feed["input"] = rng.standard_normal(shape).astype(rounded).astype(dtype)
    return np.asarray(opened.run(None, feed, shape_group=1)[2])


def test_codes_move_states_by_less_than_bfloat16(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer whose matrices stay integers, against the same layer widened to float32.

    Oracle: the same build without its last pass, and with its input's last bits changed. Both keep
    states in float32 at the borders, which would hide the difference.
    """
    wide = Path(shutil.copytree(built, tmp_path / "wide"))
    monkeypatch.setattr("axcore.toolchains.onnx.build.multiply_integers", lambda graph: None)
    axcore.build(wide, toolchain="onnx", options={"hidden-state-type": "fp32"})
    monkeypatch.undo()
    narrow = Path(shutil.copytree(built, tmp_path / "narrow"))
    shutil.rmtree(narrow / STATE)
    axcore.build(narrow, toolchain="onnx", options={"hidden-state-type": "fp32"})
    kinds = {node.op_type for node in onnx.load(narrow / LAYER.format(0)).graph.node}
    assert "MatMulIntegerToFloat" in kinds
    assert not {"Gemm", "MatMulNBits"} & kinds
    exact, made = (first_chunk(folder / LAYER.format(0)) for folder in (wide, narrow))
    rounded = first_chunk(wide / LAYER.format(0), ml_dtypes.bfloat16)
    assert 0 < np.linalg.norm(made - exact) < np.linalg.norm(rounded - exact) / 2
    assert np.linalg.norm(made - exact) < 2**-11 * np.linalg.norm(exact)


def test_an_unknown_precision_is_refused(built: Path) -> None:
    """The message names it, the hint what there is; nothing is written."""
    before = sorted(built.iterdir())
    with pytest.raises(UsageError, match="s2 is not offered") as caught:
        axcore.build(built, toolchain="onnx", options={"weight-type": "s2"})
    assert "s8, s4, fp32" in caught.value.hint
    assert sorted(built.iterdir()) == before


def test_a_second_build_writes_nothing(built: Path, tmp_path: Path) -> None:
    """Files of the same checkpoint, lengths and precision stay; a lost one comes back.

    Oracle: their modification times, and the bytes of the first build.
    """
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    times = {path: path.stat().st_mtime_ns for path in bundle.glob("qwen2_5_vl*")}
    axcore.build(bundle, toolchain="onnx")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (bundle / LAYER.format(1)).unlink()
    axcore.build(bundle, toolchain="onnx")
    assert contents(bundle) == contents(built)


def test_a_build_that_fails_leaves_the_earlier_one_whole(built: Path, tmp_path: Path) -> None:
    """Another precision: the disk is full, then somebody interrupts, then all goes well.

    Oracle: the contents before, and those of a build that nothing went wrong with.
    """

    def build(progress: Recorder | None = None) -> None:
        axcore.build(bundle, toolchain="onnx", options={"weight-type": "fp32"}, progress=progress)

    fresh = Path(shutil.copytree(built, tmp_path / "fresh"))
    axcore.build(fresh, toolchain="onnx", options={"weight-type": "fp32"})
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    before = contents(bundle)
    data = fresh / f"{HEAD}.data"
    with largest_file(data.stat().st_size - 1), pytest.raises(BudgetError, match="cannot write"):
        build()
    assert contents(bundle) == before
    with pytest.raises(KeyboardInterrupt):
        build(Interrupted())
    assert contents(bundle) == before
    build()
    assert contents(bundle) == contents(fresh)


def test_a_quantised_language_model_is_multiplied_out() -> None:
    """Packed integers become what GPTQ means by them, in 4 and in 8 bits.

    Oracle: the formula of the format, ``(w - (z + 1)) * scale``, on numbers packed here.
    """
    from axcore.checkpoint.quantised import _unpacked

    rng = np.random.default_rng(0)
    for bits in (4, 8):
        numbers = rng.integers(0, 2**bits, (32, 16), dtype=np.int64)
        per = 32 // bits
        packed = sum(numbers[i::per] << (bits * i) for i in range(per))
        words = torch.tensor(packed.astype(np.uint32).view(np.int32))
        assert np.array_equal(_unpacked(words, bits, axis=0).numpy(), numbers)
        across = sum(numbers[:, i::per] << (bits * i) for i in range(per))
        words = torch.tensor(across.astype(np.uint32).view(np.int32))
        assert np.array_equal(_unpacked(words, bits, axis=1).numpy(), numbers)


@pytest.fixture(scope="session")
def strangers(once: Callable[..., Path], finished: Path, checkpoint: Path) -> Path:
    """Layer models of the same shapes, made of other weights."""

    def other(out: Path) -> None:
        shutil.copytree(checkpoint, out)
        norm = "model.norm.weight"
        change_tensors(shard_of(out, norm), lambda tensors: tensors[norm].add_(1))

    def make(out: Path) -> None:
        shutil.copytree(finished, out)  # the vision side is the same
        convert(once("strange-checkpoint", other), out, verify=False, **LENGTHS)
        axcore.build(out, toolchain="onnx")

    return once("strangers", make)


def another_layer(bundle: Path, built: Path, strangers: Path) -> str:
    shutil.copy(built / LAYER.format(1), bundle / LAYER.format(0))
    return "l0_together.onnx contains the layer model .*l1_together"


def weights_of_another_layer(bundle: Path, built: Path, strangers: Path) -> str:
    shutil.copy(built / f"{LAYER.format(1)}.data", bundle / f"{LAYER.format(0)}.data")
    return "l0_together.onnx.data is from another layer or build"


def one_of_another_build(bundle: Path, built: Path, strangers: Path) -> str:
    axcore.build(bundle, toolchain="onnx", options={"weight-type": "bf16"})
    for suffix in ("", ".data"):
        shutil.copy(built / f"{LAYER.format(0)}{suffix}", bundle)
    return "l0_together.onnx is from another build"


def all_of_other_weights(bundle: Path, built: Path, strangers: Path) -> str:
    for path in strangers.glob("qwen2_5_vl*"):
        shutil.copy(path, bundle)
    return "l0_together.onnx was built from other weights"


@pytest.mark.parametrize(
    "put", [another_layer, weights_of_another_layer, one_of_another_build, all_of_other_weights]
)
def test_a_file_from_elsewhere_is_refused_and_the_remedy_helps(
    built: Path, strangers: Path, tmp_path: Path, put: Callable[[Path, Path, Path], str]
) -> None:
    """Of equal shape, so that nothing else would tell. Oracle: the files put in their place."""
    from axcore.runtime.runner import Runner

    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    message = put(bundle, built, strangers)
    shutil.rmtree(bundle / STATE)  # which would tell, but does not come with every copy
    with pytest.raises(BundleError, match=message) as caught:
        Runner.open(bundle, Registry())
    assert f"axcore build {bundle} --toolchain onnx" in caught.value.hint
    with pytest.raises(BundleError, match=message):
        axcore.package(bundle, tmp_path / "board", runtime="python")
    axcore.build(bundle, toolchain="onnx")
    Runner.open(bundle, Registry())
    assert (bundle / LAYER.format(0)).read_bytes() == (built / LAYER.format(0)).read_bytes()
