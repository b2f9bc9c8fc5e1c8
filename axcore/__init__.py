"""axcore: bring vision-language models from Hugging Face checkpoints onto edge NPUs.

What is listed in ``__all__`` is the public interface; ``help(axcore.NAME)`` says what each is.
Importing it loads neither torch nor transformers; those wait until a conversion needs them.

Work with models: `plan`, `convert`, `build`, `lint`, `verify`, `quantize`, `package`, `load`,
`list_models`; they take a `Request` with `Options`, report to a `Progress` (or `Silent`), and
return a `Bundle` or a `Runner`, which gives an `Answer` by `Sampling`. `evaluate` judges them.

Errors: `AxcoreError`, with a message and a hint, and its subclasses.

Write a family (``docs/plugins.md``; ``axcore plugins new``): `hookimpl` marks hooks, which are
given a `Job`.

- Cards: `ModelCard`, `Profile`, `Lengths`, `Layout`, `Published`, `Choice`; types that bound a
  config's values: `Count`, `Layers`, `Positive`, `Token`, `Between`, read by `parse`.
- The vision side: `Component`, `Stage`, `Weight`, `Port`, `Calibration`, `Sample`, `Shape`;
  `tower_stages` and `parameters_on_meta` for a class that exists.
- The language side: `Prompt`, `Embedding`, `LlmBuildArgs`, `LlmCheckpoint`, `Decoder`,
  `DecoderLayer`, `Cache`, `TokenInput`.
- Prompts: `load_tokenizer`, `message_parts`, `encode_prompt`, `Control`, `Rows`, `read_image`,
  `read_video`, `chatml` and others beside them.
- Names and shapes of tensors: `affine_tensors`, `llama_tensors`, `vit_tensors` and others.
- Towers and tiles that several families share: see `axcore.vision`.

Write a toolchain or a backend: `toolchain`, `backend`, `Toolchain`, `Backend`, `BuildRequest`,
`GraphFile`, `Availability`. `Registry` holds the installed plugins.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .api import build, convert, lint, list_models, load, package, plan, quantize, verify
from .availability import Availability
from .bundle import Bundle
from .calibration.images import read_image
from .checkpoint.settings import image_settings
from .choices import Choice
from .component import Calibration, Component, Port, Sample, Shape, Stage, Weight
from .errors import (
    AxcoreError,
    BudgetError,
    BundleError,
    CheckpointError,
    ContractError,
    DownloadError,
    GraphError,
    ImageError,
    PluginNotFound,
    ToolchainError,
    UnsupportedModel,
    UnsupportedProfile,
    UsageError,
    VerificationError,
)
from .hookspecs import hookimpl
from .job import Job
from .language.chatml import chatml, trimmed
from .language.grids import Grid, encode_grids, read_video
from .language.prompt import Control, Rows, encode_prompt, message_parts, tiled_prompt
from .language.tensors import affine_tensors, delta_tensors, llama_tensors
from .language.tokenizer import load_tokenizer
from .language_model import (
    Cache,
    Decoder,
    DecoderLayer,
    Embedding,
    LlmBuildArgs,
    LlmCheckpoint,
    Prompt,
    TokenInput,
)
from .model_card import Layout, Lengths, ModelCard, Profile, Published
from .model_config import Count, Layers, Positive, Token
from .plain import Between, parse
from .plugins import Registry
from .progress import Progress, Silent
from .request import Options, Request
from .runtime.contract import Backend
from .toolchains.contract import BuildRequest, GraphFile, Toolchain
from .vision.dimensions import Vit, vit_attention_tensors, vit_tensors
from .vision.prompt import Shown, grid_prompt, timed_steps
from .vision.rotary_config import RotaryTowerConfig, merger_tensors, rotary_tower_tensors
from .vision.tiles import Tiles, cells, nearest_grid

if TYPE_CHECKING:
    from . import backend, evaluate, toolchain
    from .graph.tower import parameters_on_meta, tower_stages
    from .runtime.runner import Answer, Runner
    from .runtime.sampling import Sampling
    from .vision.patches import PatchGrid
    from .vision.tower import CellMerger, RotaryTower, axial_rotation, cell_places, rotated
    from .vision.vit import (
        VitAttention,
        VitEmbedding,
        VitLayer,
        attend,
        gridded,
        interpolation,
        pixel_shuffle,
        selection,
        vit_norm,
        vit_stages,
    )
else:
    _LATER = {
        "Answer": "runtime.runner",
        "CellMerger": "vision.tower",
        "PatchGrid": "vision.patches",
        "RotaryTower": "vision.tower",
        "Runner": "runtime.runner",
        "Sampling": "runtime.sampling",
        "VitAttention": "vision.vit",
        "VitEmbedding": "vision.vit",
        "VitLayer": "vision.vit",
        "attend": "vision.vit",
        "axial_rotation": "vision.tower",
        "cell_places": "vision.tower",
        "gridded": "vision.vit",
        "interpolation": "vision.vit",
        "parameters_on_meta": "graph.tower",
        "pixel_shuffle": "vision.vit",
        "rotated": "vision.tower",
        "selection": "vision.vit",
        "tower_stages": "graph.tower",
        "vit_norm": "vision.vit",
        "vit_stages": "vision.vit",
    }
    _MODULES = ("backend", "evaluate", "toolchain")

    def __getattr__(name: str) -> Any:
        """Import what needs numpy or more when it is first asked for."""
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Availability",
    "AxcoreError",
    "Backend",
    "Between",
    "BudgetError",
    "BuildRequest",
    "Bundle",
    "BundleError",
    "Cache",
    "Calibration",
    "CellMerger",
    "CheckpointError",
    "Choice",
    "Component",
    "ContractError",
    "Control",
    "Count",
    "Decoder",
    "DecoderLayer",
    "DownloadError",
    "Embedding",
    "GraphError",
    "GraphFile",
    "Grid",
    "ImageError",
    "Job",
    "Layers",
    "Layout",
    "Lengths",
    "LlmBuildArgs",
    "LlmCheckpoint",
    "ModelCard",
    "Options",
    "PatchGrid",
    "PluginNotFound",
    "Port",
    "Positive",
    "Profile",
    "Progress",
    "Prompt",
    "Published",
    "Registry",
    "Request",
    "RotaryTower",
    "RotaryTowerConfig",
    "Rows",
    "Runner",
    "Sample",
    "Sampling",
    "Shape",
    "Shown",
    "Silent",
    "Stage",
    "Tiles",
    "Token",
    "TokenInput",
    "Toolchain",
    "ToolchainError",
    "UnsupportedModel",
    "UnsupportedProfile",
    "UsageError",
    "VerificationError",
    "Vit",
    "VitAttention",
    "VitEmbedding",
    "VitLayer",
    "Weight",
    "__version__",
    "affine_tensors",
    "attend",
    "axial_rotation",
    "backend",
    "build",
    "cell_places",
    "cells",
    "chatml",
    "convert",
    "delta_tensors",
    "encode_grids",
    "encode_prompt",
    "evaluate",
    "grid_prompt",
    "gridded",
    "hookimpl",
    "image_settings",
    "interpolation",
    "lint",
    "list_models",
    "llama_tensors",
    "load",
    "load_tokenizer",
    "merger_tensors",
    "message_parts",
    "nearest_grid",
    "package",
    "parameters_on_meta",
    "parse",
    "pixel_shuffle",
    "plan",
    "quantize",
    "read_image",
    "read_video",
    "rotary_tower_tensors",
    "rotated",
    "selection",
    "tiled_prompt",
    "timed_steps",
    "toolchain",
    "tower_stages",
    "trimmed",
    "verify",
    "vit_attention_tensors",
    "vit_norm",
    "vit_stages",
    "vit_tensors",
]
