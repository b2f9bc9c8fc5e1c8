"""OM files on a card, through ais_bench, behind pyaxengine's surface.

Importable anywhere; a session needs ais_bench, CANN and a card.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import ToolchainError

from .environment import apply_environment
from .session import NodeArg, Session, first

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .session import Array, ProviderOptions

# atc calls an output "operator:index:output name".
_LONG_NAME = re.compile(r".*:\d+:(?P<name>.+)")


class InferenceSession(Session):
    """An OM file loaded on a card.

    Args:
        path: The ``.om`` file.
        provider_options: ``[{"device_id": n}]``, counted among the visible cards; 0 by default.

    Raises:
        ToolchainError: ais_bench is missing, or it cannot load the file.
    """

    def __init__(
        self, path: str | Path, *, provider_options: ProviderOptions | None = None
    ) -> None:
        self._session = _load(path, int(first(provider_options)["device_id"]))
        super().__init__(
            [_port(tensor) for tensor in self._session.get_inputs()],
            [_port(tensor) for tensor in self._session.get_outputs()],
        )

    def _infer(self, feeds: list[Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = self._session.infer(feeds, mode="static")
        return outputs


def _load(path: str | Path, device: int) -> Any:
    apply_environment("run", device)
    try:
        from ais_bench.infer.interface import InferSession
    except ImportError as error:
        raise ToolchainError(
            f"{path} needs ais_bench, which cannot be imported: {error}",
            hint="on a machine with an Ascend card, source the set_env.sh of CANN and install the "
            "ais_bench and aclruntime wheels",
        ) from error
    try:
        return InferSession(device, str(path))
    except Exception as error:  # whatever the vendor's library raises
        raise ToolchainError(
            f"{path} cannot be loaded on device {device}: {error}",
            hint="check with `npu-smi info` that the card is there and is the one of --soc-version",
        ) from error


def _port(tensor: Any) -> NodeArg:
    long = _LONG_NAME.fullmatch(tensor.name)
    # The type is an enumeration whose members print as "dtype.float32".
    dtype = np.dtype(str(tensor.datatype).rpartition(".")[2])
    return NodeArg(long["name"] if long else tensor.name, dtype, tuple(tensor.shape))
