"""A plugin harms no other family, whatever it does: installed distributions that do their worst."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import axcore as library
from axcore import PluginNotFound, Registry, UnsupportedModel, UsageError
from axcore.bundle import MANIFEST, Bundle
from axcore.hookspecs import CONTRACT, OLDEST_CONTRACT

from .bundles import MODEL, Axcore, environment, install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Installed = Callable[..., Registry]

CARD = """
from axcore import Choice, Component, Layout, ModelCard, Profile, Published, Stage, hookimpl

PROFILES = {"image": Profile(448, 448, 320, 1023)}
ARCHITECTURE = "ToyForGeneration"


def card(name, *aliases, **others):
    fields = {"repo": f"maker/{name}", "architectures": (ARCHITECTURE,), "profiles": PROFILES}
    return ModelCard(name, aliases=aliases, **{**fields, **others})


@hookimpl
def model_cards():
    return [CARDS]
"""
CONFIG = {"architectures": ["ToyForGeneration"], "hidden_size": 8}


def family(cards: str, before: str = "", after: str = "") -> str:
    """Return the source of a family with these cards."""
    return before + CARD.replace("CARDS", cards) + after


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Return a function that installs families, and returns the registry of all that is there."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    written: list[str] = []

    def write(key: str = "", requires: str = "", **sources: str) -> Registry:
        for name, source in sources.items():
            install(tmp_path / "site", name, source, key=key, requires=requires)
            written.append(f"axcore_{name}")
        return Registry()

    yield write
    for module in written:
        sys.modules.pop(module, None)


def error_of(registry: Registry, name: str) -> str:
    """Return why a plugin was set aside, and what is proposed, in one line."""
    assert registry.entries is not None
    assert MODEL in {entry.card.id for entry in registry.entries}  # the others work
    (found,) = [problem for problem in registry.problems if problem.plugin.name == name]
    return f"{found.error} | {found.remedy}"


# Names -------------------------------------------------------------------------------------------


def test_an_alias_equal_to_the_id_of_another_family(put: Installed, axcore: Axcore) -> None:
    """The id wins, both families stay whole, and both distributions are named.

    Oracle: the cards that were written.
    """
    registry = put(mine=family("card('mine-1b')"), thief=family("card('other-1b', 'MINE-1b')"))
    assert {"mine", "thief"} <= registry.plugins.keys()
    assert not registry.problems
    assert registry.find("mine-1b").family == "mine"
    assert registry.find("thief/mine-1b").card.id == "other-1b"
    assert registry.find("other-1b").family == "thief"
    (remark,) = registry.remarks
    assert "axcore-mine 1" in remark.text
    assert "axcore-thief 1" in remark.text
    listed = axcore("list-models")
    assert listed.code == 0
    doctor = axcore("doctor")
    assert doctor.code == 1
    for text in (listed.err, doctor.out):
        assert "model name mine-1b" in text
        assert "axcore-mine 1" in text
        assert "axcore-thief 1" in text
    assert "uninstall" not in doctor.err


def test_one_id_of_two_families(put: Installed, axcore: Axcore) -> None:
    """The name alone is refused with both; each is found behind its family. Oracle: the cards."""
    registry = put(one=family("card('same-1b'), card('one-3b')"), two=family("card('same-1b')"))
    with pytest.raises(UsageError, match="claimed by 2 families") as caught:
        registry.find("Same-1B")
    assert "`one/same-1b` of plugin `one` (axcore-one 1)" in caught.value.message
    assert "`two/same-1b` of plugin `two` (axcore-two 1)" in caught.value.message
    assert "`one/same-1b`" in caught.value.hint
    for name in ("one", "two"):
        assert registry.find(f"{name}/same-1b").family == name
        assert registry.find("same-1b", name).family == name
    assert registry.find("one-3b").family == "one"
    models = axcore("list-models").out
    assert "one/same-1b" in models
    assert "two/same-1b" in models
    assert axcore("show", "two/same-1b").code == 0
    assert {entry["family"]: entry["distribution"] for entry in json.loads(
        axcore("list-models", "--json").out) if entry["id"] == "same-1b"
    } == {"one": "axcore-one", "two": "axcore-two"}  # fmt: skip


def test_a_model_that_cannot_be_converted_takes_no_name(put: Installed) -> None:
    """A card that only refuses does not stand before one that converts. Oracle: the cards."""
    refusing = family("card('same-1b', unsupported='never')")
    registry = put(a_refusing=refusing, works=family("card('same-1b')"))
    assert registry.find("same-1b").family == "works"
    with pytest.raises(UnsupportedModel):
        registry.find("a_refusing/same-1b")


def test_one_key_of_two_plugins(put: Installed) -> None:
    """Both are in use, under names of their own; disabling leaves one out. Oracle: the cards."""
    put(key="toy", first=family("card('first-1b')"))
    registry = put(key="toy", second=family("card('second-1b')"))
    assert {"toy@axcore-first", "toy@axcore-second"} <= registry.plugins.keys()
    assert registry.find("first-1b").family == "toy@axcore-first"
    assert registry.find("toy@axcore-second/second-1b").card.id == "second-1b"
    (remark,) = registry.remarks
    assert remark.subject == "plugin name toy"
    assert "toy@axcore-first, toy@axcore-second" in remark.text


def test_one_of_two_plugins_is_left_out(put: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """What doctor proposes leaves out the one that is meant. Oracle: the names."""
    monkeypatch.setenv("AXCORE_DISABLE_PLUGINS", "toy@axcore-first")
    put(key="toy", first=family("card('first-1b')"))
    registry = put(key="toy", second=family("card('second-1b')"))
    assert registry.plugins["toy"].distribution == "axcore-second"
    assert "axcore_first" not in sys.modules


# Recognising -------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, config: dict[str, Any]) -> Path:
    """Write a checkpoint folder that has a config alone."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("fault", ["1 / 0", "raise SystemExit", "'yes'", "None"])
