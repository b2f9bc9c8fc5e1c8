"""Only named, regular and bounded files of a checkpoint are taken along."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from axcore.checkpoint import ASSETS, find_assets
from axcore.checkpoint.assets import find_code
from axcore.errors import CheckpointError
from axcore.limits import CODE_FILES, CONFIG_BYTES

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


def test_code_is_modules_alone(folder: Path) -> None:
    """Links, pipes and too many files are refused as with other files; oracle: what was made."""
    for name in ("configuration_toy.py", "resampler.py", "not a module.py", "setup.cfg"):
        (folder / name).write_text("")
    assert list(find_code(folder)) == ["configuration_toy.py", "resampler.py"]
    outside(folder / "siglip.py")
    with pytest.raises(CheckpointError, match=r"`siglip.py` cannot be copied: it is a link"):
        find_code(folder)
    (folder / "siglip.py").unlink()
    for number in range(CODE_FILES):
        (folder / f"m{number}.py").write_text("")
    with pytest.raises(CheckpointError, match=f"more than {CODE_FILES}"):
        find_code(folder)


def test_what_is_copied_is_all_that_transformers_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of a class of its own, as scripts load it. Oracle: transformers' loader.

    The code is a stand-in for that of a published checkpoint: a module that imports another.
    """
    from transformers import AutoConfig, dynamic_module_utils

    config = {"model_type": "toy", "auto_map": {"AutoConfig": "configuration_toy.ToyConfig"}}
    (folder / "config.json").write_text(json.dumps({**config, "width": 7}))
    (folder / "widths.py").write_text("DOUBLE = 2\n")
    (folder / "configuration_toy.py").write_text(
        "from transformers import PretrainedConfig\n"
        "from .widths import DOUBLE\n"
        "class ToyConfig(PretrainedConfig):\n"
        "    model_type = 'toy'\n"
        "    def __init__(self, width=0, **others):\n"
        "        super().__init__(**others)\n"
        "        self.width = DOUBLE * width\n"
    )
    bundle, cache = folder.parent / "bundle", str(folder.parent / "modules")
    bundle.mkdir()
    for name, path in {**find_assets(folder), **find_code(folder)}.items():
        shutil.copyfile(path, bundle / name)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", cache)
    monkeypatch.syspath_prepend(cache)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    loaded = AutoConfig.from_pretrained(bundle, trust_remote_code=True, local_files_only=True)
    assert (type(loaded).__name__, loaded.width) == ("ToyConfig", 14)


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
