"""The variables of the profiles, and what is shown of the machine."""

from __future__ import annotations

import os

import pytest
from axcore_toolchain_ascend import Ascend, environment
from axcore_toolchain_ascend.environment import apply_environment

GUIDE = """
export ASCEND_RT_VISIBLE_DEVICES=0
export ATB_LAYER_INTERNAL_TENSOR_REUSE=1
export INF_NAN_MODE_ENABLE=0
export ATB_OPERATION_EXECUTE_ASYNC=1
export TASK_QUEUE_ENABLE=1
export ATB_CONVERT_NCHW_TO_ND=1
export LCCL_ENABLE_FALLBACK=1
export ATB_WORKSPACE_MEM_ALLOC_GLOBAL=1
export ATB_CONTEXT_WORKSPACE_SIZE=0
"""
MEASURED = {"ATB_LLM_BENCHMARK_ENABLE": "1", "ATB_LLM_BENCHMARK_FILEPATH": "benchmark.csv"}


def test_the_variables_are_the_published_ones() -> None:
    """Oracle: the lines of the MindIE guide of MiniCPM-V-2."""
    lines = [line.removeprefix("export ").split("=") for line in GUIDE.split("\n") if line]
    assert environment("run") == dict(lines)
    assert environment("performance") == {**environment("run"), **MEASURED}


@pytest.mark.parametrize("profile", ["run", "performance"])
def test_what_the_user_has_set_stays(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even to nothing. Oracle: the environment before."""
    own = {"TASK_QUEUE_ENABLE": "2", "LCCL_ENABLE_FALLBACK": ""}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    apply_environment(profile)
    expected = {**environment(profile), **own}
    assert {name: os.environ[name] for name in expected} == expected


def test_doctor_sees_packages_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: this machine, which has none of the packages, and a variable of our own."""
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "2")
    found = Ascend().checks()
    assert set(environment("run")) < set(found)
    assert found["TASK_QUEUE_ENABLE"].detail == "2, from outside"
    assert found["INF_NAN_MODE_ENABLE"].detail == "0, set for runs"
    for name in ("ais_bench", "onnxruntime-cann", "torch-npu"):
        assert not found[name].available
        assert found[name].remedy
