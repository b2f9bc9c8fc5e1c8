"""Compare the tensors of a checkpoint with those that follow from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .quantised import PACKED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..component import Shape
    from .reader import Checkpoint

WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
HEAD = "lm_head.weight"
SHOWN = 3


def check_layout(
    checkpoint: Checkpoint, expected: Mapping[str, Shape], spare: Sequence[str] = ()
) -> None:
    """Check that a checkpoint has exactly the expected tensors, in suitable dtypes.

    Packed tensors of a quantised language model (see `as_stored`) are int32, all others float.

    The output head (a key ending in ``lm_head.weight``) may be absent or present, whatever the
    config says about tied embeddings: published checkpoints contradict it both ways. If it is
    present and expected, it must have the expected shape.

    Args:
        checkpoint: Opened with the same choice of keys as `expected` (see `Checkpoint.open`).
        expected: Canonical key to shape.
        spare: Canonical prefixes of tensors that may be present besides.

    Raises:
        CheckpointError: Tensors are missing, unused, or of another shape or dtype. One error
            counts them all and names the first of each kind.
    """
    found = checkpoint.tensors
    common = [key for key in expected if key in found]
    findings = {
        "missing": [key for key in expected if key not in found and not _is_head(key)],
        "unused": [
            key
            for key in found
            if key not in expected and not _is_head(key) and not key.startswith(tuple(spare))
        ],
        "of another shape": [
            f"{key} is {list(found[key].shape)} instead of {list(expected[key])}"
            for key in common
            if found[key].shape != tuple(expected[key])
        ],
        "of an unsupported dtype": [
            f"{key} is {found[key].dtype}"
            for key in common
            if found[key].dtype not in (("int32",) if key.endswith(PACKED) else WEIGHT_DTYPES)
        ],
    }
    if wrong := {kind: keys for kind, keys in findings.items() if keys}:
        _refuse(checkpoint, wrong)


def _is_head(key: str) -> bool:
    return key == HEAD or key.endswith(f".{HEAD}")


def _refuse(checkpoint: Checkpoint, findings: Mapping[str, Sequence[str]]) -> None:
    counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in findings.items())
    lines = [
        f"  {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for kind, keys in findings.items()
    ]
    fact = f"the tensors are not those that `config.json` describes: {counts}"
    raise CheckpointError(
        "\n".join([fact, *lines, f"  in: {checkpoint.folder}"]),
        hint="use config and weights of one checkpoint; only the language model may be quantised, "
        "and only by GPTQ",
    )
