"""Find plugins and judge what can be judged before their hooks are called.

A plugin is a module that an entry point of the group ``axcore`` names. Nothing that it prints while
it is found reaches standard output, which belongs to the results of commands.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pluggy

from .errors import AxcoreError, ContractError
from .hookspecs import CONTRACT, DECLARATION, OLDEST_CONTRACT, PROJECT
from .plain import shown
from .versions import version_of

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

GROUP = PROJECT
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "pydantic", "scipy")
"""Packages that take long to import, and that a board does not have."""


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin.

    Attributes:
        name: What it is called: `key`, or ``key@distribution`` where several plugins have that key.
        distribution, version: Where it comes from; empty where that is not known.
        module: What its entry point names.
        key: Name of its entry point, which bundles record.
        contract: Version of the contract that it is written for.
    """

    name: str
    distribution: str
    version: str
    module: str
    key: str = ""
    contract: int = field(default=1, compare=False)

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        return f"`{self.name}`" + (f" ({origin})" if origin else "")

    @property
    def package(self) -> str:
        """The distribution as indexes of packages spell it, which take many spellings for one."""
        return normalised(self.distribution)


@dataclass(frozen=True)
class Problem:
    """A plugin that was set aside because it failed, the error, and what to do."""

    plugin: PluginInfo
    error: str
    remedy: str = ""


@dataclass(frozen=True)
class Remark:
    """What a user should know of plugins that are in use, and what to do about it."""

    subject: str
    text: str
    remedy: str = ""


