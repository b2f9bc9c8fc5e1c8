"""The chips that Pulsar2 compiles for. Light: `axcore --help` gets here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_CHIP = "AX650"

NPU_MODES: Mapping[str, tuple[str, ...]] = {
    "AX650": ("NPU1", "NPU2", "NPU3"),
    "M76H": ("NPU1", "NPU2", "NPU3"),
    "AX620E": ("NPU1", "NPU2"),
    "AX615": ("NPU1", "NPU2"),
    "AX637": ("NPU1",),
    "M57": ("NPU1",),
    "AX8860": ("NPU1", "NPU2", "NPU4"),
}
"""``--target_hardware`` to the ``--npu_mode`` values it has: how much of the NPU a graph takes."""


def check_target(chip: str, npu_mode: str) -> None:
    """Refuse a chip that Pulsar2 does not know, or a mode that the chip does not have.

    Raises:
        UsageError: The message lists what there is.
    """
    if chip not in NPU_MODES:
        raise UsageError(
            f"Pulsar2 has no chip `{chip}`", hint=f"choose one of {', '.join(NPU_MODES)}"
        )
    if npu_mode not in NPU_MODES[chip]:
        raise UsageError(
            f"chip {chip} has no NPU mode `{npu_mode}`",
            hint=f"choose one of {', '.join(NPU_MODES[chip])}",
        )
