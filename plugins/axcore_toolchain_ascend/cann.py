"""ONNX files on a card, through ONNX Runtime's CANN provider, behind pyaxengine's surface.

Importable anywhere; a session needs ``onnxruntime-cann``, CANN and a card.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import ToolchainError

from .environment import apply_environment
from .session import NodeArg, Session, first

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .session import Array, ProviderOptions

PROVIDER = "CANNExecutionProvider"
_REMEDY = (
    "on a machine with an Ascend card, source the set_env.sh of CANN and install onnxruntime-cann "
    "into an environment without onnxruntime"
)
_DTYPES = {"float": "float32", "double": "float64"}


class InferenceSession(Session):
    """An ONNX file of static shapes loaded on a card.

    Args:
        path: The ``.onnx`` file.
        provider_options: ``[{...}]`` as the provider takes them: ``device_id`` (0 by default),
            ``npu_mem_limit`` in bytes, ``enable_cann_graph``, and ``precision_mode`` or, in later
            versions, ``precision_mode_v2``.

    Raises:
        ToolchainError: The provider is missing, or it cannot load the file.
    """

    def __init__(
        self, path: str | Path, *, provider_options: ProviderOptions | None = None
    ) -> None:
        self._session = _load(path, first(provider_options))
        super().__init__(
            [_port(path, node) for node in self._session.get_inputs()],
            [_port(path, node) for node in self._session.get_outputs()],
        )

    def _infer(self, feeds: list[Array]) -> Sequence[Array]:
        named = {port.name: array for port, array in zip(self._inputs, feeds, strict=True)}
        outputs: Sequence[Array] = self._session.run(None, named)
        return outputs


def _load(path: str | Path, options: Mapping[str, Any]) -> Any:
    apply_environment("run", int(options["device_id"]))
    import onnxruntime

    if PROVIDER not in (available := onnxruntime.get_available_providers()):
        raise ToolchainError(
            f"ONNX Runtime has no {PROVIDER} here, only {', '.join(available)}", hint=_REMEDY
        )
    try:
        session = onnxruntime.InferenceSession(str(path), providers=[(PROVIDER, dict(options))])
    except Exception as error:  # ONNX Runtime's own exceptions have no public base
        raise ToolchainError(
            f"{path} cannot be loaded on device {options['device_id']}: {error}", hint=_REMEDY
        ) from error
    # A provider whose library does not load is passed over with a mere warning.
    if PROVIDER not in (used := session.get_providers()):
        raise ToolchainError(
            f"{PROVIDER} did not start; {path} would run on {', '.join(used)}", hint=_REMEDY
        )
    return session


def _port(path: str | Path, node: Any) -> NodeArg:
    if not all(isinstance(length, int) for length in node.shape):
        raise ToolchainError(
            f"{path}: `{node.name}` has the dynamic shape {node.shape}",
            hint="this engine runs vision graphs, whose shapes are static",
        )
    name = node.type.removeprefix("tensor(").removesuffix(")")
    if name == "bfloat16":
        raise ToolchainError(
            f"{path}: `{node.name}` is bfloat16, which ONNX Runtime does not take from numpy",
            hint="convert again with --dtype float16 or float32",
        )
    return NodeArg(node.name, np.dtype(_DTYPES.get(name, name)), tuple(node.shape))
