"""What a conversion depends on, looked at without loading any of it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from packaging.requirements import Requirement

from ..display import size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..availability import Availability
    from ..plugins import Registry


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
    for plugin in registry.plugins.values():
        yield Check(f"plugin {plugin.name}", "ok", f"{plugin.distribution} {plugin.version}")
    for problem in registry.problems:
        name = problem.plugin.name
        remedy = f"upgrade or uninstall it; AXCORE_DISABLE_PLUGINS={name} leaves it out"
        yield Check(f"plugin {name}", "failed", problem.error, remedy)


def _toolchains(registry: Registry) -> Iterator[Check]:
    for name, toolchain in registry.toolchains.items():
        yield _available(f"toolchain {name}", toolchain.availability(), toolchain.options)
        for what, found in toolchain.checks().items():
            yield _available(f"{name}: {what}", found)


def _backends(registry: Registry) -> Iterator[Check]:
    for name, backend in registry.backends.items():
        yield _available(f"backend {name}", backend.availability(), backend.options)


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


def _environment() -> Iterator[Check]:
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "AXCORE_CACHE", "AXCORE_DISABLE_PLUGINS"):
        if value := os.environ.get(name):
            yield Check(name, "ok", value)
