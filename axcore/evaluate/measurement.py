"""One measured run of `measure_throughput`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One run: a batch of equal prompts, from image files in memory to texts.

    Attributes:
        batch: Prompts at once.
        input_len: Tokens of one prompt, images included.
        output_len: Tokens of one answer; end tokens are ignored.
        embedding_len: Tokens of one prompt that are image features.
        first_token_ms: Time to the first token of all prompts: prompt, images and prefill.
        step_ms: Time of every later token of all prompts.
        response_ms: Time from start to end, decoding into text included.
        peak_bytes: Peak resident memory; None where the system does not report it.
        device_peak_bytes: Peak memory of torch's tensors on an accelerator; None without one.
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
