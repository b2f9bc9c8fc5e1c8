"""A checkpoint is held against what its config promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axcore.checkpoint import Checkpoint, check_layout
from axcore.errors import CheckpointError

EXPECTED = {"a.weight": (2, 3), "b.weight": (4,), "lm_head.weight": (5, 3)}


def opened(folder: Path, **changes: torch.Tensor | None) -> Checkpoint:
    """Open a checkpoint of the expected layout with some tensors changed or (None) left out."""
    tensors = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(4, dtype=torch.bfloat16)}
    for name, tensor in changes.items():
        tensors.pop(f"{name}.weight", None)
        if tensor is not None:
            tensors[f"{name}.weight"] = tensor
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


@pytest.mark.parametrize("expected_head", [True, False])
@pytest.mark.parametrize("head", [torch.zeros(5, 3), None])
def test_the_head_may_be_there_or_not(
    tmp_path: Path, head: torch.Tensor | None, expected_head: bool
) -> None:
    """Tied or not by the config, stored or not by the file: all four are met and accepted."""
    expected = {key: shape for key, shape in EXPECTED.items() if expected_head or key[0] != "l"}
    check_layout(opened(tmp_path, lm_head=head), expected)


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"a": None}, ["1 missing", "missing: a.weight"]),
        ({"c": torch.zeros(1)}, ["1 unused", "unused: c.weight"]),
        ({"a": torch.zeros(3, 2)}, ["1 of another shape", "a.weight is [3, 2] instead of [2, 3]"]),
        ({"lm_head": torch.zeros(5, 4)}, ["lm_head.weight is [5, 4] instead of [5, 3]"]),
        (
            {"b": torch.zeros(4, dtype=torch.int8)},
            ["1 of an unsupported dtype", "b.weight is int8"],
        ),
        ({"a": None, "c": torch.zeros(1)}, ["1 missing, 1 unused"]),
    ],
)
def test_a_difference_is_named_with_both_sides(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], evidence: list[str]
) -> None:
    """Missing, unused, wrongly shaped and quantised tensors; oracle: the change made."""
    with pytest.raises(CheckpointError) as caught:
        check_layout(opened(tmp_path, **changes), EXPECTED)
    for text in evidence:
        assert text in caught.value.message
    assert caught.value.hint


def test_spare_tensors_may_be_there_or_not(tmp_path: Path) -> None:
    """Under a spare prefix anything unexpected is accepted, elsewhere not. Oracle: the prefixes."""
    checkpoint = opened(tmp_path, **{"mtp.c": torch.zeros(1), "mtpc": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 unused\n  unused: mtpc.weight"):
        check_layout(checkpoint, EXPECTED, spare=["mtp."])
    check_layout(checkpoint, EXPECTED, spare=["mtp.", "mtpc."])


def test_many_differences_stay_one_short_message(tmp_path: Path) -> None:
    """A hundred missing tensors: counted, and three of them shown."""
    expected = EXPECTED | {f"layer.{i}": (1,) for i in range(100)}
    with pytest.raises(CheckpointError, match="100 missing") as caught:
        check_layout(opened(tmp_path), expected)
    assert "layer.2, ..." in caught.value.message
    assert "layer.3" not in caught.value.message