def test_recognises_that_fails(put: Installed, fault: str, tmp_path: Path, axcore: Axcore) -> None:
    """The others are asked, and the failure is said. Oracle: the fault that was written."""
    after = f"\n\ndef fails(config):\n    {'' if 'raise' in fault else 'return '}{fault}\n"
    registry = put(
        fails=family("card('a-1b'), card('b-1b', recognises=fails)", after=after),
        works=family("card('works-1b')"),
    )
    said: list[str] = []
    assert registry.recognise(CONFIG, "config.json", None, said.append).family == "works"
    (line,) = said
    assert "plugin `fails` (axcore-fails 1) is not asked about this checkpoint" in line
    assert "`recognises` of `b-1b` failed" in line
    outcome = axcore("plan", folder_of(tmp_path, CONFIG))
    assert "is not asked about this checkpoint" in outcome.err
    assert "Traceback" not in outcome.err
    with pytest.raises(PluginNotFound, match="is not asked about this checkpoint"):
        registry.recognise(CONFIG, "config.json", "fails")


def test_copied_cards_take_no_folder(put: Installed, tmp_path: Path, axcore: Axcore) -> None:
    """Two families recognise a folder: refused with both, `--family` decides. Oracle: the cards."""
    copied = family("card('copy-1b', published=Published({'hidden_size': 8}))")
    registry = put(copy=copied, own=family("card('own-1b')"))
    with pytest.raises(UsageError, match=r"the model of config.json is claimed by 2 families") as e:
        registry.recognise(CONFIG, "config.json")
    assert "`copy/copy-1b` of plugin `copy` (axcore-copy 1)" in e.value.message
    assert e.value.hint == "choose one, e.g. --family copy"
    assert registry.recognise(CONFIG, "config.json", "own").card.id == "own-1b"
    folder = folder_of(tmp_path, CONFIG)
    assert "claimed by 2 families" in axcore("plan", folder).err
    assert "claimed by" not in axcore("plan", folder, "--family", "own").err
    outcome = axcore("plan", folder, "--family", "nobody")
    assert outcome.code == 1
    assert "no family `nobody` is in use" in outcome.err


def test_a_card_that_refuses_takes_no_folder(put: Installed) -> None:
    """One that converts stands above it; within a family, agreement decides. Oracle: the cards."""
    published = "published=Published({'hidden_size': 8})"
    refusing = f"card('late-1b', unsupported='never', {published})"
    registry = put(refuses=family(refusing), works=family("card('works-1b')"))
    assert registry.recognise(CONFIG, "config.json").family == "works"
    with pytest.raises(UnsupportedModel):
        registry.recognise(CONFIG, "config.json", "refuses")


