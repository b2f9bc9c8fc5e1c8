"""`axcore plugins`: what is installed, and what authors of plugins need."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..display import size
from ..errors import UsageError
from .app import Json
from .console import emit
from .invocation import Invocation
from .options import path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..testing.kit import Verdict

plugins_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@plugins_app.command("list")
def plugins_list(context: typer.Context, as_json: Json = False) -> None:
    """List the plugins in use with their hooks, and those set aside with the reason."""
    registry = Invocation.of(context).registry(warn=False)
    used: list[dict[str, Any]] = [
        {"name": p.name, "distribution": p.distribution, "version": p.version, "status": "ok",
         "contract": p.contract, "hooks": registry.hooks_of(p.name)}
        for p in registry.plugins.values()
    ]  # fmt: skip
    aside = [
        {"name": p.plugin.name, "distribution": p.plugin.distribution,
         "version": p.plugin.version, "status": "set aside", "error": p.error}
        for p in registry.problems
    ]  # fmt: skip
    if as_json:
        return emit([*used, *aside])
    for entry in [*used, *aside]:
        typer.echo("{name}  {distribution} {version}  {status}".format(**entry))
        detail = entry.get("error") or "hooks: " + ", ".join(entry["hooks"])
        typer.echo(f"  {detail}")
    return None


@plugins_app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(help="Name of the family, e.g. foovl.")],
    config: Annotated[
        Path | None,
        typer.Option("--from", parser=path, help="A published config.json, or its folder."),
    ] = None,
    hub_id: Annotated[
        str, typer.Option(help="Repository whose config is downloaded, e.g. foo/Foo-VL-1B.")
    ] = "",
    repo: Annotated[str, typer.Option(help="The same, where the config is here already.")] = "",
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path, help="Folder to write the package in.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Write a package for a family, derived from a published config and transformers' class.

    Without --from and --hub-id, the config is that of an example.
    """
    from ..authoring.package import new_plugin
    from ..checkpoint.hub import fetch_settings

    if hub_id and (config or repo):
        raise UsageError("--hub-id excludes --from and --repo", hint="leave out one of them")
    if hub_id:
        config = fetch_settings(hub_id)
    if config is not None and config.is_dir():
        config /= "config.json"
    written = new_plugin(name, config, out, hub_id or repo)
    if as_json:
        return emit({"folder": str(written.folder), "todo": dict(written.todo)})
    for topic, reason in written.todo.items():
        typer.echo(f"TODO {topic}: {reason}", err=True)
    typer.echo(written.folder)
    return None


@plugins_app.command("check")
def plugins_check(
    context: typer.Context,
    plugin: Annotated[
        str, typer.Argument(help="A family: its name, its distribution, or its package's folder.")
    ],
    model: Annotated[str | None, typer.Option(help="Which model; default: the first.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", parser=path, help="Keep what is made in this empty folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try every law of the contract on a family; exits 1 when one is broken."""
    from ..authoring.judge import check_plugin

    del context

    def shown(verdict: Verdict) -> None:
        typer.echo(f"{verdict.status:14} {verdict.law} ({verdict.seconds:.1f} s)")
        for line in verdict.reason.splitlines():
            typer.echo(f"{'':14} {line}")

    with _folder(out) as folder:
        made = check_plugin(plugin, folder, model, (lambda _: None) if as_json else shown)
    if as_json:
        emit(made.data())
    else:
        typer.echo(f"\nplugin     {made.plugin}, model {made.model}")
        typer.echo(f"contract   {made.contract}; this axcore has {made.current}")
        typer.echo(f"hooks      {', '.join(made.hooks)}")
        typer.echo(f"defaults   {', '.join(made.defaulted)}")
        typer.echo(f"took       {made.seconds:.0f} s, {size(made.peak_bytes)}")
        typer.echo(f"verdict    {made.verdict}")
    if not made.passed:
        raise typer.Exit(1)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Yield an empty folder: the one that was given, or one that does not last."""
    if out is None:
        with TemporaryDirectory(prefix="axcore-") as folder:
            yield Path(folder)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty", hint="choose a new or empty folder with -o")
    out.mkdir(parents=True, exist_ok=True)
    yield out
