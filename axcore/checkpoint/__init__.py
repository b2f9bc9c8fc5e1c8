"""Read, check, fetch and fabricate Hugging Face checkpoints; no model is known here."""

from .check import check_layout
from .config import read_config
from .fabricate import fabricate
from .headers import TensorInfo
from .hub import fetch
from .keys import canonical_key, disk_key
from .quantised import as_stored
from .reader import Checkpoint

__all__ = [
    "Checkpoint",
    "TensorInfo",
    "as_stored",
    "canonical_key",
    "check_layout",
    "disk_key",
    "fabricate",
    "fetch",
    "read_config",
]
