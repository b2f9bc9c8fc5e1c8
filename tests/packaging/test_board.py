"""What holds for every board folder: made of a whole bundle, and itself whole or not there."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from axcore import BundleError, PluginNotFound, Registry, UsageError
from axcore.packaging import RUNTIMES, Runtime, package
from axcore.progress import Silent

from . import toys

if TYPE_CHECKING:
    from pathlib import Path

both = pytest.mark.parametrize("runtime", RUNTIMES)


def packaged(bundle: Path, runtime: Runtime) -> Path:
    return package(bundle, bundle.parent / "board", runtime, toys.registry(), Silent())


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@both
def test_the_manifest_lists_what_is_there(bundle: Path, runtime: Runtime) -> None:
    """It is the bundle's but for its files, each with size and content. Oracle: hashlib."""
    out = packaged(bundle, runtime)
    manifest = json.loads((out / "axcore.json").read_text())
    original = json.loads((bundle / "axcore.json").read_text())
    assert manifest.pop("packaged_for") == runtime
    found = {
        path.relative_to(out).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
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
def test_a_folder_of_ours_is_replaced(bundle: Path, runtime: Runtime) -> None:
    """Whole: nothing of the older one stays, and nothing lies beside it."""
    for _ in range(2):
        out = packaged(bundle, runtime)
        assert (out / "axcore.json").exists()
        assert not (out / "older").exists()
        (out / "older").touch()
    assert left(bundle.parent) == {"bundle", "board", "site"}


@both
def test_a_folder_of_somebody_else_is_refused(bundle: Path, runtime: Runtime) -> None:
    """Be it a folder with files, the bundle itself, or a file; nothing is changed."""
    foreign = bundle.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for out in (foreign, bundle, bundle / "config.json"):
        with pytest.raises(BundleError, match=f"{out} exists and was not packaged"):
            package(bundle, out, runtime, toys.registry(), Silent())
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
def test_missing_and_empty_models_are_named(bundle: Path, runtime: Runtime, name: str) -> None:
    """A layer, the head or the vision file; the hint is the command that makes them."""
    (bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"{name} is empty") as caught:
        packaged(bundle, runtime)
    assert "axcore build" in caught.value.hint
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name) as caught:
        packaged(bundle, runtime)
    assert "axcore build" in caught.value.hint


@both
def test_a_bundle_that_was_not_built_is_refused(bundle: Path, runtime: Runtime) -> None:
    """The message says what is missing, the hint how it is made."""
    for name in toys.built(".axmodel"):
        (bundle / name).unlink()
    with pytest.raises(BundleError, match="no layer models") as caught:
        packaged(bundle, runtime)
    assert "axcore build" in caught.value.hint


@both
def test_layers_of_another_build_are_refused(bundle: Path, runtime: Runtime) -> None:
    """One layer too many, another chunk length, a second type."""
    (bundle / toys.layer(3)).write_bytes(b"left over")
    with pytest.raises(BundleError, match="the model has 3 layers"):
        packaged(bundle, runtime)
    (bundle / toys.layer(3)).unlink()
    (bundle / toys.layer(0, kind="other")).write_bytes(b"left over")
    with pytest.raises(BundleError, match="other_p8"):
        packaged(bundle, runtime)
    (bundle / toys.layer(0, kind="other")).unlink()
    for index in range(3):
        (bundle / toys.layer(index)).rename(bundle / toys.layer(index, chunk=16))
    with pytest.raises(BundleError, match="toy_text_p16"):
        packaged(bundle, runtime)


@both
def test_an_embedding_of_another_size_is_refused(bundle: Path, runtime: Runtime) -> None:
    """Rows of another model would be looked up silently."""
    path = bundle / toys.EMBEDDING
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BundleError, match="has 2552 bytes"):
        packaged(bundle, runtime)


def test_unknown_runtimes_and_models_are_refused(bundle: Path) -> None:
    """A runtime that is none, and a family that is not installed."""
    with pytest.raises(UsageError, match="`tvm`") as caught:
        packaged(bundle, "tvm")  # type: ignore[arg-type]
    assert "axllm, python" in caught.value.hint
    with pytest.raises(PluginNotFound, match=toys.MODEL):
        package(bundle, bundle.parent / "board", "python", Registry([]), Silent())
