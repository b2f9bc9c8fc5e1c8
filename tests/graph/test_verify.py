"""PyTorch against ONNX Runtime: right graphs pass, a wrong one is named where it first drifts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnxruntime as ort
import pytest
import torch

from axcore import Silent, VerificationError
from axcore.graph import groups, verify
from axcore.graph.attention import explicit
from axcore.graph.stitch import Tracer
from axcore.graph.verify import THRESHOLDS, Verification, verify_component

from . import toy
from .conftest import Exported, export

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def verified(exported: Exported, paths: Sequence[Path], **changes: Any) -> Verification:
    """Verify files against the shared toy."""
    settings = {"dtype": "float32", "progress": Silent(), **changes}
    tracer = settings.pop("tracer", exported.tracer)
    feed = {"pixels": toy.pixels().numpy()}
    return verify_component(
        exported.component, paths, exported.checkpoint, tracer, feed, **settings
    )


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    """The exported file, free to be damaged."""
    for path in exported.paths[0].parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / exported.paths[0].name


def rewrite(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change one weight of an exported file on disk."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    entry = {item.key: item.value for item in tensor.external_data}
    offset, length = int(entry["offset"]), int(entry["length"])
    data = path.with_suffix(".onnx.data")
    content = bytearray(data.read_bytes())
    values = np.frombuffer(bytes(content[offset : offset + length]), np.float32)
    content[offset : offset + length] = change(values.copy()).tobytes()
    data.write_bytes(content)


def test_a_right_graph_passes(exported: Exported) -> None:
    """Every stage is compared, in order, and agrees. Oracle: the component's stages."""
    result = verified(exported, exported.paths)
    assert [stage.stage for stage in result.stages] == [s.name for s in exported.component.stages]
    assert all(stage.cosine > 0.999999 and stage.max_abs < 1e-5 for stage in result.stages)
    assert set(result.metrics()) == {"component", "cosine", "max_abs", "stages", "outputs"}


def test_parts_are_verified_as_a_chain(exported: Exported, tmp_path: Path) -> None:
    """Files in a row give the figures of the single file. Oracle: the single file."""
    parts = exported.again(tmp_path, (2, 4))
    whole, chained = verified(exported, exported.paths), verified(exported, parts)
    for one, other in zip(whole.stages, chained.stages, strict=True):
        assert one.stage == other.stage
        assert other.max_abs == pytest.approx(one.max_abs, abs=1e-6)


def test_groups_of_stages_compute_what_the_file_does(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group for every stage, as a large tower has several. Oracle: the file run as one."""
    whole = verified(exported, exported.paths)
    monkeypatch.setattr(verify, "_GROUP_BYTES", 1)
    model = onnx.load(exported.paths[0], load_external_data=False)
    names = [stage.name for stage in exported.component.stages[:-1]]
    assert len([*groups.groups(model, [*names, "tokens"], 1)]) == len(names) + 1
    assert len([*groups.groups(model, [*names, "tokens"], 1 << 30)]) == 1
    many = verified(exported, exported.paths)
    for one, other in zip(whole.stages, many.stages, strict=True):
        assert (one.stage, one.cosine) == (other.stage, pytest.approx(other.cosine, abs=1e-6))
    for one, other in zip(whole.outputs, many.outputs, strict=True):
        assert other.max_abs == pytest.approx(one.max_abs, abs=1e-6)


def test_values_that_skip_a_group_reach_those_that_need_them() -> None:
    """Of a loop's graph too. Oracle: what the whole model takes, returns and computes."""
    source = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] z)
        <float[2] a, float[2] b, float[2] d, float[2] w = {1, 2}> {
            a = Add(x, w)
            b = Mul(a, a)
            d = Neg(b)
            z = If(c) <then_branch = t () => (float[2] u) { u = Add(a, d) },
                       else_branch = e () => (float[2] v) { v = Sub(d, w) }>
        }"""
    model = onnx.parser.parse_model(source)
    onnx.checker.check_model(model, full_check=True)
    for c in (True, False):
        feed = {"x": np.float32([3, 4]), "c": np.array(c)}
        values = dict(feed)
        parts = [*groups.groups(model, ["a", "b", "d"], 1)]
        for part in parts:
            onnx.checker.check_model(part, full_check=True)
            session = ort.InferenceSession(part.SerializeToString())
            given = {one.name: values[one.name] for one in session.get_inputs()}
            made = [one.name for one in session.get_outputs()]
            values |= dict(zip(made, session.run(made, given), strict=True))
        (expected,) = ort.InferenceSession(model.SerializeToString()).run(["z"], feed)
        np.testing.assert_array_equal(values["z"], expected)
    assert len(parts) == 2


def turned(values: Any) -> Any:
    return np.roll(values, 7) * 3


@pytest.mark.parametrize(
    ("weight", "change", "message"),
    [
        ("patch.proj.weight", turned, "first: .* behind stage `patch`"),
        ("mix.1.qkv.weight", turned, r"first: .* behind stage `mix\.1`"),
        ("wide.0.up.weight", turned, r"first: .* behind stage `wide\.0`"),
        ("head.head.weight", turned, "first: .* behind stage `head`"),
        # A comparison with NaN is never true, which must not pass.
        ("wide.1.up.weight", lambda values: values * np.nan, r"(?s)`wide\.1`.*max abs nan"),
        # Cosine alone is blind to scale; the greatest difference is not.
        (
            "head.head.weight",
            lambda values: values * np.float32(1.01),
            r"max abs .* at the output `tokens`, at most 0\.001",
        ),
    ],
)
def test_the_first_drifting_stage_is_named(
    exported: Exported, copy: Path, weight: str, change: Callable[[Any], Any], message: str
) -> None:
    """A weight damaged on disk is found where it acts first. Oracle: which one was damaged."""
    rewrite(copy, weight, change)
    with pytest.raises(VerificationError, match=message):
        verified(exported, [copy])


def test_half_precision_has_its_own_threshold(exported: Exported, tmp_path: Path) -> None:
    """A float16 graph agrees with PyTorch in float16. Oracle: PyTorch; damage still fails."""
    tracer = Tracer(explicit, torch.float16, 17)
    component, checkpoint = exported.component, exported.checkpoint
    paths = export(component, checkpoint, tracer, tmp_path, dtype="float16")
    result = verified(exported, paths, tracer=tracer, dtype="float16")
    assert result.stages[-1].cosine > 0.9999
    assert "bfloat16" not in THRESHOLDS
