"""One measured run of `measure_throughput`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One run: equal prompts side by side, from image files in memory to texts.

    Attributes:
        batch: Prompts at once.
        input_len: Tokens of one prompt, images included.
        output_len: Tokens of one answer; its end is ignored.
        embedding_len: Tokens of one prompt that stand for images.
        first_token_ms: Until the first token: prompt, images and prefill, of all prompts.
        step_ms: Of every token after it, of all prompts.
        response_ms: From start to end, turning tokens into text included.
        peak_bytes: Resident memory at its highest; None where the system does not tell.
        device_peak_bytes: Memory of torch's tensors on an accelerator; None where none is used.
    """

    batch: int
    input_len: int
    output_len: int
    embedding_len: int
    first_token_ms: float
    step_ms: tuple[float, ...]
    response_ms: float
    peak_bytes: int | None
    device_peak_bytes: int | None

    @property
    def later_token_ms(self) -> float:
        """Mean of the tokens after the first."""
        return statistics.fmean(self.step_ms)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers over the time from start to end."""
        return self.batch * self.output_len / (self.response_ms / 1000)
