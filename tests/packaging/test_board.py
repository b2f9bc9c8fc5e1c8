"""What holds for every board folder: made of a whole bundle, and itself whole or not there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from axcore import BudgetError, BundleError, PluginNotFound, Registry, UsageError
from axcore.bundle import Bundle
from axcore.packaging import RUNTIMES, Runtime, package
from axcore.packaging.copying import copy_files
from axcore.progress import Silent
from axcore.testing import Recorder

from ..bundles import largest_file
from . import toys
from .toys import packaged

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
KILLED = """\
import os, signal, sys
from pathlib import Path
from tests.packaging import toys

event, count, bundle, site = sys.argv[1:]
sys.path.insert(0, site)
left = int(count)

def last(name, arguments):
    global left
    left -= name == event
    if not left:
        left = -1  # killing is an event too
        os.kill(os.getpid(), signal.SIGKILL)

registry = toys.registry()
sys.addaudithook(last)
toys.package(Path(bundle), Path(bundle).parent / "board", "python", registry, toys.Silent())
"""

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
def test_a_build_that_does_not_hold_is_packaged_on_request_alone(
    bundle: Path, runtime: Runtime
) -> None:
    """Its faults are named, as the build names them. Oracle: what the build left of its results."""
    text = "the output agrees with the float graph to a cosine of 0.1100 only"
    (bundle / f"{toys.STEM}.build.json").write_text(json.dumps({"subgraphs": 1, "faults": [text]}))
    out, said = bundle.parent / "board", Recorder()
    with pytest.raises(BundleError, match=re.escape(text)) as caught:
        package(bundle, out, runtime, toys.registry(), said)
    assert "--accept-faults" in caught.value.hint
    assert not out.exists()
    package(bundle, out, runtime, toys.registry(), said, accept_faults=True)
    assert f"{toys.STEM}: {text}" in said.warned


@pytest.mark.parametrize("text", ["[]", "{", '{"faults": "abc"}', '{"faults": [1]}'])
def test_a_damaged_record_of_the_build_is_refused(bundle: Path, text: str) -> None:
    """By its name. Oracle: JSON that no build writes."""
    path = bundle / f"{toys.STEM}.build.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=re.escape(str(path))):
        packaged(bundle, "python")


@both
def test_no_file_is_shared_with_the_bundle(bundle: Path, runtime: Runtime) -> None:
    """What is changed in the one stays in the other, and weights have one name, as ONNX demands.

    Oracle: the system's count of names.
    """
    out = packaged(bundle, runtime)
    assert {path.stat().st_nlink for path in files_of(out) + files_of(bundle)} == {1}
    for name in (*toys.built(".axmodel"), toys.EMBEDDING):
        assert (out / name).read_bytes() == (bundle / name).read_bytes()


def test_room_is_asked_for_before_the_first_byte(tmp_path: Path) -> None:
    """Of what cannot share its blocks. Oracle: a sparse file, larger than any disk here."""
    model, board = tmp_path / "large.axmodel", tmp_path / "board"
    board.mkdir()
    with model.open("wb") as file:
        file.truncate(1 << 43)
    try:
        with pytest.raises(BudgetError, match=rf"needs 8.8e\+03 GB in {tmp_path}; .* are free"):
            copy_files({"small": tmp_path / "large.axmodel"}, board, Silent())
    finally:
        model.unlink()
    assert sum(path.stat().st_size for path in board.iterdir()) == 0


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_files_are_copied(tmp_path: Path, kind: str) -> None:
    """A pipe does not hang. Oracle: that this ends."""
    os.mkfifo(tmp_path / "x") if kind == "pipe" else (tmp_path / "x").mkdir()
    (tmp_path / "board").mkdir()
    with pytest.raises(BundleError, match=f"x cannot be packaged: it is a {kind}"):
        copy_files({"x": tmp_path / "x"}, tmp_path / "board", Silent())


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
        older_inode = place.stat().st_ino
    assert packaged(bundle, runtime) == link
    assert link.readlink() == place
    assert (place / "axcore.json").exists()
    assert not older or place.stat().st_ino != older_inode
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
@pytest.mark.parametrize("nbytes", [10, 1000])
def test_a_full_disk_is_that_of_the_new_folder(bundle: Path, runtime: Runtime, nbytes: int) -> None:
    """Nothing is said to be kept, as nothing is. A limit on the size of files stands in for it.

    It is met by models, or by what is written beside them.
    """
    with (
        largest_file(nbytes),
        pytest.raises(BudgetError, match=rf"cannot write {bundle.parent}") as caught,
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
@pytest.mark.parametrize(
    "manifest",
    [
        *('{"packaged_for": 1}', '{"packaged_for": "python", "files": {}}', "[]", "{", ""),
        '{"packaged_for": "python", "files": {"photo.jpg": {"size": 4, "sha256": "0"}}}',
        '{"packaged_for": "python", "files": {"photo.jpg": 1}}',
    ],
)
def test_a_manifest_alone_makes_no_folder_ours(
    bundle: Path, runtime: Runtime, manifest: str
) -> None:
    """It may have been sent. Oracle: the photo beside it."""
    album = bundle.parent / "album"
    album.mkdir()
    (album / "photo.jpg").write_text("cat!")
    (album / "axcore.json").write_text(manifest)
    with pytest.raises(
        BundleError, match=r"album (exists and was not pack|holds what packaging did not)"
    ) as caught:
        packaged(bundle, runtime, album)
    assert "nothing was changed" in caught.value.hint
    assert left(album) == {"photo.jpg", "axcore.json"}
    assert left(bundle.parent) == {"bundle", "album", "site"}


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "goal")
    path.symlink_to(path.parent.parent / "goal")


@both
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("answers.log", Path.touch),
        ("photos", Path.mkdir),
        ("sub/photo.jpg", lambda path: (path.parent.mkdir(), path.touch())),
        ("link", lambda path: path.symlink_to("/etc")),
        (".axcore", Path.touch),
        ("__pycache__/mine.pyc", lambda path: (path.parent.mkdir(), path.touch())),
        ("pipe", os.mkfifo),
        ("config.json", edited),
        ("sbom.cdx.json", lambda path: path.write_text("{}")),
        (toys.layer(1), linked),
        ("\x1b[2J", Path.touch),
    ],
)
def test_what_packaging_did_not_write_is_not_deleted(
    bundle: Path, runtime: Runtime, name: str, change: Callable[[Path], object]
) -> None:
    """A photo, an edited file, a link: it is named, and all stays. Without it, all is replaced.

    Oracle: the folder before and after.
    """
    out = packaged(bundle, runtime)
    change(out / name)
    before = {path: path.lstat() for path in out.rglob("*")}
    named = re.escape(ascii(name))
    with pytest.raises(BundleError, match=rf"board holds what .* not write there: {named}") as told:
        packaged(bundle, runtime)
    assert "move it elsewhere" in told.value.hint
    after = {path: path.lstat() for path in out.rglob("*")}
    assert [*map(stamp_of, before.items())] == [*map(stamp_of, after.items())]


def stamp_of(item: tuple[Path, os.stat_result]) -> tuple[Path, int, int]:
    path, status = item
    return path, status.st_ino, status.st_mtime_ns


def test_what_running_left_there_is_no_obstacle(bundle: Path) -> None:
    """Bytecode, and the record of checksums. Oracle: Python and `check_files`, which write them."""
    out = packaged(bundle, "python")
    subprocess.run([sys.executable, "-m", "compileall", "-q", out / "lib"], check=True)
    Bundle.open(out).check_files()
    assert list(out.glob("lib/axcore/**/__pycache__/*.pyc"))
    assert (out / ".axcore/checksums.json").exists()
    packaged(bundle, "python")
    assert not list(out.rglob("__pycache__"))


def test_what_is_written_while_packaging_is_kept(bundle: Path) -> None:
    """A board may run there meanwhile. Oracle: the file, written at the last report."""
    out = packaged(bundle, "python")

    class Runs(Silent):
        def say(self, message: str) -> None:
            (out / "answer.txt").write_text(message)

    with pytest.raises(BundleError, match=r"answer\.txt"):
        package(bundle, out, "python", toys.registry(), Runs())
    assert "run.py" in (out / "answer.txt").read_text()
    assert left(bundle.parent) == {"bundle", "board", "site"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 256, "File name too long"),
        ("x/" * 2100, "File name too long"),
        ("x" * 220, ""),
        (os.fsdecode(b"caf\xe9"), ""),
        ("a b'\"$;\n", ""),
    ],
)
def test_names_of_every_kind(bundle: Path, name: str, reason: str) -> None:
    """Taken, or refused with the system's reason. Oracle: what is there afterwards."""
    out = bundle.parent / name
    if not reason:
        assert packaged(bundle, "axllm", out) == out
        assert packaged(bundle, "axllm", out) == out
        assert (out / "config.json").exists()
        return
    with pytest.raises(BundleError, match=reason) as caught:
        packaged(bundle, "axllm", out)
    assert "-o" in caught.value.hint


