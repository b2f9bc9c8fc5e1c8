"""axcore: bring vision-language models from Hugging Face checkpoints onto edge NPUs.

What is listed in ``__all__`` is the public interface. Importing it loads neither torch nor
transformers; those wait until a conversion needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .api import build, convert, lint, list_models, load, package, plan, quantize, verify
from .availability import Availability
from .bundle import Bundle
from .calibration.images import read_image
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
from .language.prompt import Control, Rows, encode_prompt, message_parts
from .language.tensors import affine_tensors, llama_tensors
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
from .plugins import Registry
from .progress import Progress, Silent
from .request import Options, Request
from .runtime.contract import Backend
from .toolchains.contract import BuildRequest, GraphFile, Toolchain

if TYPE_CHECKING:
    from . import backend, evaluate, toolchain
    from .graph.tower import parameters_on_meta, tower_stages
    from .runtime.runner import Answer, Runner
    from .runtime.sampling import Sampling
else:
    _LATER = {
        "Answer": "runtime.runner",
        "Runner": "runtime.runner",
        "Sampling": "runtime.sampling",
        "parameters_on_meta": "graph.tower",
        "tower_stages": "graph.tower",
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
    "BudgetError",
    "BuildRequest",
    "Bundle",
    "BundleError",
    "Cache",
    "Calibration",
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
    "ImageError",
    "Job",
    "Layers",
    "Layout",
    "Lengths",
    "LlmBuildArgs",
    "LlmCheckpoint",
    "ModelCard",
    "Options",
    "PluginNotFound",
    "Port",
    "Positive",
    "Profile",
    "Progress",
    "Prompt",
    "Published",
    "Registry",
    "Request",
    "Rows",
    "Runner",
    "Sample",
    "Sampling",
    "Shape",
    "Silent",
    "Stage",
    "Token",
    "TokenInput",
    "Toolchain",
    "ToolchainError",
    "UnsupportedModel",
    "UnsupportedProfile",
    "UsageError",
    "VerificationError",
    "Weight",
    "__version__",
    "affine_tensors",
    "backend",
    "build",
    "convert",
    "encode_prompt",
    "evaluate",
    "hookimpl",
    "lint",
    "list_models",
    "llama_tensors",
    "load",
    "load_tokenizer",
    "message_parts",
    "package",
    "parameters_on_meta",
    "plan",
    "quantize",
    "read_image",
    "toolchain",
    "tower_stages",
    "verify",
]