def normalised(distribution: str) -> str:
    """Return the name of a distribution in the spelling that all others are taken for."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


# Find --------------------------------------------------------------------------------------------


def installed(problems: list[Problem]) -> list[EntryPoint]:
    """Return the entry points of every distribution; one whose list is damaged is a problem."""
    try:
        return [*entry_points(group=GROUP)]
    except Exception:  # one is enough that has nothing to do with axcore
        found: list[EntryPoint] = []
        for dist in distributions():
            try:
                found += dist.entry_points.select(group=GROUP)
            except Exception as error:
                name, version = _named_by(dist)
                problems.append(Problem(PluginInfo(name, name, version, ""), located(error)))
        return found


def named(entries: Iterable[EntryPoint]) -> Iterator[tuple[PluginInfo, EntryPoint]]:
    """Yield plugins under names of their own, those aside that the environment disables.

    No plugin has a key that another one has too: each is called ``key@distribution`` then.
    """
    by_key = defaultdict[str, dict[PluginInfo, EntryPoint]](dict)
    for entry in entries:
        origin = _named_by(entry.dist) if entry.dist else ("", "")
        info = PluginInfo(entry.name, *origin, entry.value, entry.name)
        if not _is_disabled(info):
            by_key[entry.name].setdefault(info, entry)
    for key, found in sorted(by_key.items()):
        for info, entry in sorted(found.items(), key=lambda item: (item[0].package, item[1].value)):
            name = f"{key}@{info.package or info.module}" if len(found) > 1 else key
            yield PluginInfo(name, info.distribution, info.version, info.module, key), entry


def _is_disabled(plugin: PluginInfo) -> bool:
    listed = {name.strip() for name in os.environ.get("AXCORE_DISABLE_PLUGINS", "").split(",")}
    own = {plugin.key, f"{plugin.key}@{plugin.package or plugin.module}", "*"}
    return bool(own & listed)


def _named_by(dist: Distribution) -> tuple[str, str]:
    """Return name and version of a distribution; they are empty where its metadata lack them."""
    try:
        metadata = dist.metadata
        return str(metadata["Name"] or ""), str(metadata["Version"] or "")
    except Exception:  # no such file, or no text
        return "", ""


# Judge -------------------------------------------------------------------------------------------


def check_requirement(entry: EntryPoint) -> None:
    """Refuse a plugin whose distribution requires another version of axcore than this one.

    Raises:
        ContractError: Names both versions; the hint says which side to update.
    """
    lines = [line for line in (entry.dist and entry.dist.requires) or () if _of_axcore(line)]
    own = version_of(PROJECT)
    if not lines or not own:
        return
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:  # a board has no packages but those that answer
        return
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            _check_specifier(entry, requirement.specifier, own)


def _of_axcore(line: str) -> bool:
    found = re.match(r"\s*([\w.-]+)", line)
    return bool(found) and normalised(found[1]) == PROJECT  # type: ignore[index]


def _check_specifier(entry: EntryPoint, wanted: SpecifierSet, own: str) -> None:
    from packaging.version import Version

    if wanted.contains(own, prereleases=True):
        return
    # What asks for an older axcore than this is behind, and all else ahead.
    versions = [Version(one.version.removesuffix(".*")) for one in wanted if one.operator != "!="]
    newer = any(version > Version(own) for version in versions)
    raise ContractError(f"needs axcore{wanted}; this is axcore {own}", hint=_update(entry, newer))


def check_contract(entry: EntryPoint) -> int:
    """Return the version of the contract that a plugin is written for, by its source.

    It is not imported for that: a newer one may import names that this axcore lacks.

    Raises:
        ContractError: This axcore does not have that version; the hint says which side to update.
    """
    version = _declared(entry.module)
    if OLDEST_CONTRACT <= version <= CONTRACT:
        return version
    raise ContractError(
        f"is written for version {version} of the contract;"
        f" axcore {version_of(PROJECT)} has {_contracts()}",
        hint=_update(entry, version > CONTRACT),
    )


def _declared(module: str) -> int:
    try:
        spec = importlib.util.find_spec(module)
        read = getattr(spec and spec.loader, "get_source", None)
        source = (read and read(module)) or ""
        tree = ast.parse(source if DECLARATION in source else "")
    except (ImportError, OSError, SyntaxError, ValueError):
        return 1  # made by a program, or importing it says what is wrong
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == DECLARATION for target in targets):
            value = node.value  # type: ignore[attr-defined]
            if isinstance(value, ast.Constant) and type(value.value) is int:
                return value.value
            raise ContractError(f"{DECLARATION} is {ast.unparse(value)}, not a whole number")
    return 1


def _contracts() -> str:
    if CONTRACT == OLDEST_CONTRACT:
        return f"version {CONTRACT}"
    return f"versions {OLDEST_CONTRACT} to {CONTRACT}"


def _update(entry: EntryPoint, axcore: bool) -> str:
    if axcore:
        return "update axcore: pip install --upgrade axcore"
    name = _named_by(entry.dist)[0] if entry.dist else ""
    return f"update the plugin: pip install --upgrade {name or entry.name}"


# Watch -------------------------------------------------------------------------------------------


class _ToStderr(io.BufferedIOBase):
    """Sends on what is written, and keeps the beginning of it."""

    def __init__(self) -> None:
        self.said = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.said = (self.said + bytes(data))[:200]
        with suppress(AttributeError, OSError, ValueError):  # none, or one that is closed
            sys.stderr.write(bytes(data).decode("utf-8", "replace"))
        return len(data)


def _text(aside: _ToStderr) -> TextIO:
    return io.TextIOWrapper(aside, encoding="utf-8", write_through=True)  # type: ignore[type-var]


_ONE_AT_A_TIME = threading.RLock()  # sys.stdout is the same for every thread


@contextmanager
def watched(found: list[str]) -> Iterator[None]:
    """Keep standard output clean; add to `found` what code inside does that discovery must not."""
    before = sys.modules.keys() & HEAVY
    aside = _ToStderr()
    with _ONE_AT_A_TIME:
        try:
            with redirect_stdout(_text(aside)):
                yield
        finally:
            if aside.said:
                found.append(f"prints while it is discovered: {shown(_first_line(aside.said))}")
            if heavy := sorted((sys.modules.keys() & HEAVY) - before):
                found.append(f"imports {', '.join(heavy)} while it is discovered")


def _first_line(said: bytes) -> str:
    return next(iter(said.decode("utf-8", "replace").strip().splitlines()), "")


# Explain -----------------------------------------------------------------------------------------

_MACHINERY = (
    *(str(Path(file).parent) for file in (importlib.__file__, pluggy.__file__) if file),
    *(str(Path(__file__).with_name(name)) for name in ("plugins.py", "discovery.py")),
)


def message_of(error: BaseException) -> tuple[str, str]:
    """Return what to say of a plugin that failed with `error`: the fact, and the remedy."""
    if isinstance(error, AxcoreError):
        return error.message, error.hint
    return located(error), ""


def located(error: BaseException) -> str:
    """Return kind, text and place of an error: a line of the code that failed."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        said = f"{type(error).__name__}: {text}"
    except Exception:  # one that cannot even be shown
        said = type(error).__name__
    place = _place(error)
    return f"{said} ({place})" if place else said


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<frozen ", *_MACHINERY)):
            return f"{frame.filename}:{frame.lineno}"
    return ""
