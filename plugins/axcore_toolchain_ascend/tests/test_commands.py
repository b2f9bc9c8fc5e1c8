"""Exact commands and the script that holds them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from axcore_toolchain_ascend import Ascend
from axcore_toolchain_ascend.card import Card
from axcore_toolchain_ascend.commands import atc_flags

from axcore import BuildRequest, GraphFile, UsageError
from axcore.testing import build_folder

from .conftest import SOC, Standin

if TYPE_CHECKING:
    from pathlib import Path

CARD = Card.of(SOC)


def test_the_command_is_the_documented_one(graph: GraphFile) -> None:
    """Word by word. Oracle: the documented form of a conversion from ONNX."""
    assert atc_flags(graph, CARD) == [
        "--framework=5",
        "--model=tower.onnx",
        "--output=build/ascend/tower/tower",
        "--input_format=ND",
        "--input_shape=pixel_values:1,3,4,6;position_ids:1,24",
        "--soc_version=Ascend310P3",
        "--precision_mode_v2=fp16",
        "--log=error",
    ]


def test_a_components_own_settings_are_laid_over(graph: GraphFile) -> None:
    """A value sets a flag, None takes it out, those of other toolchains do not count.

    Oracle: the settings.
    """
    own = {"precision_mode_v2": None, "precision_mode": "force_fp16", "log": "info"}
    settings: dict[str, dict[str, Any]] = {"ascend": own, "pulsar2": {"quant": {}}}
    found = atc_flags(replace(graph, build_options=settings), CARD)
    expected = atc_flags(graph, CARD)[:-2]
    assert found == [*expected, "--log=info", "--precision_mode=force_fp16"]


@pytest.mark.parametrize("said", ["convert", "environment"])
def test_the_script_runs_what_a_build_runs(
    request_: BuildRequest, bundle: Path, standin: Standin, said: str
) -> None:
    """From any folder, with the card known beforehand or only when it runs.

    Oracle: the journals of the stand-in.
    """
    build_folder(Ascend(), bundle, request_)
    for path in bundle.glob("*.om"):
        path.unlink()
    options, variables = (SOC, {}) if said == "convert" else ({}, {"SOC_VERSION": "Ascend310P3"})
    (text,) = Ascend().prepare(replace(request_, options=options)).values()
    (bundle / "build_ascend.sh").write_text(text)
    subprocess.run(
        ["bash", str(bundle / "build_ascend.sh")], env={**os.environ, **variables}, check=True
    )
    calls = standin.calls()
    assert calls[:2] == calls[2:]
    assert sorted(path.name for path in bundle.glob("*.om")) == ["it's a resampler.om", "tower.om"]


@pytest.mark.parametrize("lost", ["card", "tool"])
def test_the_script_says_what_it_lacks(
    request_: BuildRequest, bundle: Path, standin: Standin, lost: str
) -> None:
    """Before anything is run. Oracle: its words, its code and the stand-in's empty journal."""
    (text,) = Ascend().prepare(replace(request_, options={})).values()
    (bundle / "build_ascend.sh").write_text(text)
    variables = {"ATC": "no-such-atc", "SOC_VERSION": "Ascend310P3"} if lost == "tool" else {}
    done = subprocess.run(
        ["bash", str(bundle / "build_ascend.sh")],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert ("npu-smi info" if lost == "card" else "no-such-atc is not on PATH") in done.stderr
    assert standin.calls() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soc-version": "310P3"}, "`310P3` is no soc-version"),
        ({"soc-version": "Ascend310P3 --log=info"}, "no soc-version"),
        ({**SOC, "precision-mode": "int8"}, "no precision mode `int8`"),
        ({**SOC, "precision-mode": "mixed_bfloat16"}, "Ascend310P3 has no bfloat16"),
    ],
)
def test_wrong_options_are_refused(
    request_: BuildRequest, options: dict[str, str], words: str
) -> None:
    """With what there is instead. Oracle: the words of the message."""
    with pytest.raises(UsageError, match=words) as caught:
        Ascend().prepare(replace(request_, options=options))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("soc", "fits"),
    [
        *[(soc, False) for soc in ("Ascend310", "Ascend310P3", "Ascend310B4", "Ascend910A")],
        *[(soc, False) for soc in ("Ascend910B", "Ascend910ProB", "Ascend910PremiumA")],
        *[(soc, True) for soc in ("Ascend910B1", "Ascend910B4", "Ascend910_9382", "Ascend950")],
    ],
)
def test_bfloat16_graphs_need_the_a2_generation(
    request_: BuildRequest, graph: GraphFile, soc: str, fits: bool
) -> None:
    """Oracle: the published list of cards; names that are not known are left to atc."""
    port = replace(graph.inputs[0], dtype="bfloat16")
    graphs = (replace(graph, inputs=(port,)),)
    request = replace(request_, graphs=graphs, options={"soc-version": soc})
    if fits:
        assert Ascend().prepare(request)
    else:
        with pytest.raises(UsageError, match=r"tower\.onnx"):
            Ascend().prepare(request)
