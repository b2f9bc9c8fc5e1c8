"""What holds for every board folder: made of a whole bundle, and itself whole or not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from axcore import BudgetError, BundleError, PluginNotFound, Registry, UsageError
from axcore.bundle import Bundle
from axcore.packaging import RUNTIMES, Runtime, package
from axcore.progress import Silent

from ..bundles import largest_file
from . import toys
from .toys import packaged

if TYPE_CHECKING:
    from pathlib import Path

both = pytest.mark.parametrize("runtime", RUNTIMES)


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@both
def test_the_manifest_lists_what_is_there(bundle: Path, runtime: Runtime) -> None:
    """It is the bundle's but for its files, each with size and content. Oracle: hashlib."""
    out = packaged(bundle, runtime)
    manifest = json.loads((out / "axcore.json").read_text())
    original = Bundle.open(bundle).manifest.data()
    assert manifest.pop("packaged_for") == runtime
    found = {
        path.relative_to(out).as_posix(): toys.stamp(path.read_bytes())
        for path in out.rglob("*")
        if path.is_file() and path != out / "axcore.json"
    }
    assert manifest == {**original, "files": found}


@both
def test_models_are_linked_and_settings_copied(bundle: Path, runtime: Runtime) -> None:
    """Models take no room twice; what people edit does not change the bundle."""
    out = packaged(bundle, runtime)
    for name in (*toys.built(".axmodel"), toys.EMBEDDING):
        assert (out / name).samefile(bundle / name)
    before = (bundle / "config.json").read_bytes()
    (out / "config.json").write_text("mine")
    assert (bundle / "config.json").read_bytes() == before


@both
def test_what_is_behind_links_is_packaged(bundle: Path, runtime: Runtime) -> None:
    """Large files may lie elsewhere; the folder has the files. Oracle: a bundle without links."""
    expected = json.loads((packaged(bundle, runtime) / "axcore.json").read_text())
    (bundle / "big").mkdir()
    for name in (*toys.built(".axmodel"), toys.EMBEDDING):
        (bundle / name).rename(bundle / "big" / name)
        (bundle / name).symlink_to(f"big/{name}")
    out = packaged(bundle, runtime)
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert json.loads((out / "axcore.json").read_text()) == expected


@both
def test_links_to_onnx_models_are_no_board_models(onnx_bundle: Path, runtime: Runtime) -> None:
    """Scripts for a board are tried with them on a PC; one is enough, beside whatever was compiled.

    Oracle: the command of the hint, run, leaves no link.
    """
    bundle = onnx_bundle
    for path in list(bundle.glob("*.onnx")):
        path.with_suffix(".axmodel").symlink_to(path.name)
    (bundle / f"{toys.STEM}.axmodel").unlink()
    (bundle / f"{toys.STEM}.axmodel").write_bytes(b"compiled")
    with pytest.raises(BundleError, match=rf"axmodel is a link to {toys.KIND}.*\.onnx") as caught:
        packaged(bundle, runtime)
    subprocess.run(caught.value.hint.removeprefix("remove such links: "), shell=True, check=True)
    assert not [path for path in bundle.iterdir() if path.is_symlink()]
    assert left(bundle.parent) == {"bundle", "site"}


@both
@pytest.mark.parametrize("older", [True, False])
def test_a_link_stays_and_its_goal_is_filled(bundle: Path, runtime: Runtime, older: bool) -> None:
    """Be there a folder of ours already or none yet; nothing lies beside either of them."""
    place, link = bundle.parent / "disk" / "goal", bundle.parent / "board"
    place.parent.mkdir()
    link.symlink_to(place)
    if older:
        packaged(bundle, runtime, place)
        (place / "older").touch()
    assert packaged(bundle, runtime) == link
    assert link.readlink() == place
    assert (place / "axcore.json").exists()
    assert not (place / "older").exists()
    assert left(bundle.parent) == {"bundle", "board", "disk", "site"}
    assert left(place.parent) == {"goal"}


