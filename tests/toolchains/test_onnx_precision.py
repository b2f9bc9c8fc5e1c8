"""How the embedded toolchain stores matrices, against the formulas of the board's builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file

from axcore import Weight
from axcore.checkpoint import Checkpoint
from axcore.toolchains.onnx import precision
from axcore.toolchains.onnx.precision import row_codes

matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-4),
)


def by_hand(row: np.ndarray, kind: str, rule: str) -> tuple[list[int], np.float32]:
    """The published formulas, a row at a time in float32."""
    steps = {"s8": 128, "s4": 8}[kind]
    largest = max(row, key=abs)  # the first of equals
    if rule == "absmax":
        scale = np.float32(abs(largest)) / np.float32(steps - 1)
        return [int(np.rint(w / scale)) for w in row], scale
    scale = -np.float32(largest) / np.float32(steps)
    codes = [int(np.floor(np.float32(w / scale) + np.float32(0.5))) for w in row]
    return [min(max(code, -steps), steps - 1) for code in codes], scale


@pytest.mark.parametrize("kind", ["s8", "s4"])
@pytest.mark.parametrize("rule", ["absmax", "signed"])
@given(matrix=matrices)
def test_codes_and_scales_are_those_of_the_builder(
    matrix: np.ndarray, kind: str, rule: str
) -> None:
    """Oracle: the formulas that reproduce real builds, written out in numpy."""
    codes, scales = row_codes(torch.from_numpy(matrix), kind, rule)
    for row, made, scale in zip(matrix, codes.numpy(), scales.numpy(), strict=True):
        if row.any():
            expected, wanted = by_hand(row, kind, rule)
            assert made.tolist() == expected
            assert scale == wanted
        else:
            assert not made.any()


@pytest.mark.parametrize("rule", ["absmax", "signed"])
@given(matrix=matrices)
def test_eight_bits_are_within_a_step(matrix: np.ndarray, rule: str) -> None:
    """Law: code times scale is a step from the weight at most; half a step but for one clipped."""
    codes, scales = row_codes(torch.from_numpy(matrix), "s8", rule)
    back = codes.numpy() * scales.numpy()[:, None]
    assert np.all(np.abs(back - matrix) <= np.abs(scales.numpy())[:, None] * 1.001 + 1e-30)


@pytest.mark.parametrize("kind", ["s8", "s4", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
def test_what_is_no_matrix_keeps_its_precision(
    tmp_path: Path, kind: str, source: torch.dtype
) -> None:
    """A decay in float32 stays what it is, next to matrices of 8 bits. Oracle: its values."""
    values = torch.linspace(-3, 3, 7).to(source)
    (tmp_path / "config.json").write_text("{}")
    save_file(
        {"A_log": values, "taps": values.clone().reshape(7, 1, 1)}, tmp_path / "model.safetensors"
    )
    checkpoint = Checkpoint.open(tmp_path)
    for name, shape in (("A_log", (7,)), ("taps", (7, 1, 1))):
        with checkpoint:
            (form,) = precision.stored_forms(
                name, shape, Weight(name), checkpoint, precision.Precision("bf16", kind)
            )
            with (tmp_path / "data").open("w+b") as file:
                form.write(file.fileno(), 0)
                held = torch.frombuffer(bytearray(file.read()), dtype=_DTYPES[form.dtype.name])
        assert torch.equal(held.float(), values.float())


_DTYPES = {"FLOAT": torch.float32, "BFLOAT16": torch.bfloat16, "FLOAT16": torch.float16}


@pytest.mark.parametrize("strip", [1, 64 * 5, 130 * 5, 1 << 20])
def test_codes_are_written_by_columns_in_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    """However many rows are held at once. Oracle: the rule, applied to the whole matrix."""
    monkeypatch.setattr(precision, "_STRIP_VALUES", strip)
    matrix = torch.randn(201, 5, generator=torch.Generator().manual_seed(1))
    columns = precision._Columns(
        lambda: iter(torch.split(matrix, 64)), (201, 5), precision.Precision("bf16", "s8")
    )
    with (tmp_path / "codes").open("w+b") as file:
        columns.write_codes(file.fileno(), 8)
        written = np.frombuffer(file.read()[8:], np.int8).reshape(5, 201)
    codes, scales = row_codes(matrix, "s8", "absmax")
    np.testing.assert_array_equal(written, codes.T.numpy())
    assert torch.equal(columns.scales(), scales)
