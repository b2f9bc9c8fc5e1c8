"""Only named, regular and bounded files of a checkpoint are taken along."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from axcore.checkpoint import ASSETS, find_assets
from axcore.errors import CheckpointError
from axcore.limits import CONFIG_BYTES

SECRET = "secret.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder, and a file beside it that is nobody's business."""
    (tmp_path / SECRET).write_text("secret")
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


def test_files_of_other_names_stay_behind(folder: Path) -> None:
    """Whatever their suffix; oracle: the names that were written."""
    for name in ("notes.txt", "visual.pulsar2.json", "axcore.json", "model.safetensors.index.json"):
        (folder / name).write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("text")
    assert list(find_assets(folder)) == ["LICENSE", "config.json", "tokenizer.json"]
    assert list(find_assets(folder, ["tokenizer.json"])) == ["tokenizer.json"]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def outside(path: Path) -> None:
    path.symlink_to(f"../{SECRET}")


def dangling(path: Path) -> None:
    path.symlink_to("nothing")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(CONFIG_BYTES + 1)


KINDS: dict[Callable[[Path], None], str] = {
    Path.mkdir: "it is a folder",
    pipe: "it is a pipe or device",
    loop: "Too many levels of symbolic links",
    device: "outside the folder",
    outside: "outside the folder",
    dangling: "No such file",
    large: f"at most {CONFIG_BYTES} are read",
}


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_no_regular_file_of_the_checkpoint_is_refused(
    folder: Path, make: Callable[[Path], None]
) -> None:
    """Without waiting for it; the error names it. Oracle: what was made there."""
    path = folder / "generation_config.json"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        find_assets(folder)
    assert KINDS[make] in caught.value.message
    assert str(path) in caught.value.message


def test_links_inside_the_checkpoint_and_to_the_hubs_blobs_are_followed(tmp_path: Path) -> None:
    """Oracle: the layout of huggingface_hub's cache, also under another name."""
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/1a"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "5e").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/5e")
    (snapshot / "tokenizer_config.json").symlink_to("config.json")
    (tmp_path / "link").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "link"):
        found = find_assets(folder)
        assert list(found) == ["config.json", "tokenizer_config.json"]
        assert [path.read_text() for path in found.values()] == ["{}", "{}"]


def test_the_limits_are_larger_than_published_files() -> None:
    """Oracle: the largest published ones known: 35 MB and 1.2 MB."""
    assert ASSETS["tokenizer.json"] > 35e6
    assert ASSETS["tokenizer_config.json"] > 1.2e6