def test_a_family_that_refuses_its_own(put: Installed) -> None:
    """A family's refusal is not overruled by a card of its own. Oracle: the config."""
    published = "published=Published({'hidden_size': 8})"
    registry = put(own=family(f"card('a-1b'), card('b-1b', unsupported='never', {published})"))
    with pytest.raises(UnsupportedModel, match="b-1b"):
        registry.recognise(CONFIG, "config.json")


# Cards -------------------------------------------------------------------------------------------

WRONG = {
    "id": ("card(7)", "card 7: id is 7, not str"),
    "repo": ("card('x', repo=None)", "repo is None, not str"),
    "architectures": ("card('x', architectures='A')", "architectures is 'A', not tuple of str"),
    "an architecture": ("card('x', architectures=(None,))", "architectures is None, not str"),
    "profiles": ("card('x', profiles=[])", "profiles is [], not Mapping of str to Profile"),
    "height": (
        "card('x', profiles={'image': Profile('448', 448, 320, 1023)})",
        "profiles.image.height is '448', not int",
    ),
    "no height": (
        "card('x', profiles={'image': Profile(0, 448, 320, 1023)})",
        "profiles.image.height is 0, not between 1 and",
    ),
    "histories": (
        "card('x', profiles={'image': Profile(448, 448, 320, 1023, [320])})",
        "profiles.image.last_kv_cache_len is [320], not tuple of int",
    ),
    "aliases": ("card('x', aliases=['y'])", "multiple values"),
    "an alias": ("card('x', 7)", "aliases is 7, not str"),
    "a line": ("card('x', 'a\\nb')", "'a\\nb' is no name that can be typed"),
    "licence": ("card('x', licence=None)", "licence is None, not str"),
    "parameters": ("card('x', parameters=True)", "parameters is True, not int"),
    "many parameters": ("card('x', parameters=10**400)", "not between 0 and"),
    "choices": ("card('x', choices={'o': ('a',)})", "choices.o is ('a',), not Choice"),
    "a choice": ("card('x', choices={'o': Choice('ab')})", "choices.o.values is 'ab', not tuple"),
    "recognises": ("card('x', recognises=True)", "recognises is True, not a function"),
    "unsupported": ("card('x', unsupported=None)", "unsupported is None, not str"),
    "layout": ("card('x', layout={})", "layout is {}, not Layout"),
    "tensors": ("card('x', layout=Layout(tensors={}))", "layout.tensors is {}, not a function"),
    "prefixes": ("card('x', layout=Layout(prefixes={'a': 'b'}))", "layout.prefixes.a is 'b', not"),
    "published": ("card('x', published={})", "published is {}, not Published"),
    "config": ("card('x', published=Published([]))", "published.config is [], not Mapping"),
    "runtimes": ("card('x', runtimes={'axllm': 1})", "runtimes.axllm is 1, not Mapping"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_card_of_wrong_types(put: Installed, fault: str) -> None:
    """Field and value are named, and the models of others found. Oracle: the field written."""
    cards, message = WRONG[fault]
    assert message in error_of(put(wrong=family(cards)), "wrong")


def test_models_are_listed_beside_a_card_of_wrong_types(put: Installed, axcore: Axcore) -> None:
    """The distribution that has it is named. Oracle: the field that was written."""
    put(wrong=family("card('x', parameters='7B')"))
    listed = axcore("list-models")
    assert listed.code == 0
    assert MODEL in listed.out
    assert "plugin `wrong` (axcore-wrong 1) is set aside" in listed.err


def test_every_field_of_a_card_is_checked() -> None:
    """Oracle: the fields that `ModelCard` declares."""
    assert library.ModelCard.__dataclass_fields__.keys() <= WRONG.keys()


# Toolchains --------------------------------------------------------------------------------------

TOOLCHAIN = """
from axcore import hookimpl


class Tool:
    name, options = "half", {}
BODY

@hookimpl
def toolchains():
    return [Tool()]
"""


def test_a_toolchain_without_availability(put: Installed, axcore: Axcore) -> None:
    """`doctor` names it and looks at everything else. Oracle: what the class lacks."""
    registry = put(half=TOOLCHAIN.replace("BODY", ""))
    assert "toolchain `half` has no" in error_of(registry, "half")
    outcome = axcore("doctor")
    assert outcome.code == 1
    assert "`availability`" in outcome.out
    assert "toolchain pulsar2" in outcome.out
    assert "toolchain half" not in outcome.out


# Discovery ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["module", "hook"])
def test_printing_while_discovered(put: Installed, axcore: Axcore, where: str) -> None:
    """What is printed reaches stderr, JSON stays JSON, doctor tells. Oracle: what is printed."""
    loud = "print('hello from', 'loud')\nimport sys\nsys.stdout.reconfigure(errors='replace')\n"
    source = family("card('loud-1b')", before=loud)
    if where == "hook":
        source = family("print('hello from', 'loud') or card('loud-1b')")
    registry = put(loud=source)
    assert "loud-1b" in {entry.card.id for entry in registry.entries}
    (remark,) = registry.remarks
    assert "(axcore-loud 1) prints while it is discovered: 'hello from loud'" in remark.text
    sys.modules.pop("axcore_loud")
    listed = axcore("list-models", "--json")
    assert "loud-1b" in {entry["id"] for entry in json.loads(listed.out)}
    assert "hello from loud" in listed.err


def test_printing_in_a_hook(put: Installed, tmp_path: Path, axcore: Axcore) -> None:
    """Data are alone on standard output, whenever a plugin prints. Oracle: what is printed."""
    after = "\n\ndef loud(config):\n    print('hello from loud')\n    return True\n"
    put(loud=family("card('loud-1b', recognises=loud)", after=after))
    outcome = axcore("plan", folder_of(tmp_path, CONFIG), "--json")
    assert outcome.out == ""
    assert "hello from loud" in outcome.err


def test_torch_imported_while_discovered(put: Installed, tmp_path: Path) -> None:
    """The plugin is named by doctor, and works. Oracle: a package called torch, as a stand-in."""
    put(heavy=family("card('heavy-1b')", before="import torch\n"))
    (tmp_path / "site" / "torch.py").write_text("")
    code = "from axcore import Registry; [print(r.text) for r in Registry().remarks]"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "PYTHONPATH": f"{tmp_path / 'site'}:{':'.join(sys.path)}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ("`heavy` (axcore-heavy 1) imports torch while it is discovered\n")


@pytest.mark.parametrize(
    ("source", "line"),
    [("x = 1\n\ndef (", 3), ("x = 1\nimport nothing_of_it", 2), ("x = (1,\n\n", 1)],
)
def test_errors_are_located_in_the_plugin(put: Installed, source: str, line: int) -> None:
    """Oracle: file and line that were written."""
    error = error_of(put(bad=source), "bad")
    assert f"axcore_bad.py:{line})" in error
    assert "importlib" not in error


def test_an_entry_point_without_a_module(put: Installed, tmp_path: Path) -> None:
    """Python's own files are no place to look. Oracle: the module that was removed."""
    put(bad="")
    (tmp_path / "site" / "axcore_bad.py").unlink()
    sys.modules.pop("axcore_bad", None)
    assert error_of(Registry(), "bad").startswith(
        "ModuleNotFoundError: No module named 'axcore_bad' |"
    )


# Versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        ("axcore>=99", f"needs axcore>=99; this is axcore {library.__version__} | update axcore"),
        ("AXCORE<0.0.1", f"this is axcore {library.__version__} | update the plugin: pip install"),
        ("axcore==99.*", "needs axcore==99.*; "),
    ],
)
def test_a_plugin_for_another_axcore(put: Installed, requires: str, message: str) -> None:
    """Both versions, and which side to update. Oracle: what the metadata require."""
    source = family("card('late-1b')", before="from axcore import NotThereYet\n")
    assert message in error_of(put(late=source, requires=requires), "late")


