"""A stand-in for ``ais_bench.infer.interface``, which needs a card.

Under ONNX Runtime it runs the ONNX file that the stand-in for ``atc`` noted in an ``.om`` file. It
is as particular as the card: a list of contiguous arrays of the right types, in order.
"""

import json
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class dtype(Enum):  # noqa: N801
    """Types, printed as aclruntime prints them."""

    float32 = 0
    float16 = 1
    int32 = 3
    int64 = 9

    def __str__(self) -> str:
        return f"dtype.{self.name}"


class Tensor:
    """Description of a port."""

    def __init__(self, name: str, kind: str, shape: list[int]) -> None:
        self.name, self.shape = name, shape
        self.datatype = dtype[{"float": "float32"}.get(kind[7:-1], kind[7:-1])]


class InferSession:
    """Keeps the sessions made, so that tests see what they were given."""

    made: "list[InferSession]" = []  # noqa: RUF012

    def __init__(self, device_id: int, model_path: str) -> None:
        source = json.loads(Path(model_path).read_text())["onnx"]
        self.device_id = device_id
        self.feeds: list[Any] = []
        self._session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        self.made.append(self)

    def get_inputs(self) -> list[Tensor]:
        return [Tensor(node.name, node.type, node.shape) for node in self._session.get_inputs()]

    def get_outputs(self) -> list[Tensor]:
        return [
            Tensor(f"Add_{index}:0:{node.name}", node.type, node.shape)
            for index, node in enumerate(self._session.get_outputs())
        ]

    def infer(self, feeds: list[Any], mode: str) -> list[Any]:
        assert mode == "static"
        assert all(isinstance(feed, np.ndarray) and feed.flags.c_contiguous for feed in feeds)
        self.feeds.append(feeds)
        names = [node.name for node in self._session.get_inputs()]
        outputs: list[Any] = self._session.run(None, dict(zip(names, feeds, strict=True)))
        return outputs