@pytest.mark.skipif(not os.geteuid(), reason="root may write everywhere")
def test_a_place_that_takes_no_files(bundle: Path) -> None:
    """Nor one that cannot be read. Oracle: the system's reason."""
    for name, mode in (("full", 0o555), ("shut", 0o000)):
        (bundle.parent / name).mkdir(mode=mode)
    for name in ("full/board", "shut", "shut/board"):
        with pytest.raises(BundleError, match="Permission denied"):
            packaged(bundle, "axllm", bundle.parent / name)


@pytest.mark.parametrize(
    ("event", "count"), [("os.mkdir", 1), ("os.mkdir", 5), ("open", 200), ("os.rename", 2)]
)
def test_a_killed_run_leaves_nothing_behind_after_the_next(
    bundle: Path, family: Path, event: str, count: int
) -> None:
    """While copying, or between the two renames that replace an older folder.

    Oracle: the bytes of an undisturbed run, and the folder that it lies in.
    """
    out = packaged(bundle, "python")
    expected = {path.relative_to(out): path.read_bytes() for path in files_of(out)}
    died = subprocess.run(
        [sys.executable, "-c", KILLED, event, str(count), bundle, family],
        cwd=ROOT, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    packaged(bundle, "python")
    assert {path.relative_to(out): path.read_bytes() for path in files_of(out)} == expected
    assert left(bundle.parent) == {"bundle", "board", "site"}


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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
