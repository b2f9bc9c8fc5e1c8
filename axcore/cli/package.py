"""`axcore package`: what a board takes, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import api
from ..display import size
from .app import BundleFolder, Json, app
from .console import emit
from .invocation import Invocation
from .options import path


@app.command()
def package(
    context: typer.Context,
    bundle: BundleFolder,
    runtime: Annotated[
        Literal["axllm", "python"],
        typer.Option(help="What runs it there: Axera's axllm, or Python."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", parser=path, help="New folder; default: ./BUNDLE-RUNTIME."),
    ] = None,
    accept_faults: Annotated[
        bool,
        typer.Option("--accept-faults", help="Package although results of the build do not hold."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Lay a built bundle out for a board: a folder to copy there as it is."""
    target = out or Path(f"{bundle.resolve().name}-{runtime}")
    invocation = Invocation.of(context)
    with invocation.progress() as reporter:
        packaged = api.package(
            bundle,
            target,
            runtime=runtime,
            accept_faults=accept_faults,
            progress=reporter,
            registry=invocation.registry(),
        )
    if as_json:
        return emit({"folder": str(packaged.folder), **packaged.manifest.data()})
    files = packaged.manifest.files
    total = sum(content.size for content in files.values())
    return typer.echo(f"{packaged.folder}: {len(files)} files, {size(total)}")
