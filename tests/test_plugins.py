"""Plugins are found, isolated and dispatched to; what one does wrong is said under its name."""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from axcore import ContractError, PluginNotFound, Registry, UnsupportedProfile

from .bundles import install as site_install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Install = Callable[..., list[EntryPoint]]

CARD = """
from axcore import Component, ContractError, ModelCard, Profile, Published, Stage
from axcore import UnsupportedProfile, hookimpl

PROFILES = {"image": Profile(448, 448, 320, 1023)}


def card(name, *aliases, architecture="ToyForGeneration", **config):
    published = Published(config)
    return ModelCard(
        name, f"maker/{name}", (architecture,), PROFILES, aliases, published=published
    )
"""
GOOD = f"""{CARD}
@hookimpl
def model_cards():
    return [card("good-1b", "good", hidden_size=8), card("good-3b", hidden_size=16)]


@hookimpl
def split_graph(component):
    return [len(component)]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that writes plugin modules and gives their entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(**sources: str) -> list[EntryPoint]:
        for name, source in sources.items():
            module = f"toy_plugin_{name}"
            (tmp_path / f"{module}.py").write_text(source)
            written.append(module)
        return [EntryPoint(name, f"toy_plugin_{name}", "axcore") for name in sources]

    yield write
    for module in written:
        sys.modules.pop(module, None)


def problems(registry: Registry) -> dict[str, str]:
    """Return what was set aside, once everything has been asked for."""
    assert registry.entries is not None
    assert registry.toolchains is not None
    assert registry.backends is not None
    return {problem.plugin.name: problem.error for problem in registry.problems}


# Isolation ---------------------------------------------------------------------------------------


def hook(signature: str, body: str) -> str:
    """Return the source of a plugin with one hook."""
    return f"{CARD}\n@hookimpl\ndef {signature}:\n    {body}\n"


BAD = {
    "does not import": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
    "fails while importing": ("1 / 0", "ZeroDivisionError"),
    "is not Python": ("def (", "SyntaxError"),
    "exits": ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    "panics": ("class Panic(BaseException): pass\nraise Panic('gone')", "Panic: gone"),
    "cannot be shown": (
        "class Odd(Exception):\n    def __str__(self): return 1 / 0\nraise Odd",
        "Odd",
    ),
    "has a card of wrong types": (
        hook("model_cards()", "return [ModelCard('x', 'y/x', ('A',), PROFILES, parameters='7B')]"),
        "parameters is '7B', not int",
    ),
    "has profiles of another type": (
        hook("model_cards()", "return [ModelCard('x', 'y/x', ('A',), {'image': 448})]"),
        "profiles.image is 448, not Profile",
    ),
    "has options of another type": (
        hook("toolchains()", "return [type('T', (), {'name': 't', 'options': {'o': 'v'}})]"),
        "its option 'o' is no axcore.Choice",
    ),
    "has no hook": ("x = 1", "implements no hook"),
    "misspells a hook": (hook("model_card()", "return []"), "model_card"),
    "takes a wrong argument": (hook("export_vision(work)", "return []"), "work"),
    "has cards of another type": (
        hook("model_cards()", "return [{'id': 'x'}]"),
        "model_cards returned {'id': 'x'}, not a ModelCard",
    ),
    "has no list of cards": (hook("model_cards()", "return card('x')"), "not iterable"),
    "fails in a hook": (
        hook("model_cards()", "raise RuntimeError('out of cards')"),
        "RuntimeError: out of cards",
    ),
    "has an empty card": (
        hook("model_cards()", "return [ModelCard('x', '', (), {})]"),
        "model card 'x': lacks id, repo",
    ),
    "repeats itself": (
        hook("model_cards()", "return [card('new'), card('x', 'NEW')]"),
        "the model name `new` is that of two cards of `bad`",
    ),
    "takes a toolchain's name": (
        hook("model_cards()", "return [card('unreachable')]")
        + "class Mine:\n    name = 'pulsar2'\n\n\n"
        "@hookimpl\ndef toolchains():\n    return [Mine()]\n",
        "toolchain `pulsar2` exists already",
    ),
    "has a toolchain without name": (hook("toolchains()", "return [object()]"), "AttributeError"),
    "has a toolchain that lacks what doctor asks": (
        hook("toolchains()", "return [type('T', (), {'name': 't', 'options': {}})]"),
        "toolchain `t` has no `targets`, `target`, `lint`, `availability`",
    ),
    "has a backend that lacks what doctor asks": (
        hook("backends()", "return [type('B', (), {'name': 'b', 'options': {}})]"),
        "backend `b` has no `availability`, `reads`, `vision`, `language`",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_plugin_is_named_and_the_others_work(install: Install, fault: str) -> None:
    """Whatever a plugin does wrong, its neighbours load. Oracle: the fault that was written."""
    source, message = BAD[fault]
    registry = Registry(install(a_good=GOOD, bad=source, z_good=GOOD.replace("good", "late")))
    found = problems(registry)
    assert found.keys() == {"bad"}
    assert message in found["bad"]
    assert registry.plugins.keys() == {"a_good", "z_good"}
    names = {entry.card.id for entry in registry.entries}
    assert names == {"good-1b", "good-3b", "late-1b", "late-3b"}
    assert registry.toolchains.keys() == {"pulsar2", "onnx"}


def test_metadata_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a distribution that need not even be a plugin: named, and the others are found.

    Oracle: the bytes that were written.
    """
    for name in ("damaged", "fine"):
        site_install(tmp_path, name, GOOD.replace("good", name))
    damaged = tmp_path / "axcore_damaged-1.dist-info"
    (damaged / "entry_points.txt").write_bytes(b"[axcore]\nx = \xff\xfe\n")
    nameless = tmp_path / "axcore_fine-1.dist-info"
    (nameless / "METADATA").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    assert "fine" in registry.plugins
    assert "qwen25vl" in registry.plugins
    (problem,) = registry.problems
    assert problem.plugin.name == "axcore-damaged"
    assert "UnicodeDecodeError" in problem.error


