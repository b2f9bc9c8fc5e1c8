"""Engines run compiled models. All have the API of pyaxengine, and one of them is pyaxengine."""

from __future__ import annotations

import importlib
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..errors import BundleError, ToolchainError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from ..component import Shape

    Array = np.ndarray[Any, Any]


class _Configured(NamedTuple):
    """An engine whose sessions have options."""

    InferenceSession: Callable[[str], Session]


_MODULES = {"onnx": "axcore.runtime.axengine_sim", "axengine": "axengine"}
_REMEDIES = {
    "onnx": "install onnxruntime; on a board, use --backend axengine",
    "axengine": "install pyaxengine on the board, and check that ldconfig finds libax_engine.so and"
    " libax_sys.so (libaxcl_rt.so for a card); on a PC, use --backend onnx",
}


class Node(Protocol):
    """An input or output of a session."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype; bfloat16 is the one of ml_dtypes."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape in the requested group."""


class Session(Protocol):
    """A loaded model. One thread at a time may use it."""

    def get_inputs(self, shape_group: int = 0) -> Sequence[Node]:
        """Return the inputs of a shape group."""

    def get_outputs(self, shape_group: int = 0) -> Sequence[Node]:
        """Return the outputs of a shape group."""

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        run_options: object = None,
        shape_group: int = 0,
    ) -> list[Array]:
        """Run on arrays of exactly the group's shapes and dtypes; None returns all outputs."""


class Engine(Protocol):
    """A module that opens sessions."""

    @property
    def InferenceSession(self) -> Callable[[str], Session]:  # noqa: N802 - pyaxengine's name
        """Opens a compiled model, given its path."""


class Spec(NamedTuple):
    """Dtype and shape of an input or output."""

    shape: Shape
    dtype: np.dtype[Any]


class Group(NamedTuple):
    """One set of shapes that a model was compiled for, by input and output name."""

    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]


def load_engine(name: str, **options: Any) -> Engine:
    """Return an engine by its name on the command line.

    Args:
        name: "onnx" for ONNX Runtime on a PC, "axengine" for the NPU of a board or a card.
        options: Of its sessions: those of the module's `SessionOptions`. pyaxengine has none.

    Raises:
        ToolchainError: The engine's package is not installed, or a library it needs is missing.
        UsageError: There is no engine of that name.
    """
    if name not in _MODULES:
        raise UsageError(f"there is no engine `{name}`", hint=f"use {' or '.join(_MODULES)}")
    try:
        module = importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:
        raise _unusable(name, error) from error
    if not options:
        return cast("Engine", module)
    chosen = module.SessionOptions(**options)
    return _Configured(partial(module.InferenceSession, sess_options=chosen))


def open_session(engine: Engine, path: Path) -> Session:
    """Load a compiled model: ``.axmodel`` on a board, ``.onnx`` on a PC.

    Raises:
        BundleError: The file is missing or not a model of this engine; the message names it.
        ToolchainError: The board's library does not load; this only shows with the first model.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise BundleError(
            f"cannot read `{path.name}`: {error.strerror}\n  folder: {path.parent}",
            hint="build the bundle again, or copy the whole folder",
        ) from error
    try:
        return engine.InferenceSession(str(path))
    except (ImportError, OSError, AssertionError) as error:
        raise _unusable("axengine", error) from error
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"`{path.name}` is not a model that this engine can run\n"
            f"  folder: {path.parent}\n"
            f"  engine: {error}",
            hint="build it again for this target; on a board, check that nothing else uses the NPU",
        ) from error


def shape_groups(session: Session) -> list[Group]:
    """Return the shape groups of a model, in order; group 0 of a layer decodes one token."""
    groups: list[Group] = []
    for number in count():
        # pyaxengine has no count of groups. Behind the last one it raises IndexError, from its
        # list of groups, or ValueError, from its own check.
        try:
            inputs, outputs = session.get_inputs(number), session.get_outputs(number)
        except (IndexError, ValueError):
            break
        groups.append(Group(_specs(inputs), _specs(outputs)))
    return groups


def _specs(nodes: Sequence[Node]) -> dict[str, Spec]:
    return {node.name: Spec(tuple(node.shape), node.dtype) for node in nodes}


def _unusable(name: str, error: Exception) -> ToolchainError:
    return ToolchainError(
        f"the engine `{name}` does not load\n  {type(error).__name__}: {error}",
        hint=_REMEDIES[name],
    )
