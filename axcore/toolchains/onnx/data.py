"""The file in which a layer model keeps its weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...system import trim_memory
from .precision import stored_forms

if TYPE_CHECKING:
    from pathlib import Path

    from ...checkpoint import Checkpoint
    from ...component import Stage
    from .precision import Precision, Stored

_ALIGNMENT = 64  # so that a mapped file can be read in place


@dataclass(frozen=True)
class DataFile:
    """Weights of a stage one behind the other, at places known before anything is written.

    Attributes:
        path: The file.
        stage: Whose parameters.
        checkpoint: Where they are read from.
        precision: See `stored_forms`.
        fingerprint: Bytes that end the file, so that it can be told from another build's.
    """

    path: Path
    stage: Stage
    checkpoint: Checkpoint
    precision: Precision
    fingerprint: bytes

    @cached_property
    def forms(self) -> dict[str, list[Stored]]:
        """What stands for each parameter, in the order of the file."""
        weights = self.stage.weights()
        return {
            name: stored_forms(name, tuple(p.shape), weights[name], self.checkpoint, self.precision)
            for name, p in self.stage.module.named_parameters()
        }

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each initializer begins, by its name."""
        found, end = {}, 0
        for form in self._in_order:
            found[form.name] = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = found[form.name] + form.nbytes
        return found

    def write(self) -> Path:
        """Write the file and return its path."""
        with self.path.open("wb") as file:
            for form in self._in_order:
                form.write(file.fileno(), self.offsets[form.name])
            file.seek(0, os.SEEK_END)
            file.write(self.fingerprint)
        trim_memory()  # glibc keeps what each writer frees
        return self.path

    def initializers(self, parameter: str) -> list[ir.Value]:
        """Return values that point at what stands for a parameter."""
        values = []
        for form in self.forms[parameter]:
            shape = ir.Shape(form.shape)
            value = ir.Value(name=form.name, shape=shape, type=ir.TensorType(form.dtype))
            value.const_value = ir.ExternalTensor(
                self.path.name,
                self.offsets[form.name],
                form.nbytes,
                form.dtype,
                shape=shape,
                name=form.name,
                base_dir=self.path.parent,
            )
            values.append(value)
        return values

    @property
    def _in_order(self) -> list[Stored]:
        return [form for forms in self.forms.values() for form in forms]
