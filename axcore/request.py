"""What a conversion is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .component import GraphDType


@dataclass(frozen=True)
class Options:
    """What the user chose; None means "as the profile says".

    Attributes:
        task: Name of a profile of the card.
        height, width: Image size in px.
        dtype: Precision of the vision graphs, inputs and outputs included.
        opset: ONNX operator set of the vision graphs, 16 to 20.
        split: Number of files per component, "auto" to stay below 2 GB each, or None for one.
        chip, npu_mode: Target, in the toolchain's spelling.
        prefill_len, kv_cache_len, last_kv_cache_len: See `Profile`.
        embedding_formats: Files besides the raw bfloat16 table: "npy", "f32bin", "pth".
        choices: Options that only some models have, by name (see `ModelCard.choices`).
    """

    task: str | None = None
    height: int | None = None
    width: int | None = None
    dtype: GraphDType = "float32"
    opset: int = 17
    split: int | Literal["auto"] | None = None
    chip: str = "AX650"
    npu_mode: str = "NPU3"
    prefill_len: int | None = None
    kv_cache_len: int | None = None
    last_kv_cache_len: tuple[int, ...] | None = None
    embedding_formats: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
