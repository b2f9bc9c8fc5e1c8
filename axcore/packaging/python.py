"""Fill a folder that runs on a board with Python alone, without torch."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UnsupportedModel
from ..hookspecs import PROJECT
from ..language.layer_types import other_layers
from .source import COMPILED, PORTABLE, link

if TYPE_CHECKING:
    from ..plugins import PluginInfo
    from ..progress import Progress
    from .source import Source

LIBRARY, SCRIPT, README = "lib", "run.py", "README.md"
NEEDED = ("numpy", "ml_dtypes", "pillow", "tokenizers")
"""Distributions that must be installed on the board, besides the engine."""

_BUNDLED = ("pluggy",)  # pure Python, so a copy runs on any board
_NEVER = ("__pycache__", "tests", "*.egg-info", "pyproject.toml", "MANIFEST.in")
_NOT_THERE = ("cli", "data", "evaluate", "packaging", "quantization", "testing")
_ENGINES = {
    COMPILED: "pyaxengine, which comes with the board's software",
    PORTABLE: "onnxruntime",
}
_TEXT = """# {model}

{repo}, packaged for a board by `axcore package`. Copy the whole folder to the board.

It needs Python 3.10 or newer with {needed}, and {engine}:

    pip install {installed}

Then ask a question with one command:

    python run.py {question}

`python run.py --help` lists the options. The models are {suffix} files, for {where}.
Prompts have up to {prompt} tokens, prompt and answer together up to {context}.
"""
_QUESTIONS = {"video": '--video frames/ --prompt "What happens?"'}  # by task
_QUESTION = '--image photo.jpg --prompt "What is in the image?"'


def fill(folder: Path, source: Source, progress: Progress) -> None:
    """Write models, embedding, tokenizer, sources and a script into `folder`.

    Raises:
        UnsupportedModel: The model has layers that the Python runtime cannot run.
        BundleError: The bundle is not built, incomplete or changed.
    """
    _check_layers(source)
    models = source.models
    if models.suffix != COMPILED:
        progress.warn(f"no {COMPILED} files found: packaging the ONNX models, which run on a CPU")
    link([*models.files, source.deployment.embedding_file], folder)
    for asset in source.deployment.assets:
        shutil.copyfile(asset, folder / asset.name)
    _copy_library(folder / LIBRARY, source.plugin)
    shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT)
    (folder / README).write_text(_readme(source), encoding="utf-8")
    progress.say(f"{len(models.layers)} layers; on the board: python {SCRIPT} --help")


def _check_layers(source: Source) -> None:
    if others := other_layers(source.deployment.job.text_config):
        raise UnsupportedModel(
            f"the Python runtime cannot run `{source.card.id}`: it needs layers with a key/value"
            f" cache, and the language model has {others}",
            hint="package with --runtime axllm, if that has a type for the model",
        )


def _copy_library(library: Path, plugin: PluginInfo) -> None:
    """Copy what the script imports: axcore, the family's plugin and their dependencies."""
    top = plugin.module.partition(":")[0].partition(".")[0]
    _copy_module(PROJECT, library, _NEVER + _NOT_THERE)
    _copy_module(top, library, _NEVER)
    _register(library, plugin)
    for name in _BUNDLED:
        _copy_distribution(name, library)


def _copy_module(name: str, library: Path, left_out: tuple[str, ...]) -> None:
    spec = find_spec(name)
    assert spec is not None, f"{name} was imported a moment ago"
    assert spec.origin is not None, f"{name} has no file"
    if spec.submodule_search_locations is None:
        library.mkdir(exist_ok=True)
        shutil.copy(spec.origin, library)
    else:
        ignore = shutil.ignore_patterns(*left_out)
        shutil.copytree(Path(spec.origin).parent, library / name, ignore=ignore)


def _register(library: Path, plugin: PluginInfo) -> None:
    """Write the metadata by which the plugin is found, as an installation would."""
    name = re.sub(r"[-_.]+", "_", plugin.distribution or plugin.name)
    version = plugin.version or "0"
    info = library / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{PROJECT}]\n{plugin.name} = {plugin.module}\n")


def _copy_distribution(name: str, library: Path) -> None:
    """Copy an installed distribution, its licence included."""
    found = distribution(name)
    for file in found.files or ():
        # Paths with ".." are scripts outside of site-packages; bytecode fits one Python only.
        if file.suffix != ".pyc" and ".." not in file.parts:
            target = library / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(found.locate_file(file)), target)


def _readme(source: Source) -> str:
    llm, suffix = source.deployment.llm, source.models.suffix
    return _TEXT.format(
        model=source.card.id,
        question=_QUESTIONS.get(source.deployment.job.task, _QUESTION),
        repo=source.card.repo,
        needed=" ".join(NEEDED),
        engine=_ENGINES[suffix],
        installed=" ".join(NEEDED if suffix == COMPILED else (*NEEDED, _ENGINES[PORTABLE])),
        suffix=suffix,
        where=source.deployment.job.target if suffix == COMPILED else "any CPU (slow)",
        prompt=max(llm.last_kv_cache_len, default=0) + llm.prefill_len,
        context=llm.kv_cache_len + 1,
    )
