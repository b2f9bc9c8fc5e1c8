"""`axcore quantize`: commands that write a checkpoint with a smaller language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import api
from ..display import size
from ..request import CheckpointRequest
from .app import Json
from .console import emit, table
from .invocation import Invocation
from .options import path
from .request_options import spelt_out

if TYPE_CHECKING:
    from ..quantization.gptq import Quantised

quantize_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@quantize_app.callback()
def root() -> None:
    """Write a checkpoint anew with a smaller language model; its vision side stays as it is."""


@quantize_app.command()
@spelt_out
def gptq(
    context: typer.Context,
    request: CheckpointRequest,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", parser=path, help="New folder; default: ./REPOSITORY-GPTQ-IntBITS."
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a weight: 4 or 8.")] = 4,
    group_size: Annotated[
        int, typer.Option(help="Consecutive inputs that share a scale; -1 for all.")
    ] = 128,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    text: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Text to calibrate with: plain or JSONL, a file or a folder."
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="A Python that has gptqmodel; default: the one that runs axcore."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantise the language model by GPTQ into a checkpoint folder that `convert` takes."""
    invocation = Invocation.of(context)
    with invocation.progress() as reporter:
        done = api.quantize(
            request,
            out,
            bits=bits,
            group_size=group_size,
            device=device,
            text=text,
            python=python,
            progress=reporter,
            registry=invocation.registry(),
        )
    emit(done) if as_json else _print(done)


def _print(done: Quantised) -> None:
    saved = done.bytes_before - done.bytes_after
    perplexities = (f"{value:.3f}" for value in (done.perplexity_before, done.perplexity_after))
    table(
        [
            ("", "BEFORE", "AFTER"),
            ("language model", size(done.bytes_before), size(done.bytes_after)),
            (f"perplexity, {done.held_out_tokens} tokens", *perplexities),
        ]
    )
    typer.echo(f"cosine of last states: mean {done.cosine_mean:.6f}, least {done.cosine_min:.6f}")
    typer.echo(f"{done.matrices} matrices in {done.bits} bits, {size(saved)} saved")
    typer.echo(f"{done.seconds:.0f} s, peak memory {size(done.peak_bytes)}")
    typer.echo(f"written: {done.folder}")
