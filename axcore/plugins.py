"""Discover plugins, isolate their failures, and call their hooks.

A plugin is a module that an entry point of the group ``axcore`` names. A plugin that fails to
import, misspells a hook or returns invalid values becomes a `Problem`; the others keep working.

Environment:
    AXCORE_DISABLE_PLUGINS: Names of plugins to ignore, separated by commas; ``*`` for all.
    AXCORE_TRACE_PLUGINS: If set, every hook call is written to standard error.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from . import defaults, hookspecs
from .choices import Choice
from .errors import AxcoreError, ContractError, PluginNotFound, UnsupportedModel
from .model_card import Entry, ModelCard, Profile
from .plain import shown

if TYPE_CHECKING:
    from .runtime.contract import Backend
    from .toolchains.contract import Toolchain

GROUP = hookspecs.PROJECT
DEFAULTS = "defaults"


@dataclass(frozen=True)
class PluginInfo:
    """An installed plugin: entry-point name, distribution and version."""

    name: str
    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"`{self.name}` {self.version}".rstrip()


@dataclass(frozen=True)
class Problem:
    """A plugin that was set aside because it failed, and the error."""

    plugin: PluginInfo
    error: str


class Registry:
    """The installed plugins.

    Attributes:
        plugins: Plugins in use, by name.
        problems: Plugins set aside because they failed.
    """

    def __init__(self, entries: Iterable[EntryPoint] | None = None) -> None:
        self.plugins: dict[str, PluginInfo] = {}
        self.problems: list[Problem] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(defaults, DEFAULTS)
        if os.environ.get("AXCORE_TRACE_PLUGINS"):
            self._manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr))  # noqa: T201
            self._manager.enable_tracing()
        found = _installed(self.problems) if entries is None else entries
        for entry in sorted(_enabled(found), key=lambda entry: entry.name):
            self._load(entry)

    @contextmanager
    def _isolated(self, name: str) -> Iterator[None]:
        """Set a plugin aside that raises anything at all inside, but for Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # exits, and panics of Rust, which are no Exception
            self._set_aside(name, error)

    @property
    def entries(self) -> list[Entry]:
        """Every model that can be converted."""
        return [entry for entry in self._known if not entry.card.unsupported]

    @cached_property
    def _known(self) -> list[Entry]:
        """Every card of every family; a family with invalid cards is set aside."""
        found: list[Entry] = []
        _ = self.toolchains  # a plugin set aside for those has no models either
        for name in list(self.plugins):
            taken = {label: entry.family for entry in found for label in _labels(entry.card)}
            with self._isolated(name):
                cards = self._cards(name)
                _check_cards(name, cards, taken)
                found += [Entry(name, card) for card in cards]
        return sorted(found, key=lambda entry: (entry.family, entry.card.id))

    @cached_property
    def toolchains(self) -> dict[str, Toolchain]:
        """Every toolchain, by name."""
        return self._named("toolchains", "toolchain")

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """Every backend, by name."""
        return self._named("backends", "backend")

    def _named(self, hook: str, what: str) -> dict[str, Any]:
        """Return the results of `hook` by name; a plugin with invalid results is set aside."""
        found: dict[str, Any] = {}
        for name in [DEFAULTS, *self.plugins]:
            with self._isolated(name):
                for item in self._only(name, hook):
                    _check_offer(what, item, found)
                    found[item.name] = item
        return found

    def hooks_of(self, name: str) -> list[str]:
        """Return the hooks that a plugin implements, in pipeline order."""
        plugin = self._manager.get_plugin(name)
        callers = self._manager.get_hookcallers(plugin) or []
        implemented = {caller.name for caller in callers}
        return [hook for hook in vars(hookspecs) if hook in implemented]

    def find(self, model: str) -> Entry:
        """Return the model with this id, alias or repository (with or without its owner).

        Raises:
            PluginNotFound: There is none; the message lists similar names and installed plugins.
            UnsupportedModel: A family knows the model, but cannot convert it.
        """
        for labels_of in (_labels, _repository_labels):
            for entry in self._known:
                if model.lower() in labels_of(entry.card):
                    return _supported(entry)
        raise PluginNotFound(
            f"no installed plugin has a model `{model}`, and no such folder exists\n"
            f"  installed: {self._installed()}",
            hint=self._suggestion(model),
        )

    def _suggestion(self, model: str) -> str:
        owner, _, name = model.lower().rpartition("/")
        ids = {label: entry.card.id for entry in self.entries for label in _labels(entry.card)}
        close = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
        if not close:
            return "`axcore list-models` shows them all"
        if owner:
            return (
                "a repository of other weights is named behind its model, e.g. "
                f"`{ids[close[0]]} --checkpoint {model}`"
            )
        return f"did you mean `{close[0]}`?"

    def recognise(self, config: Mapping[str, Any], where: object) -> Entry:
        """Return the model that a ``config.json`` describes.

        If several models recognise it, the one whose published config agrees in most fields.

        Raises:
            PluginNotFound: No family recognises it.
            UnsupportedModel: A family recognises it, but cannot convert it.
        """
        named = config.get("architectures")
        architecture = named[0] if isinstance(named, list) and named else None
        fitting = [
            entry
            for entry in self._known
            if architecture in entry.card.architectures
            and (entry.card.recognises is None or entry.card.recognises(config))
        ]
        if not fitting:
            kind = config.get("model_type", "?")
            raise PluginNotFound(
                f"no installed plugin exports the architecture {shown(architecture)} (model_type"
                f" {shown(kind)})\n  read from: {where}\n  installed: {self._installed()}",
                hint="install the family's plugin, or write one: a package with an entry point in"
                f" the group `{GROUP}` (docs/plugins.md shows a whole one)",
            )
        return _supported(
            max(fitting, key=lambda entry: _agreement(entry.card.published.config, config))
        )

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
                f"plugin {self.plugins[family]} failed in {hook}\n  {_last_frame(error)}",
                hint="set AXCORE_TRACEBACK=1 to see the whole traceback",
            ) from error

    def _installed(self) -> str:
        return ", ".join(self.plugins) or "none"

    def _load(self, entry: EntryPoint) -> None:
        info = _describe(entry)
        if entry.name == DEFAULTS or entry.name in self.plugins:
            self.problems.append(Problem(info, f"the plugin name `{entry.name}` is taken"))
            return
        self.plugins[entry.name] = info
        with self._isolated(entry.name):
            module = entry.load()
            self._manager.register(module, entry.name)
            if not self._manager.get_hookcallers(module):
                raise ContractError("implements no hook")
            self._manager.check_pending()

    def _set_aside(self, name: str, error: BaseException) -> None:
        info = self.plugins.pop(name)
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        message = error.message if isinstance(error, AxcoreError) else _last_frame(error)
        self.problems.append(Problem(info, message))

    def _only(self, name: str, hook: str) -> list[Any]:
        """Call `hook` of one plugin alone and join what its implementations return."""
        others = [p for other, p in self._manager.list_name_plugin() if other != name]
        results = self._manager.subset_hook_caller(hook, others)()
        return [item for result in results for item in result]

    def _cards(self, name: str) -> list[ModelCard]:
        cards = self._only(name, "model_cards")
        for card in cards:
            if not isinstance(card, ModelCard):
                raise ContractError(f"model_cards returned {card!r}, not a ModelCard")
        return cards


