"""Prompts of models that cut images into patches and place tokens along three axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..language.grids import Grid, encode_grids, read_video
from ..language.prompt import Control
from ..language.tokenizer import load_tokenizer
from ..language_model import Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from PIL.Image import Image

    from ..job import Job
    from .patches import PatchGrid


@dataclass(frozen=True)
class Shown:
    """An image or a video of a prompt.

    Attributes:
        marker: What its rows replace.
        frames: One image, or the frames of a video.
        interval: Positions in time from one run of the graph to the next, see `Grid`.
    """

    marker: str
    frames: Sequence[Image]
    interval: float = 0.0


def grid_prompt(
    job: Job,
    pieces: Iterable[str | Control | Shown],
    grid: PatchGrid,
    *,
    markers: Mapping[str, int | None],
    stop: Sequence[str],
    component: str = "vision",
    port: str = "hidden_states",
) -> Prompt:
    """Return a prompt whose images and steps of videos are one run of the graph each.

    Args:
        job: Its profile has the size that every image and frame is resized to.
        pieces: As for `encode_prompt`.
        grid: How images are cut.
        markers: See `load_tokenizer`.
        stop: Tokens that end an answer.
        component, port: What takes the patches.

    Raises:
        UnsupportedProfile: The size does not fit.
        CheckpointError: The tokenizer is missing or does not fit the model.
        UsageError, BudgetError: See `encode_prompt`.
    """
    size, deep = (job.profile.height, job.profile.width), grid.frames
    grid.check(*size)
    tokenizer = load_tokenizer(job.checkpoint.folder, markers)
    written, samples = list[Any](), list[Any]()
    for piece in pieces:
        if isinstance(piece, Shown):
            frames = piece.frames
            steps = [frames[start : start + deep] for start in range(0, len(frames), deep)]
            written.append(Grid(piece.marker, len(steps), *grid.cells(*size), piece.interval))
            samples += [{port: grid.patches(step, *size)} for step in steps]
        else:
            written.append(piece)
    ids, positions, places = encode_grids(tokenizer, written)
    return Prompt(
        input_ids=ids,
        position_ids=positions,
        vision_rows={component: places},
        images={component: samples},
        stop_ids=tuple(i for text in stop if (i := tokenizer.token_to_id(text)) is not None),
    )


def timed_steps(
    part: Mapping[str, Any], fps: float, deep: int
) -> Iterator[tuple[float, list[Image]]]:
    """Yield the steps of a video: the time in the middle of each in seconds, and its frames.

    Args:
        part: See `read_video`.
        fps: Frames per second where the part says nothing.
        deep: Frames of a step; the last may have fewer, and is then filled with its last.

    Source: transformers, ``_calculate_timestamps`` of the processors that write times.
    """
    frames, rate = read_video(part, fps)
    for start in range(0, len(frames), deep):
        step = frames[start : start + deep]
        yield (start / rate + min(start + deep - 1, len(frames) - 1) / rate) / 2, step
