"""The exceptions that users are meant to see: fact, evidence, remedy."""

from __future__ import annotations


class AxcoreError(Exception):
    """An expected failure: `message` states the fact and its evidence, `hint` the remedy.

    The command line prints both and exits with 1. Any other exception is a bug of ours or of a
    plugin and keeps its traceback.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        # Libraries quote what they were given, which may be a whole file.
        message = "\n".join(map(_shortened, message.split("\n")))
        super().__init__(message)
        self.message = message
        self.hint = hint


_LINE_CHARS = 1500


def _shortened(line: str) -> str:
    return line if len(line) <= _LINE_CHARS else f"{line[:1000]}…{line[-400:]}"


class UsageError(AxcoreError):
    """The request contradicts itself or asks for something that does not exist."""


class PluginNotFound(AxcoreError):
    """No installed plugin knows the model."""


class UnsupportedModel(AxcoreError):
    """A family knows the model and cannot convert it."""


class ContractError(AxcoreError):
    """A plugin returned something that its hook's specification rules out."""


class CheckpointError(AxcoreError):
    """The checkpoint is missing, damaged or contradicts itself."""


class UnsupportedProfile(AxcoreError):
    """The image size, task or precision does not fit the model."""


class BudgetError(AxcoreError):
    """Disk, memory or the prompt budget cannot suffice."""


class ImageError(AxcoreError):
    """Images that cannot be read, or that would spoil a calibration."""


class GraphError(AxcoreError):
    """A file is no readable ONNX model."""


class VerificationError(AxcoreError):
    """An exported graph differs from the model by more than the thresholds."""


class BundleError(AxcoreError):
    """A bundle folder is not what it should be, or is in use."""


class ToolchainError(AxcoreError):
    """A toolchain is missing or one of its steps failed."""


class DownloadError(AxcoreError):
    """A checkpoint could not be fetched."""
