"""Judge a plugin from the command line: every law, what it implements, time and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..discovery import GROUP, normalised
from ..errors import PluginNotFound, UsageError
from ..foreign import read_bytes
from ..hookspecs import CONTRACT
from ..limits import CONFIG_BYTES
from ..plugins import Registry
from ..testing.kit import Verdict, judge
from ..testing.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_HOOKS = ("toolchains", "backends")  # of other plugins than families


@dataclass(frozen=True)
class Judgement:
    """What the conformance test makes of a plugin.

    Attributes:
        plugin: Name, distribution and version.
        model: The model that was tried.
        contract: Version of the contract that it is written for.
        current: Version of the contract of this axcore.
        hooks: Those that it implements.
        defaulted: Those left to their defaults.
        laws: The verdicts, in order.
        seconds: How long it took.
        peak_bytes: Most memory that was in use.
    """

    plugin: str
    model: str
    contract: int
    current: int
    hooks: tuple[str, ...]
    defaulted: tuple[str, ...]
    laws: tuple[Verdict, ...] = field(default_factory=tuple)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether no law is broken."""
        return all(law.status != "failed" for law in self.laws)

    @property
    def verdict(self) -> str:
        """What may be said of it, in a sentence."""
        kept = sum(law.status == "passed" for law in self.laws)
        idle = sum(law.status == "not applicable" for law in self.laws)
        if not self.passed:
            return f"{len(self.laws) - kept - idle} of {len(self.laws)} laws are broken"
        equal = self.laws[-1].status == "passed"
        proof = "answers equal the model's own class" if equal else "answers are not proven"
        return f"keeps the contract: {kept} laws kept, {idle} not applicable; {proof}"

    def data(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **vars(self),
            "laws": [vars(law) for law in self.laws],
            "passed": self.passed,
            "verdict": self.verdict,
        }


def check_plugin(
    plugin: str,
    out: Path,
    model: str | None = None,
    report: Callable[[Verdict], None] = lambda _: None,
) -> Judgement:
    """Try every law on a family.

    Args:
        plugin: Its name, its distribution or module, or the folder of its package.
        out: An empty folder, for what the laws make.
        model: Id of the model; None takes the first.
        report: Takes each verdict as soon as there is one.

    Raises:
        PluginNotFound: There is no such plugin.
        ContractError: It is set aside, or has no such model.
        UsageError: The folder holds no plugin.
    """
    started = time.perf_counter()
    with _importable(plugin) as entries:
        registry = Registry(entries)
        name = _name(plugin, registry, entries)
        trial = Trial.of(name, out, model, registry)
        laws = []
        for verdict in judge(trial):
            laws.append(verdict)
            report(verdict)
    hooks = registry.hooks_of(name)
    every = [hook for hook in registry.hooks if hook not in (*hooks, *_NO_HOOKS)]
    return Judgement(
        str(trial.plugin),
        trial.card.id,
        trial.plugin.contract,
        CONTRACT,
        tuple(hooks),
        tuple(every),
        tuple(laws),
        time.perf_counter() - started,
        _peak_bytes(),
    )


def _peak_bytes() -> int:
    import resource

    return 1024 * max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _name(plugin: str, registry: Registry, entries: list[EntryPoint]) -> str:
    """Return the name of the plugin that is meant."""
    folder = _folder(plugin)
    wanted = entries[-1].value if folder else plugin
    plugins = [*registry.plugins.values(), *(problem.plugin for problem in registry.problems)]
    for info in plugins:
        names = (info.name, info.module) if folder is None else ()
        if wanted in names or normalised(plugin) == info.package or info.module == wanted:
            return info.name
    installed = ", ".join(registry.plugins) or "none"
    raise PluginNotFound(
        f"no plugin `{plugin}` is installed", hint=f"installed: {installed}; or name its folder"
    )


# Folders -----------------------------------------------------------------------------------------


def _folder(plugin: str) -> Path | None:
    folder = Path(plugin).expanduser()
    return folder.resolve() if (folder / "pyproject.toml").is_file() else None


@contextmanager
def _importable(plugin: str) -> Iterator[list[EntryPoint]]:
    """Yield the installed plugins, and that in a folder, which need not be installed."""
    entries, folder = [*entry_points(group=GROUP)], _folder(plugin)
    if folder is None:
        if "/" in plugin:
            raise UsageError(
                f"{plugin} holds no plugin", hint="name a folder with a pyproject.toml"
            )
        yield entries
        return
    found = _declared(folder)
    own = {entry.value for entry in found}
    sys.path.insert(0, str(folder.parent))
    try:
        yield [*(entry for entry in entries if entry.value not in own), *found]
    finally:
        sys.path.remove(str(folder.parent))


def _declared(folder: Path) -> list[EntryPoint]:
    """Return the entry points that a folder's pyproject.toml declares."""
    try:
        import tomllib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # Python 3.10
        raise UsageError(
            f"{folder} cannot be read with this Python", hint="install it, and give its name"
        ) from None
    try:
        text = read_bytes(folder / "pyproject.toml", CONFIG_BYTES).decode()
        groups = tomllib.loads(text)["project"]["entry-points"][GROUP]
        found = [EntryPoint(str(name), str(value), GROUP) for name, value in groups.items()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{folder / 'pyproject.toml'} declares no plugin: {error}",
            hint=f"it needs a table [project.entry-points.{GROUP}]",
        ) from error
    return found
