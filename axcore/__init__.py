"""axcore: bring vision-language models from Hugging Face checkpoints onto edge NPUs.

What is listed in ``__all__`` is the public interface. Importing it loads neither torch nor
transformers; those wait until a conversion needs them.
"""

from .api import build, convert, lint, list_models, plan, quantize, verify
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

__version__ = "0.1.0"

__all__ = [
    "Availability",
    "AxcoreError",
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
    "Sample",
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
    "load_tokenizer",
    "message_parts",
    "plan",
    "quantize",
    "read_picture",
    "verify",
]
