"""An identity of all that a traced graph depends on."""

from __future__ import annotations

import enum
import hashlib
import sys
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..versions import code_digest, versions

if TYPE_CHECKING:
    from collections.abc import Collection

_SCALARS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_VERSIONED = {"torch", "numpy", "builtins", "typing", "collections", "functools", "abc", "math"}
"""Packages whose code the versions of Python and of tools stand for."""

_BARE = {"__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"}
"""What the namespace of a class holds that says nothing itself."""
_STATE_METHODS = ("__reduce_ex__", "__reduce__", "__getstate__")


class _UnknownContentError(Exception):
    """The content of an object cannot be told from what Python shows of it."""


def identity(module: nn.Module, facts: object) -> str | None:
    """Return an identity of a stage's code, structure and constants, equal in all processes.

    SHA-256, in hex, of the attributes of every module in `module` (buffers with their bytes,
    parameters without), the source of the packages that their classes are from, and axcore's, the
    versions of all tools, and `facts`. As for every step, code is known by its source: what is
    changed in a namespace at run time is not seen.

    Returns:
        None where an attribute is of a kind whose content cannot be told, such as a function
        within another: such a stage is traced each time.
    """
    try:
        walk = _Walk()
        walk.add([module, facts, versions(), code_digest("axcore")])
    except (_UnknownContentError, RecursionError):
        return None
    return walk.digest.hexdigest()


class _Walk:
    """Feeds objects into a digest, each after a word for its kind and the number of its parts."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._met: dict[int, int] = {}
        self._alive: list[object] = []

    def add(self, value: Any) -> None:
        """Add any object; one that is shared is told from an equal one."""
        kind = type(value)
        if value is None or kind in _SCALARS:
            self._bytes(kind.__name__, repr(value).encode())
        elif isinstance(value, enum.Enum):
            self._several("member", (kind, value.name))
        elif isinstance(value, (type, FunctionType, BuiltinFunctionType)):
            self._reference(value)
        elif kind in (tuple, torch.Size):
            self._several("tuple", value)
        elif kind in (set, frozenset):
            self._set(value)
        elif id(value) in self._met:
            self._bytes("again", str(self._met[id(value)]).encode())
        else:
            self._met[id(value)] = len(self._met)
            self._alive.append(value)  # so that no later object has its id
            self._object(value)

    def _object(self, value: Any) -> None:
        kind = type(value)
        if kind is list:
            self._several("list", value)
        elif kind in (dict, OrderedDict):
            self._several("dict", [part for entry in value.items() for part in entry])
        elif kind in (torch.Tensor, nn.Parameter):
            self._tensor(value)
        elif kind is np.ndarray and value.dtype.kind in "biufc":
            self._several("array", (value.dtype.str, value.shape, value.tobytes()))
        elif kind is partial:
            self._several("partial", (value.func, value.args, value.keywords))
        elif kind is MethodType:
            self._several("method", (value.__self__, value.__func__))
        else:
            self._several("object", (kind, *_state(value)))

    def _bytes(self, word: str, content: bytes) -> None:
        self.digest.update(f"{word} {len(content)} ".encode() + content)

    def _several(self, word: str, values: Collection[Any]) -> None:
        self.digest.update(f"{word} {len(values)} ".encode())
        for value in values:
            self.add(value)

    def _set(self, values: Collection[Any]) -> None:
        if any(type(value) not in _SCALARS for value in values):
            raise _UnknownContentError("a set of objects has no order that lasts")
        self._several("set", sorted(f"{type(value).__name__} {value!r}" for value in values))

    def _tensor(self, value: torch.Tensor) -> None:
        if value.layout is not torch.strided:
            raise _UnknownContentError(f"a tensor of layout {value.layout}")
        look = str(value.dtype), value.shape, value.stride(), str(value.device), value.requires_grad
        self._several("tensor", (type(value), look))
        if not value.is_meta:
            flat = value.detach().cpu().contiguous().reshape(-1)
            self._bytes("bytes", flat.view(torch.uint8).numpy().tobytes())

    def _reference(self, value: Any) -> None:
        """Add a class or function by its name and the source that it is from."""
        name, path, short = str(value.__module__), value.__qualname__, value.__name__
        if getattr(torch, short, None) is value:
            name, path = "torch", short  # its functions in C++ do not say where they are
        found: Any = sys.modules.get(name)
        for part in path.split("."):
            found = getattr(found, part, None)
        # A class that only joins others consists of its bases, wherever it was made.
        if found is not value and not (isinstance(value, type) and vars(value).keys() <= _BARE):
            raise _UnknownContentError(f"{name}.{path} is another object, or within a function")
        self._several("reference", (name, path, _source(name)))
        if isinstance(value, type):
            self._several("bases", [base for base in value.__bases__ if base is not object])


def _state(value: Any) -> tuple[Any, ...]:
    """Return what pickle would keep of an instance that leaves this to Python, or to PyTorch."""
    kind, base = type(value), nn.Module if isinstance(value, nn.Module) else object
    own = [name for name in _STATE_METHODS if _method(kind, name) is not _method(base, name)]
    if own or any("__slots__" in vars(one) for one in kind.__mro__ if base is nn.Module):
        raise _UnknownContentError(f"{kind.__qualname__} says itself what it consists of")
    if base is nn.Module:
        return (vars(value),)
    try:
        _, _, state, items, entries = value.__reduce_ex__(2)
    except TypeError as error:
        raise _UnknownContentError(str(error)) from error
    return state, list(items or ()), list(entries or ())


def _method(kind: type, name: str) -> object:
    return getattr(kind, name, None)


@cache
def _source(module: str) -> str:
    """Return a digest of the package that a module is of, and of its own file."""
    top = module.partition(".")[0]
    if top in _VERSIONED:
        return ""
    try:
        package, file = code_digest(top), getattr(sys.modules[module], "__file__", None)
        if package and file:
            return package + hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise _UnknownContentError(str(error)) from error
    raise _UnknownContentError(f"the source of {module} is not known")
