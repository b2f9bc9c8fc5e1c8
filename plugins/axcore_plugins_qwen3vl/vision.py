"""The vision tower: features that leave it behind some blocks travel with the state to its end.

Source: transformers, ``Qwen3VLVisionModel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from axcore import CellMerger, RotaryTower, Stage

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
    patch, taken = config["patch_size"], list(config["deepstack_visual_indexes"])
    tower = RotaryTower(config, PREFIX, height // patch, width // patch)
    chain, carried = [tower.embed()], 0
    for index in range(config["depth"]):
        chain.append(tower.block(index, carried))
        if index in taken:
            keys = f"{PREFIX}deepstack_merger_list.{carried}."
            chain.append(Stage(f"deepstack.{carried}", tower.merger(Deepstack, whole=True), keys))
            carried += 1
    return *chain, Stage("merger", tower.merger(Merger), PREFIX + "merger.")


class Deepstack(CellMerger):
    """Adds features of the state, merged to tokens, to what travels with it."""

    def forward(self, x: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the state, what it carried, and the new features."""
        return x, *carried, super().forward(x)


class Merger(CellMerger):
    """Merges the state to tokens and hands on the features that it carried."""

    def forward(self, x: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return tokens, then features."""
        return super().forward(x), *carried