def test_reserved_and_repeated_names(install: Install) -> None:
    """An entry point may not pose as the defaults, and twice the same is one. Oracle: its name."""
    (good,) = install(good=GOOD)
    impostor = EntryPoint("defaults", good.value, "axcore")
    registry = Registry([good, impostor, EntryPoint("good", good.value, "axcore")])
    assert [problem.error for problem in registry.problems] == [
        "the plugin name `defaults` is taken"
    ]
    assert registry.plugins.keys() == {"good"}
    assert registry.find("good").family == "good"


# The environment ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "left"),
    [("", {"a", "b", "c"}), ("b", {"a", "c"}), (" a , c ", {"b"}), ("*", set()), ("z", {*"abc"})],
)
def test_disabling(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str, left: set[str]
) -> None:
    """AXCORE_DISABLE_PLUGINS leaves out one, several or all, unread. Oracle: the names."""
    monkeypatch.setenv("AXCORE_DISABLE_PLUGINS", value)
    entries = install(**{name: GOOD.replace("good", name) for name in "abc"})
    registry = Registry(entries)
    assert registry.plugins.keys() == left
    assert {entry.family for entry in registry.entries} == left
    assert {name for name in "abc" if f"toy_plugin_{name}" in sys.modules} == left


def test_tracing(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AXCORE_TRACE_PLUGINS writes every call to standard error. Oracle: the hook called."""
    entries = install(good=GOOD)
    assert Registry(entries).entries
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("AXCORE_TRACE_PLUGINS", "1")
    assert Registry(entries).entries
    captured = capsys.readouterr()
    assert "model_cards" in captured.err
    assert captured.out == ""


# Finding a model ---------------------------------------------------------------------------------


def test_find_knows_ids_aliases_and_repositories(install: Install) -> None:
    """In any case of letters; another owner's copy is not taken for one. Oracle: the cards."""
    registry = Registry(install(good=GOOD.replace("good-3b", "better-3b")))
    for name in ("better-3b", "Maker/Better-3B"):
        assert registry.find(name).card.id == "better-3b"
    assert registry.find("Good").card.id == "good-1b"
    with pytest.raises(PluginNotFound) as caught:
        registry.find("someone/better-3b-tuned")
    assert "`better-3b --checkpoint someone/better-3b-tuned`" in caught.value.hint
    with pytest.raises(PluginNotFound):
        registry.find("someone/better-3b")


def test_find_suggests(install: Install) -> None:
    """A typing error is answered with the nearest name, anything else with where to look.

    Oracle: the cards.
    """
    registry = Registry(install(good=GOOD))
    with pytest.raises(
        PluginNotFound, match=r"(?s)no .* model `god-1b`.*installed: good"
    ) as caught:
        registry.find("god-1b")
    assert caught.value.hint == "did you mean `good-1b`?"
    with pytest.raises(PluginNotFound) as caught:
        registry.find("xyzzy")
    assert "list-models" in caught.value.hint
    with pytest.raises(PluginNotFound, match="installed: none"):
        Registry([]).find("good-1b")


def test_recognise_tells_models_of_one_architecture_apart(install: Install) -> None:
    """The published config that agrees in most fields wins. Oracle: the config asked with."""
    registry = Registry(install(good=GOOD))
    for size, name in ((8, "good-1b"), (16, "good-3b")):
        config = {"architectures": ["ToyForGeneration"], "hidden_size": size, "x": 1}
        assert registry.recognise(config, "config.json").card.id == name


@pytest.mark.parametrize("config", [{"architectures": ["Foreign"], "model_type": "foreign"}, {}])
def test_an_unknown_architecture(install: Install, config: dict[str, Any]) -> None:
    """The error says what was read, from where, what is installed. Oracle: the config given."""
    registry = Registry(install(good=GOOD))
    architecture = (config.get("architectures") or [None])[0]
    with pytest.raises(PluginNotFound, match=f"the architecture {architecture!r} ") as caught:
        registry.recognise(config, "/some/config.json")
    assert "read from: /some/config.json\n  installed: good" in caught.value.message
    assert "plugin" in caught.value.hint


# Dispatch ----------------------------------------------------------------------------------------

ASKED = f"""{CARD}
@hookimpl
def embed_extract(job):
    return "NAME"


@hookimpl
def export_vision(job):
    return None if job == "nothing" else ["NAME"]
"""


def test_the_family_answers_before_the_default(install: Install) -> None:
    """Only the family asked is called, the default behind it. Oracle: who signs the answer."""
    sources = {name: ASKED.replace("NAME", name) for name in ("one", "two")}
    registry = Registry(install(**sources, plain=GOOD))
    assert registry.call("one", "embed_extract", job=None) == "one"
    assert registry.call("two", "embed_extract", job=None) == "two"
    assert registry.call("plain", "split_graph", job=None, component="abc") == [3]
    images, component = [], type("Stub", (), {"preprocess": list})()
    made = registry.call("plain", "make_calib", job=None, component=component, images=images)
    assert list(made) == []  # the default's: `plain` has no such hook


def test_a_required_hook_that_returns_nothing(install: Install) -> None:
    """Left out or answered with None: named, with the remedy. Oracle: plugin and hook."""
    registry = Registry(install(one=ASKED, plain=GOOD))
    for family, job in (("one", "nothing"), ("plain", "anything")):
        with pytest.raises(
            ContractError, match=f"plugin `{family}` returned nothing from export_vision"
        ) as caught:
            registry.call(family, "export_vision", job=job)
        assert "implement `export_vision`" in caught.value.hint


FAILING = f"""{CARD}
ERRORS = [KeyError("depth"), ContractError("two outputs"), UnsupportedProfile("449 px")]


@hookimpl
def export_vision(job):
    raise ERRORS[job]
"""


def test_a_failing_hook_is_blamed_on_its_plugin(install: Install, tmp_path: Path) -> None:
    """Plugin, version, hook, error and its place. Oracle: the line that raises.

    An error meant for users keeps its type and text.
    """
    (entry,) = install(failing=FAILING)
    metadata = tmp_path / "toy_failing-0.7.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-failing\nVersion: 0.7\n")
    entry = entry._for(Distribution.at(metadata))  # type: ignore[attr-defined]
    registry = Registry([entry])
    line = FAILING.splitlines().index("    raise ERRORS[job]") + 1
    with pytest.raises(ContractError) as caught:
        registry.call("failing", "export_vision", job=0)
    assert caught.value.message.startswith(
        "plugin `failing` (toy-failing 0.7) failed in export_vision\n"
    )
    assert "KeyError: 'depth'" in caught.value.message
    assert f"toy_plugin_failing.py:{line}" in caught.value.message
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(
        ContractError, match=r"^plugin `failing` \(toy-failing 0.7\), export_vision: two"
    ):
        registry.call("failing", "export_vision", job=1)
    with pytest.raises(UnsupportedProfile, match=r"^449 px$"):
        registry.call("failing", "export_vision", job=2)


def test_hooks_are_listed_in_pipeline_order(install: Install) -> None:
    """Whatever their order in the module. Oracle: the hookspec file."""
    registry = Registry(install(one=ASKED, plain=GOOD))
    assert registry.hooks_of("one") == ["export_vision", "embed_extract"]
    assert registry.hooks_of("plain") == ["model_cards", "split_graph"]


# Documentation -----------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"
PAGES = runpy.run_path(str(DOCS / "make_pages.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_pages_made_from_the_code_are_current(name: str) -> None:
    """Hooks and options as they are today. Oracle: the script that makes the pages."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()
