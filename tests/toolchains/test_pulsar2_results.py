# ruff: noqa: E501 - the tables are as wide as the tool prints them
"""Reading what a build left; the logs are stand-ins in the form of the vendor's documentation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from axcore.toolchains.pulsar2.results import GraphResult, read_result
from axcore.toolchains.pulsar2.schema import BuildConfig

if TYPE_CHECKING:
    from pathlib import Path

NEWER = """\
Building native ━━━━━━━━━━━━━━━━━━━━━━━━━ 100% 0:00:00
              Quant Precision Table【EndToEnd Reference】
┏━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┓
┃ Operator  ┃      Type       ┃ Output Tensor ┃      Shape      ┃ DType ┃ QDType ┃ Cosin   ┃ MSE     ┃
┡━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━┩
│ Conv_0    │ AxQuantizedConv │ 317           │ (1, 32, 112, 2) │ FP32  │   U16  │ 0.99993 │ 0.00003 │
├───────────┼─────────────────┼───────────────┼─────────────────┼───────┼────────┼─────────┼─────────┤
│ op_8:onnx │ AxQuantizedFC   │ out           │ (1, 10)         │ FP32  │   U16  │ 0.99871 │ 0.00101 │
└───────────┴─────────────────┴───────────────┴─────────────────┴───────┴────────┴─────────┴─────────┘
2025-09-28 06:19:31.707 | INFO | yamain.command.build:compile_ptq_model:1134 - group 0 QuantAxModel macs: 13,437,952
2025-09-28 06:19:41.162 | INFO | yasched.test_onepass:results2model:2436 - max_cycle = 8,368,117
2025-09-28 06:19:43.411 | INFO | yamain.command.build:compile_ptq_model:1088 - fuse 1 subgraph(s)
"""
OLDER = """\
                 Quant Precision Table 【EndToEnd Reference】
┏━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━┓
┃ Operator ┃ Type            ┃ Output Tensor ┃ Data Type ┃ Shape   ┃ Cosin Distance     ┃
┡━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━┩
│ Conv_0   │ AxQuantizedConv │ 474           │ FP32      │ (1, 32) │ 0.999932050704956  │
└──────────┴─────────────────┴───────────────┴───────────┴─────────┴────────────────────┘
2023-07-29 14:23:21.762 | INFO | yasched.test_onepass:results2model:1882 - max_cycle = 782,940
2023-07-29 14:23:26.928 | INFO | yamain.command.build:compile_ptq_model:940 - fuse 1 subgraph(s)
"""
U16 = {"quant": {"layer_configs": [
    {"start_tensor_names": ["DEFAULT"], "end_tensor_names": ["DEFAULT"], "data_type": "U16"}
]}}  # fmt: skip


def left(
    folder: Path, log: str, config: dict[str, Any] | None = None, bits: dict[str, int] | None = None
) -> GraphResult:
    """The result of a build that printed `log` and quantised operators to `bits`."""
    (folder / "graph.log").write_text(log)
    if bits is not None:
        (folder / "quant").mkdir()
        table = {
            op: {f"{op}.out": {"bit_width": width, "state": "ACTIVATED", "hash": 1}}
            for op, width in bits.items()
        }
        text = json.dumps({"tensor_configs": table, "values": {"1": {"scale": [0.1]}}})
        (folder / "quant" / "quant_axmodel.json").write_text(text)
    asked = BuildConfig.model_validate(config) if config else None
    return read_result(folder / "graph.log", folder, asked)


def test_a_good_build_is_read(tmp_path: Path) -> None:
    """Oracle: the figures in the log; milliseconds at 0.9 GHz."""
    result = left(tmp_path, NEWER, U16, {"Conv_0": 16, "op_8:onnx": 16, "Softmax_1": 8})
    assert (result.subgraphs, result.max_cycle, result.macs) == (1, 8_368_117, 13_437_952)
    assert result.milliseconds == pytest.approx(9.3, abs=0.05)
    assert result.cosine == 0.99871
    assert [row.operator for row in result.worst] == ["op_8:onnx", "Conv_0"]
    assert result.bits == {"8": 1, "16": 2}
    assert result.faults == ()


def test_an_older_log_is_read(tmp_path: Path) -> None:
    """Other columns, a space before the bracket. Oracle: the documentation of that version."""
    result = left(tmp_path, OLDER)
    assert (result.subgraphs, result.cosine) == (1, 0.999932050704956)
    assert result.faults == ()


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        (NEWER.replace("fuse 1", "fuse 19"), "19 subgraphs instead of 1"),
        (NEWER.replace("fuse 1", "fused"), "does not say"),
        (NEWER.replace("0.99871", "0.11000"), "cosine of 0.1100 only; worst operator: op_8"),
        (NEWER.replace("0.99871", "nan"), "cosine of 0.0000 only"),
    ],
)
def test_what_does_not_hold_is_a_fault(tmp_path: Path, log: str, fault: str) -> None:
    """Oracle: what others saw happen to such models on a card."""
    (found,) = left(tmp_path, log).faults
    assert fault in found


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (U16, "U16 was asked for DEFAULT, and no tensor of it has 16 bits"),
        ({"quant": {"layer_configs": [{"op_types": ["MatMul"], "data_type": "FP32"}]}}, "FP32 was"),
        ({"quant": {"layer_configs": [{"layer_name": "Conv_0", "data_type": "U16"}]}}, "Conv_0"),
    ],
)
def test_a_precision_that_vanished_is_named(
    tmp_path: Path, config: dict[str, Any], fault: str
) -> None:
    """Oracle: a table in which nothing has the bits asked for."""
    (found,) = left(tmp_path, NEWER, config, {"Conv_0": 8, "MatMul_1": 8}).faults
    assert fault in found


def test_a_damaged_table_is_a_fault(tmp_path: Path) -> None:
    """A model of hours is not thrown away for it. The message has the path in the file."""
    (tmp_path / "quant").mkdir()
    text = '{"tensor_configs": {"Conv_0": {"out": {"bit_width": "8"}}}}'
    (tmp_path / "quant" / "quant_axmodel.json").write_text(text)
    (fault,) = left(tmp_path, NEWER, U16).faults
    assert "tensor_configs.Conv_0.out.bit_width" in fault


def test_colours_are_no_part_of_a_log(tmp_path: Path) -> None:
    """Oracle: the log without them."""
    coloured = NEWER.replace("max_cycle = ", "\x1b[1mmax_cycle = \x1b[0m")
    assert left(tmp_path, coloured) == left(tmp_path, NEWER)


def test_a_table_of_an_earlier_build_is_none(tmp_path: Path) -> None:
    """A container's files cannot always be removed. Oracle: the time of the file."""
    left(tmp_path, NEWER, U16, {"Conv_0": 8})
    table = tmp_path / "quant" / "quant_axmodel.json"
    asked = BuildConfig.model_validate(U16)
    for since, bits in ((0.0, {"8": 1}), (table.stat().st_mtime + 1, {})):
        assert read_result(tmp_path / "graph.log", tmp_path, asked, since).bits == bits


def test_a_table_elsewhere_is_not_read(tmp_path: Path) -> None:
    """Oracle: the words, and that nothing was counted."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    for made in (elsewhere, folder):
        made.mkdir()
    left(elsewhere, NEWER, U16, {"Conv_0": 8})
    (folder / "quant").symlink_to(elsewhere / "quant")
    result = left(folder, NEWER, U16)
    assert (result.bits, len(result.faults)) == ({}, 1)
    assert "link" in result.faults[0]
