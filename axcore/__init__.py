"""axcore: bring vision-language models from Hugging Face checkpoints onto edge NPUs.

What is listed in ``__all__`` is the public interface. Importing it loads neither torch nor
transformers; those wait until a conversion needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .api import build, convert, lint, list_models, load, package, plan, quantize, verify
from .bundle import Bundle
from .calibration.pictures import read_picture
from .errors import (
    AxcoreError,
    BudgetError,
    BundleError,
    CheckpointError,
    ContractError,
    DownloadError,
    GraphError,
    PictureError,
    PluginNotFound,
    ToolchainError,
    UnsupportedModel,
    UnsupportedProfile,
    UsageError,
    VerificationError,
)
from .hookspecs import hookimpl
from .language.tokenizer import Rows, encode_prompt, load_tokenizer, message_parts
from .plugins import Registry
from .progress import Progress, Silent
from .types import (
    Availability,
    Backend,
    BuildRequest,
    Calibration,
    Choice,
    Component,
    Decoder,
    Embedding,
    GraphFile,
    Job,
    LlmBuildArgs,
    LlmCheckpoint,
    ModelCard,
    Options,
    Port,
    Profile,
    Prompt,
    Sample,
    Shape,
    Stage,
    Toolchain,
    Weight,
)

if TYPE_CHECKING:
    from .runtime.runner import Answer, Runner
    from .runtime.sampling import Sampling
else:
    _LATER = {"Answer": "runner", "Runner": "runner", "Sampling": "sampling"}

    def __getattr__(name: str) -> Any:
        """Import what needs numpy when it is first asked for."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.runtime.{_LATER[name]}"), name)


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
    "Calibration",
    "CheckpointError",
    "Choice",
    "Component",
    "ContractError",
    "Decoder",
    "DownloadError",
    "Embedding",
    "GraphError",
    "GraphFile",
    "Job",
    "LlmBuildArgs",
    "LlmCheckpoint",
    "ModelCard",
    "Options",
    "PictureError",
    "PluginNotFound",
    "Port",
    "Profile",
    "Progress",
    "Prompt",
    "Registry",
    "Rows",
    "Runner",
    "Sample",
    "Sampling",
    "Shape",
    "Silent",
    "Stage",
    "Toolchain",
    "ToolchainError",
    "UnsupportedModel",
    "UnsupportedProfile",
    "UsageError",
    "VerificationError",
    "Weight",
    "__version__",
    "build",
    "convert",
    "encode_prompt",
    "hookimpl",
    "lint",
    "list_models",
    "load",
    "load_tokenizer",
    "message_parts",
    "package",
    "plan",
    "quantize",
    "read_picture",
    "verify",
]
