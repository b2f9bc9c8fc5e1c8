"""Read, check, fetch and fabricate Hugging Face checkpoints; no model is known here."""

from .assets import ASSETS, find_assets
from .check import check_layout
from .config import read_config
from .fabricate import fabricate
from .headers import TensorInfo
from .hub import fetch
from .keys import canonical_key, disk_key
from .quantised import as_stored
from .reader import Checkpoint

__all__ = [
    "ASSETS",
    "Checkpoint",
    "TensorInfo",
    "as_stored",
    "canonical_key",
    "check_layout",
    "disk_key",
    "fabricate",
    "fetch",
    "find_assets",
    "read_config",
]
