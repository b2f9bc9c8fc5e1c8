"""The vision tower: blocks with rotary positions, and one merger behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axcore import RotaryTower, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "visual."


def stages(config: Mapping[str, Any], height: int, width: int) -> tuple[Stage, ...]:
    """Return the tower for images of one size, parameters on the meta device.

    Args:
        config: The checkpoint's ``vision_config``.
        height: Image height in px, a multiple of a merged cell (32 px).
        width: Image width in px, likewise.
    """
    patch = config["patch_size"]
    tower = RotaryTower(config, PREFIX, height // patch, width // patch)
    blocks = (tower.block(index) for index in range(config["depth"]))
    return tower.embed(), *blocks, Stage("merger", tower.merger(), PREFIX + "merger.")
