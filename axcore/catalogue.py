"""The models of the installed families, and which of them a name, a config or a bundle means.

Families are written by strangers, and two may claim the same. A name that two models have is
contested: it alone means neither, and nothing else of the two is touched. An id stands above an
alias, an alias above a repository, and ``family/model`` means one model always.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .discovery import GROUP, PluginInfo, Problem, Remark, located, normalised
from .errors import ContractError, PluginNotFound, UnsupportedModel, UsageError
from .model_card import Entry, ModelCard
from .plain import shown

if TYPE_CHECKING:
    from .bundle import ModelRecord

Report = Callable[[str], None]


@dataclass(frozen=True)
class Catalogue:
    """The known models.

    Attributes:
        entries: Every card of every family, those that say why they cannot be converted included.
        plugins: The plugins in use, by name.
        problems: Those set aside.
    """

    entries: Sequence[Entry]
    plugins: Mapping[str, PluginInfo]
    problems: Sequence[Problem] = ()

    def find(self, model: str, family: str | None = None) -> Entry:
        """Return the model with this id, alias or repository (with or without its owner).

        Args:
            model: Its name; ``family/`` may stand before id or alias.
            family: Where to look; None looks everywhere.

        Raises:
            PluginNotFound: There is none; the message lists similar names and installed plugins.
            UnsupportedModel: A family knows the model, but cannot convert it.
            UsageError: Several families have it.
        """
        entries = self._of(family)
        for name in self.plugins:
            if family in (None, name) and model.startswith(f"{name}/"):
                own = model.removeprefix(f"{name}/")
                for labels in (_ids, _aliases):
                    if found := [e for e in self._of(name) if own.lower() in labels(e.card)]:
                        return supported(found[0])
        for labels in _RANKS:
            if found := [entry for entry in entries if model.lower() in labels(entry.card)]:
                what = f"the model name `{model}`"
                return self._only(found, what, "name the family too, e.g. `{0.family}/{0.card.id}`")
        raise PluginNotFound(
            f"no installed plugin has a model `{model}`, and no such folder exists\n"
            f"  installed: {self._installed()}",
            hint=_suggestion(model, [entry for entry in entries if not entry.card.unsupported]),
        )

    def name_of(self, entry: Entry) -> str:
        """Return by which name a model is found: its id, after its family where others have it."""
        same = [e for e in self.entries if entry.card.id.lower() in _ids(e.card)]
        rivals = {e.family for e in same if not e.card.unsupported} - {entry.family}
        return f"{entry.family}/{entry.card.id}" if rivals else entry.card.id

    def recognise(
        self,
        config: Mapping[str, Any],
        where: object,
        family: str | None = None,
        report: Report = lambda _: None,
    ) -> Entry:
        """Return the model that a ``config.json`` describes.

        If several models of a family recognise it, the one whose published config agrees in most
        fields. A model that can be converted stands above one that cannot.

        Args:
            config: Its content.
            where: Its file, for messages.
            family: Whose models are asked; None asks those of all.
            report: Takes what is to be said of a family that failed, and is not asked any more.

        Raises:
            PluginNotFound: No family recognises it.
            UnsupportedModel: A family recognises it, but cannot convert it.
            UsageError: Several families recognise it.
        """
        fitting, failed = self._recognising(config, self._of(family))
        for problem in failed.values():
            report(problem)
        if not fitting:
            raise self._unknown(config, where, list(failed.values()))
        best = [
            max(own, key=lambda entry: _agreement(entry.card.published.config, config))
            for own in _by_family(fitting)
        ]
        return self._only(best, f"the model of {where}", "choose one, e.g. --family {0.family}")

    def of_bundle(self, record: ModelRecord) -> Entry:
        """Return the model of a bundle: that of the plugin that made it, and of no other.

        Args:
            record: What the manifest says. Where it names no plugin, the name decides.

        Raises:
            PluginNotFound: That plugin is not in use; the hint says how to install it.
            UnsupportedModel: It cannot convert the model any more.
        """
        if not record.family:
            return self.find(record.id)
        maker = normalised(record.plugin.partition(" ")[0])
        for name, plugin in self.plugins.items():
            # Of a plugin that is given by hand, no distribution is known.
            if plugin.key == record.family and maker in ("", plugin.package or maker):
                return self.find(record.id, name)
        raise self._not_made_here(record, maker)

    def clashes(self) -> Iterator[Remark]:
        """Yield the contested names: who has each of them, and what it means."""
        holders: dict[str, list[list[Entry]]] = defaultdict(lambda: [[], []])
        for entry in self.entries:
            for rank, labels in enumerate((_ids, _aliases)):
                for label in labels(entry.card):
                    holders[label][rank].append(entry)
        for label, (ids, aliases) in sorted(holders.items()):
            families = dict.fromkeys(entry.family for entry in (*ids, *aliases))
            if len(families) > 1:
                yield self._clash(label, ids or aliases, list(families))

    def _clash(self, label: str, holders: Sequence[Entry], families: Sequence[str]) -> Remark:
        preferred = [entry for entry in holders if not entry.card.unsupported] or list(holders)
        owners = list(dict.fromkeys(entry.family for entry in preferred))
        meaning = f"that of plugin {self.plugins[owners[0]]}" if len(owners) == 1 else "no model"
        who = " and ".join(f"plugin {self.plugins[family]}" for family in families)
        return Remark(
            f"model name {label}",
            f"{who} have it; alone it means {meaning}",
            f"name the family too, e.g. `{families[0]}/{label}`",
        )

    def _of(self, family: str | None) -> list[Entry]:
        """Return the models of a family, or of all."""
        if family is not None and family not in self.plugins:
            aside = [p for p in self.problems if family in (p.plugin.name, p.plugin.key)]
            raise PluginNotFound(
                f"no family `{family}` is in use"
                + "".join(f"\n  plugin {p.plugin} is set aside: {p.error}" for p in aside)
                + f"\n  installed: {self._installed()}",
                hint="`axcore plugins list` shows them all",
            )
        return [entry for entry in self.entries if family in (None, entry.family)]

    def _only(self, found: Sequence[Entry], what: str, remedy: str) -> Entry:
        """Return the one model that is meant; those of several families are refused."""
        usable = [entry for entry in found if not entry.card.unsupported] or list(found)
        families = list(dict.fromkeys(entry.family for entry in usable))
        if len(families) == 1 or all(entry.card.unsupported for entry in usable):
            return supported(usable[0])
        listed = "".join(
            f"\n  `{entry.family}/{entry.card.id}` of plugin {self.plugins[entry.family]}"
            for entry in usable
        )
        raise UsageError(
            f"{what} is claimed by {len(families)} families{listed}", hint=remedy.format(usable[0])
        )

    def _recognising(
        self, config: Mapping[str, Any], entries: Sequence[Entry]
    ) -> tuple[list[Entry], dict[str, str]]:
        """Return the models that recognise a config, and what is to be said of families that fail.

        A family that fails recognises nothing, so that it is not half of it that answers.
        """
        named = config.get("architectures")
        architecture = named[0] if isinstance(named, list) and named else None
        fitting, failed = [], dict[str, str]()
        for entry in entries:
            try:
                if architecture in entry.card.architectures and recognises(entry.card, config):
                    fitting.append(entry)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever a stranger's code does
                failed[entry.family] = (
                    f"plugin {self.plugins[entry.family]} is not asked about this checkpoint:"
                    f" `recognises` of `{entry.card.id}` failed: {located(error)}"
                )
        return [entry for entry in fitting if entry.family not in failed], failed

    def _unknown(
        self, config: Mapping[str, Any], where: object, failed: Sequence[str]
    ) -> PluginNotFound:
        named, kind = config.get("architectures"), config.get("model_type", "?")
        architecture = named[0] if isinstance(named, list) and named else None
        return PluginNotFound(
            f"no installed plugin exports the architecture {shown(architecture)} (model_type"
            f" {shown(kind)})\n  read from: {where}\n  installed: {self._installed()}"
            + "".join(f"\n  {line}" for line in failed),
            hint="install the family's plugin, or write one: a package with an entry point in"
            f" the group `{GROUP}` (docs/plugins.md shows a whole one)",
        )

    def _not_made_here(self, record: ModelRecord, maker: str) -> PluginNotFound:
        aside = [p for p in self.problems if maker and p.plugin.package == maker]
        others = [e for e in self.entries if record.id.lower() in _ids(e.card) | _aliases(e.card)]
        lines = [f"plugin {p.plugin} is set aside: {p.error}" for p in aside]
        lines += [f"another one has that name: plugin {self.plugins[e.family]}" for e in others]
        hint = "install the plugin that made the bundle, or convert again with another one"
        if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", maker):  # a bundle may be anybody's
            hint = f"if you trust whoever made the bundle: pip install {maker}"
        if aside:
            hint = aside[0].remedy or f"repair it: pip install --upgrade {maker}"
        origin = f" of {shown(record.plugin)}" if record.plugin else ""
        return PluginNotFound(
            f"`{record.id}` is a model of plugin {shown(record.family)}{origin},"
            " which is not in use\n"
            f"  installed: {self._installed()}" + "".join(f"\n  {line}" for line in lines),
            hint=hint,
        )

    def _installed(self) -> str:
        return ", ".join(self.plugins) or "none"


def supported(entry: Entry) -> Entry:
    """Return a model that can be converted.

    Raises:
        UnsupportedModel: It cannot be.
    """
    if entry.card.unsupported:
        raise UnsupportedModel(
            f"`{entry.card.id}` ({entry.card.repo}) cannot be converted\n"
            f"  known to: plugin `{entry.family}`",
            hint=entry.card.unsupported,
        )
    return entry


def recognises(card: ModelCard, config: Mapping[str, Any]) -> bool:
    """Return whether a card that has the architecture of a config takes it for its own.

    Raises:
        ContractError: Its function says neither yes nor no.
    """
    if card.recognises is None:
        return True
    answer = card.recognises(config)
    if not isinstance(answer, bool):
        raise ContractError(f"`recognises` returned {shown(answer)}, neither True nor False")
    return answer


def _by_family(entries: Sequence[Entry]) -> list[list[Entry]]:
    groups = defaultdict[str, list[Entry]](list)
    for entry in entries:
        groups[entry.family].append(entry)
    return list(groups.values())


def _suggestion(model: str, entries: Sequence[Entry]) -> str:
    owner, _, name = model.lower().rpartition("/")
    ids = {label: entry.card.id for entry in entries for label in labels(entry.card)}
    close = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
    if not close:
        return "`axcore list-models` shows them all"
    if owner:
        return (
            "a repository of other weights is named behind its model, e.g. "
            f"`{ids[close[0]]} --checkpoint {model}`"
        )
    return f"did you mean `{close[0]}`?"


def labels(card: ModelCard) -> set[str]:
    """Return id and aliases of a card, in the case that they are compared in."""
    return _ids(card) | _aliases(card)


def _ids(card: ModelCard) -> set[str]:
    return {card.id.lower()}


def _aliases(card: ModelCard) -> set[str]:
    return {alias.lower() for alias in card.aliases}


def _repositories(card: ModelCard) -> set[str]:
    return {card.repo.lower()}


def _stems(card: ModelCard) -> set[str]:
    return {card.stem.lower()}


_RANKS = (_ids, _aliases, _repositories, _stems)


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
