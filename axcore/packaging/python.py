"""Fill a folder that runs on a board with Python alone, without torch."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UnsupportedModel
from ..hookspecs import PROJECT
from ..language.layer_types import other_layers
from .copying import copy_files
from .sbom import Library
from .source import COMPILED, PORTABLE
from .target import LIBRARY

if TYPE_CHECKING:
    from ..discovery import PluginInfo
    from ..progress import Progress
    from .source import Source

SCRIPT, README = "run.py", "README.md"
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


def fill(folder: Path, source: Source, progress: Progress) -> list[Library]:
    """Write models, embedding, tokenizer, sources and a script into `folder`.

    Returns:
        What lies in ``lib``.

    Raises:
        UnsupportedModel: The model has layers that the Python runtime cannot run.
        BundleError: The bundle is not built, incomplete or changed.
    """
    _check_layers(source)
    models = source.models
    if models.suffix != COMPILED:
        progress.warn(f"no {COMPILED} files found: packaging the ONNX models, which run on a CPU")
    paths = [*models.files, *source.deployment.table_files, *source.deployment.assets]
    paths.append(Path(__file__).with_name(SCRIPT))
    library = {f"{LIBRARY}/{name}": path for name, path in _library(source.plugin).items()}
    copy_files({**{path.name: path for path in paths}, **library}, folder, progress)
    _register(folder / LIBRARY, source.plugin)
    (folder / README).write_text(_readme(source), encoding="utf-8")
    progress.say(f"{len(models.layers)} layers; on the board: python {SCRIPT} --help")
    plugin = Library.of(source.plugin.distribution or source.plugin.name, source.plugin.version)
    return [Library.of(PROJECT), plugin, *map(Library.of, _BUNDLED)]


def _check_layers(source: Source) -> None:
    deployment = source.deployment
    others = other_layers(deployment.job.text_config, deployment.llm.kv_cache_len + 1)
    if others and source.suffix == COMPILED:  # which do not say what a layer keeps
        raise UnsupportedModel(
            f"the Python runtime cannot run `{source.card.id}`: of {COMPILED} files it needs layers"
            f" with a key/value cache, and the language model has {others}",
            hint="run `axcore build --toolchain onnx` for layers that say what they keep, or"
            " package with --runtime axllm, if that has a type for the model",
        )


def _library(plugin: PluginInfo) -> dict[str, Path]:
    """Name what the script imports: axcore, the family's plugin and their dependencies."""
    top = plugin.module.partition(":")[0].partition(".")[0]
    found = {**_module(PROJECT, _NEVER + _NOT_THERE), **_module(top, _NEVER)}
    for name in _BUNDLED:
        found |= _distribution(name)
    return found


def _module(name: str, left_out: tuple[str, ...]) -> dict[str, Path]:
    spec = find_spec(name)
    assert spec is not None, f"{name} was imported a moment ago"
    assert spec.origin is not None, f"{name} has no file"
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return {origin.name: origin}
    files = ((path.relative_to(origin.parent), path) for path in origin.parent.rglob("*"))
    return {
        f"{name}/{inner.as_posix()}": path
        for inner, path in sorted(files)
        if path.is_file() and not any(_matches(part, left_out) for part in inner.parts)
    }


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _register(library: Path, plugin: PluginInfo) -> None:
    """Write the metadata by which the plugin is found, as an installation would."""
    name = re.sub(r"[-_.]+", "_", plugin.distribution or plugin.name)
    version = plugin.version or "0"
    info = library / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{PROJECT}]\n{plugin.key} = {plugin.module}\n")


def _distribution(name: str) -> dict[str, Path]:
    """Name the files of an installed distribution, its licence included."""
    found = distribution(name)
    return {
        file.as_posix(): Path(str(found.locate_file(file)))
        for file in found.files or ()
        # Paths with ".." are scripts outside of site-packages; bytecode fits one Python only.
        if file.suffix != ".pyc" and ".." not in file.parts
    }


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
