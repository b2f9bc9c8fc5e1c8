"""The language model of a bundle as stages, for toolchains that build its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ContractError, UsageError
from ..language_model import Decoder
from .job import open_job, request_of

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..plugins import Registry
    from ..progress import Progress


def open_decoder(bundle: Bundle, registry: Registry, progress: Progress) -> Decoder:
    """Open the checkpoint that `bundle` was made from, and ask its family for the stages.

    Raises:
        UsageError: The bundle holds the vision side alone.
        ContractError: The plugin's answer is unfit (names plugin and hook).
        AxcoreError: Another subclass says what is wrong with the checkpoint.
    """
    from ..graph.contract import check_stages

    request = request_of(bundle)
    if request.vision_only:
        raise UsageError(
            f"{bundle.folder} holds the vision side alone",
            hint="convert again without --vision-only",
        )
    job = open_job(request, registry, progress)
    decoder = registry.call(job.family, "decoder", job=job)
    with registry.blame(job.family, "decoder"):
        if not isinstance(decoder, Decoder):
            raise ContractError(f"returned {decoder!r}, not a Decoder")
        check_stages("the language model", [*decoder.layers, decoder.head], decoder.checkpoint)
    return decoder