@both
@pytest.mark.parametrize("name", ["notes/board", "notes/a/board", "nowhere/board"])
def test_a_place_that_cannot_be_made_is_refused(bundle: Path, runtime: Runtime, name: str) -> None:
    """Below a file; it is named, and stays. What a link to nothing means is made."""
    notes = bundle.parent / "notes"
    notes.write_text("mine")
    (bundle.parent / "nowhere").symlink_to(notes / "gone")
    with pytest.raises(BundleError, match=f"{notes} is no folder") as caught:
        packaged(bundle, runtime, bundle.parent / name)
    assert "-o" in caught.value.hint
    assert notes.read_text() == "mine"
    assert left(bundle.parent) == {"bundle", "nowhere", "notes", "site"}


@both
def test_a_full_disk_is_that_of_the_new_folder(
    bundle: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is named, and nothing is said to be kept, as nothing is.

    A failing link stands in for another disk, a limit on the size of files for a full one.
    """

    def elsewhere(*paths: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), *paths)

    monkeypatch.setattr(os, "link", elsewhere)
    with (
        largest_file(10),
        pytest.raises(BudgetError, match=rf"cannot write {bundle.parent}/\.axcore") as caught,
    ):
        packaged(bundle, runtime)
    assert caught.value.hint == "make room and run the same command again"
    assert left(bundle.parent) == {"bundle", "site"}


@both
def test_a_folder_of_somebody_else_is_refused(bundle: Path, runtime: Runtime) -> None:
    """Be it a folder with files, the bundle itself, or a file; nothing is changed."""
    foreign = bundle.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for out in (foreign, bundle, bundle / "config.json"):
        with pytest.raises(BundleError, match=f"{out} exists and was not packaged"):
            packaged(bundle, runtime, out)
    assert left(foreign) == {"thesis.tex"}
    assert left(bundle.parent) == {"bundle", "foreign", "site"}


@both
def test_a_failure_leaves_nothing(bundle: Path, runtime: Runtime) -> None:
    """An older folder stays as it was, and no half-made one lies beside it."""
    out = packaged(bundle, runtime)
    before = (out / "axcore.json").read_bytes()
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json has 2 bytes"):
        packaged(bundle, runtime)
    assert (out / "axcore.json").read_bytes() == before
    assert left(bundle.parent) == {"bundle", "board", "site"}


@both
@pytest.mark.parametrize(
    "name", [toys.layer(1), f"{toys.KIND}_post.axmodel", f"{toys.STEM}.axmodel"]
)
def test_empty_models_and_links_to_nothing_are_named(
    bundle: Path, runtime: Runtime, name: str
) -> None:
    """A layer, the head or the vision file; the hint is the command that makes them."""
    (bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"{name} is empty") as caught:
        packaged(bundle, runtime)
    assert "axcore build" in caught.value.hint
    (bundle / name).unlink()
    (bundle / name).symlink_to("gone")
    with pytest.raises(BundleError, match=name) as caught:
        packaged(bundle, runtime)
    assert "axcore build" in caught.value.hint


@both
def test_a_bundle_that_was_not_built_is_refused(bundle: Path, runtime: Runtime) -> None:
    """The message says what is missing, the hint how it is made."""
    for name in toys.built(".axmodel"):
        (bundle / name).unlink()
    missing = {"axllm": r"holds no \.axmodel files", "python": "has no layer models"}
    with pytest.raises(BundleError, match=missing[runtime]) as caught:
        packaged(bundle, runtime)
    tool = {"axllm": "pulsar2", "python": "onnx"}
    assert f"axcore build {bundle} --toolchain {tool[runtime]}" in caught.value.hint


@both
def test_a_layer_of_another_build_is_refused(bundle: Path, runtime: Runtime) -> None:
    """There is one too many."""
    (bundle / toys.layer(3)).write_bytes(b"left over")
    with pytest.raises(BundleError, match="the model has 3 layers"):
        packaged(bundle, runtime)


def test_unknown_runtimes_and_models_are_refused(bundle: Path) -> None:
    """A runtime that is none, and a family that is not installed."""
    with pytest.raises(UsageError, match="`tvm`") as caught:
        packaged(bundle, "tvm")  # type: ignore[arg-type]
    assert "axllm, python" in caught.value.hint
    with pytest.raises(PluginNotFound, match=toys.MODEL):
        package(bundle, bundle.parent / "board", "python", Registry([]), Silent())