@pytest.mark.parametrize("requires", ["axcore>=0.1", "axcore>=99; extra == 'x'", "axcore-x>=99"])
def test_a_plugin_for_this_axcore(put: Installed, requires: str) -> None:
    """What does not apply hinders nobody. Oracle: the rules of package metadata."""
    registry = put(fine=family("card('fine-1b')"), requires=requires)
    assert registry.find("fine-1b").family == "fine"


def test_the_contract_that_a_plugin_is_written_for(put: Installed) -> None:
    """Without a number it is the first; each that is read is noted. Oracle: the numbers."""
    registry = put(silent=family("card('a-1b')"))
    assert registry.plugins["silent"].contract == 1
    line = f"AXCORE_CONTRACT: int = {CONTRACT}\n"
    registry = put(says=family("card('b-1b')", after=line))
    assert registry.plugins["says"].contract == CONTRACT
    assert registry.find("a-1b")
    assert registry.find("b-1b")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (str(CONTRACT + 1), "update axcore: pip install --upgrade axcore"),
        (str(OLDEST_CONTRACT - 1), "update the plugin: pip install --upgrade axcore-other"),
        ("'2'", "AXCORE_CONTRACT is '2', not a whole number"),
    ],
)
def test_another_contract(put: Installed, number: str, remedy: str) -> None:
    """Refused before it is imported, with the side to update. Oracle: the number written."""
    source = f"AXCORE_CONTRACT = {number}\nfrom axcore import NotThereYet\n"
    error = error_of(put(other=source), "other")
    assert remedy in error
    assert "NotThereYet" not in error


