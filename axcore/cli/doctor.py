"""What a conversion depends on, looked at without loading any of it."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from packaging.requirements import Requirement

from ..display import size
from ..files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..availability import Availability
    from ..plugins import Registry
    from ..runtime.contract import Backend
    from ..toolchains.contract import Toolchain


_VARIABLES = (
    *("HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("AXCORE_CACHE", "AXCORE_DISABLE_GRAPH_CACHE", "AXCORE_DISABLE_PLUGINS"),
)


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: Literal["ok", "absent", "failed"]
    detail: str
    remedy: str = ""


def examine(registry: Registry) -> list[Check]:
    """Return the state of packages, plugins, toolchains, backends, machine and environment."""
    return [
        *_packages(),
        *_plugins(registry),
        *_toolchains(registry),
        *_backends(registry),
        *_machine(),
        *_environment(),
    ]


def _packages() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    for line in requires("axcore") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "failed", "not installed", f"pip install '{line}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        remedy = "" if fits else f"pip install '{line}'"
        yield Check(requirement.name, "ok" if fits else "failed", found, remedy)


def _plugins(registry: Registry) -> Iterator[Check]:
    _ = registry.backends  # sets plugins aside, too
    for plugin in registry.plugins.values():
        yield Check(f"plugin {plugin.name}", "ok", f"{plugin.distribution} {plugin.version}")
    for problem in registry.problems:
        plugin = problem.plugin
        detail = f"{plugin.distribution} {plugin.version}: {problem.error}".lstrip(" :")
        remedy = f"upgrade or uninstall it; AXCORE_DISABLE_PLUGINS={plugin.name} leaves it out"
        yield Check(f"plugin {plugin.name}", "failed", detail, problem.remedy or remedy)
    for remark in registry.remarks:
        yield Check(remark.subject, "failed", remark.text, remark.remedy)


def _toolchains(registry: Registry) -> Iterator[Check]:
    for name, toolchain in registry.toolchains.items():
        yield from _asked(f"toolchain {name}", toolchain)
        with _isolated(problems := list[Check](), f"{name}: checks"):
            yield from [_available(f"{name}: {what}", found)
                        for what, found in toolchain.checks().items()]  # fmt: skip
        yield from problems


def _backends(registry: Registry) -> Iterator[Check]:
    for name, backend in registry.backends.items():
        yield from _asked(f"backend {name}", backend)


def _asked(name: str, plugin: Toolchain | Backend) -> list[Check]:
    """Ask a toolchain or backend whether it can run here; one that fails is a failed check."""
    with _isolated(problems := list[Check](), name):
        return [_available(name, plugin.availability(), plugin.options)]
    return problems


@contextmanager
def _isolated(problems: list[Check], name: str) -> Iterator[None]:
    """Add a failed check where the code of a plugin raises anything but Ctrl-C."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        remedy = "upgrade or uninstall the plugin that has it (`axcore plugins list`)"
        problems.append(Check(name, "failed", f"{type(error).__name__}: {error}", remedy))


def _available(name: str, found: Availability, options: Iterable[str] = ()) -> Check:
    """Say on one line what was found, and which options there are."""
    status: Literal["ok", "absent"] = "ok" if found.available else "absent"
    own = ", ".join(f"--{option}" for option in options)
    detail = ": ".join(line.strip() for line in found.detail.splitlines())
    detail += f" (options: {own})" if own else ""
    return Check(name, status, detail, found.remedy)


def _machine() -> Iterator[Check]:
    library = " ".join(platform.libc_ver()).strip() or "a C library other than glibc"
    yield Check("system", "ok", f"{platform.system()} {platform.machine()}, {library}")
    memory = psutil.virtual_memory()
    yield Check("cores", "ok", str(psutil.cpu_count() or 1))
    yield Check("memory", "ok", f"{size(memory.available)} of {size(memory.total)} available")
    yield Check("disk here", "ok", f"{size(shutil.disk_usage(Path.cwd()).free)} free")
    yield _cache()


def _cache() -> Check:
    """Say whether what is fetched and fabricated has a place."""
    folder = cache_folder("").absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check("cache", "ok", str(folder))
    remedy = "set AXCORE_CACHE to a folder that you may write to"
    return Check("cache", "failed", f"{folder} cannot be written", remedy)


def _environment() -> Iterator[Check]:
    for name in _VARIABLES:
        if value := os.environ.get(name):
            yield Check(name, "ok", value)
