"""Discover plugins, isolate their failures, and call their hooks.

A plugin is a module that an entry point of the group ``axcore`` names. A plugin that fails to
import, misspells a hook or returns invalid values becomes a `Problem`; the others keep working.

Environment:
    AXCORE_DISABLE_PLUGINS: Names of plugins to ignore, separated by commas; ``*`` for all.
    AXCORE_TRACE_PLUGINS: If set, every hook call is written to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pluggy

from . import defaults, hookspecs
from .catalogue import Catalogue
from .declared import check_cards, check_offer
from .discovery import (
    PluginInfo,
    Problem,
    Remark,
    check_contract,
    check_requirement,
    installed,
    located,
    message_of,
    named,
    watched,
)
from .errors import AxcoreError, ContractError
from .model_card import Entry
from .runtime.contract import Backend
from .toolchains.contract import Toolchain

if TYPE_CHECKING:
    from .bundle import ModelRecord

DEFAULTS = "defaults"


class Registry:
    """The installed plugins.

    Attributes:
        plugins: Plugins in use, by name.
        problems: Plugins set aside because they failed.
    """

    def __init__(self, entries: Iterable[EntryPoint] | None = None) -> None:
        self.plugins: dict[str, PluginInfo] = {}
        self.problems: list[Problem] = []
        self._remarks: list[Remark] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(defaults, DEFAULTS)
        if os.environ.get("AXCORE_TRACE_PLUGINS"):
            self._manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr))  # noqa: T201
            self._manager.enable_tracing()
        for info, entry in named(installed(self.problems) if entries is None else entries):
            self._load(info, entry)

    @contextmanager
    def _isolated(self, name: str) -> Iterator[None]:
        """Set a plugin aside that raises anything at all inside, but for Ctrl-C."""
        found: list[str] = []
        try:
            with watched(found):
                yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # exits, and panics of Rust, which are no Exception
            self._set_aside(name, error)
        if info := self.plugins.get(name):
            remedy = "import what is heavy inside of the hooks that need it, and print nothing"
            self._remarks += [Remark(f"plugin {name}", f"{info} {text}", remedy) for text in found]

    @property
    def entries(self) -> list[Entry]:
        """Every model that can be converted."""
        return [entry for entry in self._catalogue.entries if not entry.card.unsupported]

    @property
    def remarks(self) -> list[Remark]:
        """What to know of the plugins in use: contested names, and what discovery must not do."""
        shared = {p.key for p in self.plugins.values() if p.name != p.key}
        doubled = [
            Remark(f"plugin name {key}", f"several plugins have it: they are called {names}",
                   "uninstall all but one")
            for key in sorted(shared)
            if (names := ", ".join(n for n, p in self.plugins.items() if p.key == key))
        ]  # fmt: skip
        return [*doubled, *self._catalogue.clashes(), *self._remarks]

    @property
    def _catalogue(self) -> Catalogue:
        known = [entry for entry in self._known if entry.family in self.plugins]
        return Catalogue(known, self.plugins, self.problems)

    @cached_property
    def _known(self) -> list[Entry]:
        """Every card of every family; a family with invalid cards is set aside."""
        found: list[Entry] = []
        _ = self.toolchains  # a plugin set aside for those has no models either
        for name in list(self.plugins):
            with self._isolated(name):
                cards = self._only(name, "model_cards")
                check_cards(name, cards)
                found += [Entry(name, card) for card in cards]
        return sorted(found, key=lambda entry: (entry.family, entry.card.id))

    @cached_property
    def toolchains(self) -> dict[str, Toolchain]:
        """Every toolchain, by name."""
        return self._named("toolchains", "toolchain", Toolchain)

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """Every backend, by name."""
        return self._named("backends", "backend", Backend)

    def _named(self, hook: str, what: str, protocol: type) -> dict[str, Any]:
        """Return the results of `hook` by name; a plugin with invalid results is set aside."""
        found: dict[str, Any] = {}
        for name in [DEFAULTS, *self.plugins]:
            with self._isolated(name):
                own: dict[str, Any] = {}
                for item in self._only(name, hook):
                    check_offer(what, item, protocol, {**found, **own})
                    own[item.name] = item
                found |= own
        return found

    def hooks_of(self, name: str) -> list[str]:
        """Return the hooks that a plugin implements, in pipeline order."""
        plugin = self._manager.get_plugin(name)
        callers = self._manager.get_hookcallers(plugin) or []
        implemented = {caller.name for caller in callers}
        return [hook for hook in self.hooks if hook in implemented]

    @property
    def hooks(self) -> list[str]:
        """Every hook of the contract, in pipeline order."""
        known = vars(self._manager.hook)
        return [hook for hook in vars(hookspecs) if hook in known]

    def find(self, model: str, family: str | None = None) -> Entry:
        """Return the model of that name; see `Catalogue.find`."""
        return self._catalogue.find(model, family)

    def name_of(self, entry: Entry) -> str:
        """Return by which name `find` has a model; see `Catalogue.name_of`."""
        return self._catalogue.name_of(entry)

    def recognise(
        self,
        config: Mapping[str, Any],
        where: object,
        family: str | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> Entry:
        """Return the model that a ``config.json`` describes; see `Catalogue.recognise`."""
        return self._catalogue.recognise(config, where, family, report)

    def of_bundle(self, record: ModelRecord) -> Entry:
        """Return the model of a bundle, by the plugin that made it; see `Catalogue.of_bundle`."""
        return self._catalogue.of_bundle(record)

    def call(self, family: str, hook: str, **arguments: Any) -> Any:
        """Call the implementation of `hook` by `family`, or else the default.

        Raises:
            ContractError: The plugin failed or returned None; the message names plugin and hook.
        """
        others = [
            plugin
            for name, plugin in self._manager.list_name_plugin()
            if name not in (family, DEFAULTS)
        ]
        caller = self._manager.subset_hook_caller(hook, others)
        with self.blame(family, hook):
            result = caller(**arguments)
        if result is None:
            raise ContractError(
                f"plugin {self.plugins[family]} returned nothing from {hook}",
                hint=f"implement `{hook}`; it is required of a family",
            )
        return result

    @contextmanager
    def blame(self, family: str, hook: str) -> Iterator[None]:
        """Add the names of plugin and hook to errors raised inside."""
        try:
            yield
        except ContractError as error:
            error.message = f"plugin {self.plugins[family]}, {hook}: {error.message}"
            error.args = (error.message,)
            raise
        except AxcoreError:
            raise
        except Exception as error:
            raise ContractError(
                f"plugin {self.plugins[family]} failed in {hook}\n  {located(error)}",
                hint="set AXCORE_TRACEBACK=1 to see the whole traceback",
            ) from error

    def _load(self, info: PluginInfo, entry: EntryPoint) -> None:
        self.plugins[info.name] = info
        with self._isolated(info.name):
            if info.key == DEFAULTS:
                raise ContractError(f"the plugin name `{DEFAULTS}` is taken")
            check_requirement(entry)
            self.plugins[info.name] = replace(info, contract=check_contract(entry))
            module = entry.load()
            self._check_single(module)
            self._manager.register(module, info.name)
            if not self._manager.get_hookcallers(module):
                raise ContractError("implements no hook")
            self._manager.check_pending()

    def _check_single(self, module: Any) -> None:
        if taken := self._manager.get_name(module):
            raise ContractError(
                f"its module is that of plugin {self.plugins[taken]} too",
                hint="uninstall both distributions, and install one of them again",
            )

    def _set_aside(self, name: str, error: BaseException) -> None:
        info = self.plugins.pop(name)
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self.problems.append(Problem(info, *message_of(error)))

    def _only(self, name: str, hook: str) -> list[Any]:
        """Call `hook` of one plugin alone and join what its implementations return."""
        others = [p for other, p in self._manager.list_name_plugin() if other != name]
        results = self._manager.subset_hook_caller(hook, others)()
        return [item for result in results for item in result]