# Bundles -----------------------------------------------------------------------------------------


def made_by(bundle: Path, plugin: str, key: str) -> Bundle:
    """Change what the manifest says of the plugin that made a bundle."""
    file = bundle / MANIFEST
    data = json.loads(file.read_text())
    data["model"] |= {"plugin": plugin, "family": key}
    file.write_text(json.dumps(data))
    return Bundle.open(bundle)


@pytest.fixture
def small(converted: Path, tmp_path: Path) -> Path:
    """A folder with the manifest of `converted` alone."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(converted / MANIFEST, folder)
    return folder


def test_a_bundle_is_answered_by_the_plugin_that_made_it(put: Installed, small: Path) -> None:
    """Not by another that has its model, nor by one that is called so. Oracle: the manifest."""
    cards = f"card('{MODEL}')"
    registry = put(one=family(cards), two=family(cards))
    for name in ("one", "two"):
        record = made_by(small, f"Axcore_{name} 0.7", name).manifest.model
        assert registry.of_bundle(record).family == name
    record = made_by(small, "axcore-three 1", "one").manifest.model
    with pytest.raises(PluginNotFound, match="'axcore-three 1', which is not in use") as caught:
        registry.of_bundle(record)
    assert "another one has that name: plugin `one` (axcore-one 1)" in caught.value.message
    assert caught.value.hint.endswith("whoever made the bundle: pip install axcore-three")


def test_a_bundle_of_a_plugin_that_is_set_aside(put: Installed, small: Path) -> None:
    """Why it is, not that it should be installed. Oracle: the fault that was written."""
    registry = put(ill="1 / 0\n")
    with pytest.raises(PluginNotFound, match="set aside: ZeroDivisionError") as caught:
        registry.of_bundle(made_by(small, "axcore-ill 1", "ill").manifest.model)
    assert "pip install --upgrade axcore-ill" in caught.value.hint


@pytest.mark.parametrize("plugin", ["x; rm -rf ~ 1", "-r http://evil 1", "\x1b[31m 1", "$(x)"])
def test_a_manifest_that_writes_a_command(put: Installed, small: Path, plugin: str) -> None:
    """No command is made of what is no name of a distribution. Oracle: the manifest."""
    registry = put(one=family("card('one-1b')"))
    record = made_by(small, plugin, "one").manifest.model
    with pytest.raises(PluginNotFound) as caught:
        registry.of_bundle(record)
    assert "pip" not in caught.value.hint or caught.value.hint.endswith(" x")
    assert "\x1b" not in caught.value.message


def test_every_verb_asks_the_plugin_that_made_a_bundle(
    put: Installed, bundle: Path, axcore: Axcore
) -> None:
    """Verifying, building, running, packaging. Oracle: a plugin that is not there."""
    put(two=family(f"card('{MODEL}')"))
    made_by(bundle, "axcore-gone 1", "gone")
    for command in (
        ["verify"], ["build", "--toolchain", "onnx"], ["run", "--prompt", "?"],
        ["package", "--runtime", "python", "-o", bundle.with_name("out")],
    ):  # fmt: skip
        outcome = axcore(command[0], bundle, *command[1:])
        assert outcome.code == 1, command
        assert "is a model of plugin 'gone' of 'axcore-gone 1', which is not in use" in outcome.err


def test_without_weights_a_fabricated_checkpoint_is_named(axcore: Axcore) -> None:
    """Whatever keeps them from being fetched. Oracle: a repository that no hub can have."""
    outcome = axcore("plan", MODEL, "--checkpoint", "no such/name")
    assert outcome.code == 1
    assert "`--weights random-full`" in outcome.err
