"""Environment variables with which Ascend cards run best, by what is done.

Source: the MindIE guide of MiniCPM-V-2. Most speak to torch and its acceleration library.
"""

from __future__ import annotations

import os

_VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
_RUN = {
    _VISIBLE: "0",  # models of this size run on one card only
    "ATB_LAYER_INTERNAL_TENSOR_REUSE": "1",
    "INF_NAN_MODE_ENABLE": "0",
    "ATB_OPERATION_EXECUTE_ASYNC": "1",
    "TASK_QUEUE_ENABLE": "1",
    "ATB_CONVERT_NCHW_TO_ND": "1",
    "LCCL_ENABLE_FALLBACK": "1",
    "ATB_WORKSPACE_MEM_ALLOC_GLOBAL": "1",
    "ATB_CONTEXT_WORKSPACE_SIZE": "0",
}
_PERFORMANCE = {
    **_RUN,
    "ATB_LLM_BENCHMARK_ENABLE": "1",
    "ATB_LLM_BENCHMARK_FILEPATH": "benchmark.csv",
}
_PROFILES = {"run": _RUN, "performance": _PERFORMANCE}
PROFILES = tuple(_PROFILES)


def environment(profile: str) -> dict[str, str]:
    """Return the variables of a profile: "run", or "performance" to be measured as well."""
    return dict(_PROFILES[profile])


def apply_environment(profile: str, device: int = 0) -> None:
    """Set the variables of a profile that the user has not set; comes before CANN is loaded.

    All cards stay visible where another than the first is to be used.
    """
    for name, value in environment(profile).items():
        if name != _VISIBLE or device == 0:
            os.environ.setdefault(name, value)