def _installed(problems: list[Problem]) -> list[EntryPoint]:
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
                problems.append(Problem(PluginInfo(name, name, version, ""), _last_frame(error)))
        return found


def _enabled(entries: Iterable[EntryPoint]) -> Iterator[EntryPoint]:
    disabled = {name.strip() for name in os.environ.get("AXCORE_DISABLE_PLUGINS", "").split(",")}
    return (entry for entry in entries if not disabled & {entry.name, "*"})


def _describe(entry: EntryPoint) -> PluginInfo:
    return PluginInfo(entry.name, *(_named_by(entry.dist) if entry.dist else ("", "")), entry.value)


def _named_by(dist: Distribution) -> tuple[str, str]:
    """Return name and version of a distribution; they are empty where its metadata lack them."""
    try:
        metadata = dist.metadata
        return str(metadata["Name"] or ""), str(metadata["Version"] or "")
    except Exception:  # no such file, or no text
        return "", ""


def _labels(card: ModelCard) -> set[str]:
    return {label.lower() for label in (card.id, *card.aliases)}


def _repository_labels(card: ModelCard) -> set[str]:
    repository = card.repo.lower()
    return {repository, repository.rpartition("/")[2]}


def _check_cards(family: str, cards: Sequence[ModelCard], taken: Mapping[str, str]) -> None:
    owners = dict(taken)
    for card in cards:
        _check_types(card)
        if not (card.id and card.repo and card.architectures and card.profiles):
            raise ContractError(f"model card `{card.id}` lacks id, repo, architectures or profiles")
        for label in sorted(_labels(card) & owners.keys()):
            raise ContractError(f"the model name `{label}` belongs to plugin `{owners[label]}`")
        owners |= dict.fromkeys(_labels(card), family)


_ITEMS: Mapping[str, tuple[type, type]] = {
    "architectures": (tuple, str), "aliases": (tuple, str),
    "profiles": (Mapping, Profile), "choices": (Mapping, Choice),
}  # fmt: skip


def _check_types(card: ModelCard) -> None:
    """Refuse a card whose values are not of the types that `ModelCard` declares."""
    wrong = [
        item.name
        for item in fields(card)
        if item.type in ("str", "int") and type(getattr(card, item.name)).__name__ != item.type
    ]
    for name, (kind, of) in _ITEMS.items():
        value = getattr(card, name)
        items = value.values() if isinstance(value, Mapping) else value
        if not isinstance(value, kind) or not all(isinstance(item, of) for item in items):
            wrong.append(name)
    if wrong:
        value = getattr(card, wrong[0])
        raise ContractError(f"model card {card.id!r}: {wrong[0]} is {value!r}, of a wrong type")


def _check_offer(what: str, item: Any, taken: Mapping[str, Any]) -> None:
    """Refuse a toolchain or backend that could not even be listed."""
    if not isinstance(item.name, str) or not item.name:
        raise ContractError(f"{what} {item!r} has no name")
    if item.name in taken:
        raise ContractError(f"{what} `{item.name}` exists already")
    if not isinstance(item.options, Mapping):
        raise ContractError(f"{what} `{item.name}` has no mapping of options")
    for name, option in item.options.items():
        if not isinstance(name, str) or not isinstance(option, Choice):
            raise ContractError(f"{what} `{item.name}`: its option {name!r} is no axcore.Choice")


def _supported(entry: Entry) -> Entry:
    if entry.card.unsupported:
        raise UnsupportedModel(
            f"`{entry.card.id}` ({entry.card.repo}) cannot be converted\n"
            f"  known to: plugin `{entry.family}`",
            hint=entry.card.unsupported,
        )
    return entry


def _agreement(published: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Count the fields of equal value, nested ones included."""
    score = 0
    for key, value in published.items():
        other = config.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            score += _agreement(value, other)
        else:
            score += value == other
    return score


def _last_frame(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    try:
        return f"{type(error).__name__}: {error}{where}"
    except Exception:  # one that cannot even be shown
        return f"{type(error).__name__}{where}"
