"""The commands. Each calls the library and prints what it returns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__, api
from ..display import size
from ..request import Request
from ..system import require_linux, require_working_folder
from .console import emit, table
from .invocation import Invocation, LogFile, Quiet, Root, Verbose
from .options import given_choices, models, of_conversion, of_toolchain, path, toolchains
from .request_options import spelt_out

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..model_card import Entry
    from ..pipeline.plan import Plan
    from ..plugins import Registry
    from ..toolchains.contract import Estimate, Toolchain

app = typer.Typer(
    no_args_is_help=True,
    cls=Root,
    pretty_exceptions_enable=False,
    # Coloured, so that typer leaves out nothing of a name: what a terminal obeys is made visible.
    context_settings={"help_option_names": ["-h", "--help"], "color": True},
    rich_markup_mode=None,
)

# What a command does not know may be an option of the model or of the toolchain, checked by it.
OWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}


_MINUTES_FROM_S = 120

Json = Annotated[bool, typer.Option("--json", help="Print data as JSON on stdout.")]
Model = Annotated[
    str,
    typer.Argument(
        help="Model id, alias, repository or checkpoint folder.",
        autocompletion=models,
    ),
]
BundleFolder = Annotated[
    Path, typer.Argument(parser=path, help="Folder written by `axcore convert`.")
]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", parser=path, help="Bundle folder; default: ./MODEL-bundle."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--images", parser=path, help="Calibration images: folder, archive or file; repeatable."
    ),
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_file: LogFile = None,
) -> None:
    """Bring vision-language models from Hugging Face checkpoints onto edge NPUs.

    --quiet, --verbose and --log-file may also be given behind a command.
    """
    del quiet, verbose, log_file  # their callbacks have set them on the invocation
    if version:
        typer.echo(f"axcore {__version__}")
        raise typer.Exit
    require_linux()
    require_working_folder()


@app.command("list-models")
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the models of every installed family."""
    invocation = Invocation.of(context)
    registry = invocation.registry()
    for remark in registry.remarks:
        invocation.reporter.warn(f"{remark.subject}: {remark.text}; {remark.remedy}")
    if as_json:
        return emit([_model(entry, registry) for entry in registry.entries])
    if not registry.entries:
        typer.echo("no family is installed", err=True)
        return None
    rows = [("MODEL", "FAMILY", "REPOSITORY", "TASKS", "PARAMETERS", "LICENCE")]
    for entry in registry.entries:
        card = entry.card
        rows.append((registry.name_of(entry), entry.family, card.repo, ", ".join(card.profiles),
                     f"{card.parameters / 1e9:.2f} B", card.licence))  # fmt: skip
    return table(rows)


@app.command()
def show(context: typer.Context, model: Model, as_json: Json = False) -> None:
    """Show what is known of a model."""
    registry = Invocation.of(context).registry()
    data = _model(registry.find(model), registry)
    if as_json:
        return emit(data)
    profiles, choices = data.pop("profiles"), data.pop("choices")
    for name, value in data.items():
        shown = ", ".join(value) if isinstance(value, tuple) else value
        typer.echo(f"{name:14} {shown}")
    for name, profile in profiles.items():
        about = f"  ({profile.about})" if profile.about else ""
        history = ", ".join(map(str, profile.last_kv_cache_len)) or "none"
        typer.echo(f"\ntask {name}{about}")
        typer.echo(f"  image          {profile.height}x{profile.width} px")
        typer.echo(f"  prefill_len    {profile.prefill_len}   histories: {history}")
        typer.echo(f"  kv_cache_len   {profile.kv_cache_len}")
    for name, choice in choices.items():
        typer.echo(f"\noption --{name} {'|'.join(choice.values)}\n  {choice.about}")
    return None


@app.command(context_settings=OWN_OPTIONS)
@spelt_out
def convert(
    context: typer.Context,
    request: Request,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as `axcore plan`.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a bundle: graphs, calibration, configuration, embedding."""
    if dry_run:
        return _plan(context, request, out, as_json)
    invocation = Invocation.of(context)
    registry = invocation.registry()
    chosen = _with_choices(context, request, registry)
    started = time.perf_counter()
    with invocation.progress(continues=True) as reporter:
        target = out or _bundle_folder(request)
        bundle = api.convert(chosen, target, progress=reporter, registry=registry)
    if as_json:
        return emit({"bundle": str(bundle.folder), **bundle.manifest.data()})
    total = sum(content.size for content in bundle.manifest.files.values())
    for note in bundle.manifest.notes:
        invocation.note(note)
    typer.echo(
        f"{bundle.folder}: {len(bundle.manifest.files)} files, {size(total)},"
        f" in {time.perf_counter() - started:.1f} s, peak memory {size(_peak_bytes())}"
    )
    return invocation.reporter.say(f"next: {_next(bundle, registry)}")


@app.command(context_settings=OWN_OPTIONS)
@spelt_out
def plan(context: typer.Context, request: Request, out: Out = None, as_json: Json = False) -> None:
    """Show what `convert` would write, need and run, without reading weights."""
    _plan(context, request, out, as_json)


def _plan(context: typer.Context, request: Request, out: Path | None, as_json: bool) -> None:
    invocation = Invocation.of(context)
    registry = invocation.registry()
    chosen, target = _with_choices(context, request, registry), out or _bundle_folder(request)
    with invocation.progress() as reporter:
        planned = api.plan(chosen, out=target, progress=reporter, registry=registry)
    return emit(planned) if as_json else _print_plan(planned)


def _with_choices(context: typer.Context, request: Request, registry: Registry) -> Request:
    offered = of_conversion(registry, request.model, request.family, request.toolchain)
    choices = given_choices(context, *offered)
    return Request.of(request, choices=choices)


def _bundle_folder(request: Request) -> Path:
    return Path(f"{Path(request.model).name}-bundle")


@app.command(context_settings=OWN_OPTIONS)
def build(
    context: typer.Context,
    bundle: BundleFolder,
    toolchain: Annotated[
        str | None,
        typer.Option(
            help="Default: the one the bundle was converted for.", autocompletion=toolchains
        ),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            "--tool", "--pulsar2", help='How the tool is called, e.g. "docker run … pulsar2".'
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a toolchain on a bundle. Toolchains have further options: see `axcore doctor`."""
    invocation = Invocation.of(context)
    registry = invocation.registry()
    options = given_choices(context, *of_toolchain(registry, toolchain))
    with invocation.progress(continues=True) as reporter:
        made = api.build(
            bundle,
            toolchain=toolchain,
            command=tool,
            options=options,
            progress=reporter,
            registry=registry,
        )
    if as_json:
        from ..toolchains.tool import results_in

        return emit({"files": made, "results": results_in(made)})
    for file in made:
        typer.echo(file)
    return None


@app.command()
def verify(
    context: typer.Context, bundle: BundleFolder, images: Images = None, as_json: Json = False
) -> None:
    """Compare a bundle's graphs with PyTorch, stage by stage."""
    invocation = Invocation.of(context)
    with invocation.progress() as reporter:
        results = api.verify(
            bundle, images=images or [], progress=reporter, registry=invocation.registry()
        )
    if as_json:
        return emit(results)
    for result in results:
        rows = [("STAGE", "COSINE", "MAX ABS")]
        rows += [(s.stage, f"{s.cosine:.9f}", f"{s.max_abs:.3g}") for s in result.stages]
        rows += [
            (f"output {o.output}", f"{o.cosine:.9f}", f"{o.max_abs:.3g}") for o in result.outputs
        ]
        typer.echo(
            f"{result.component}: ONNX Runtime {result.onnx_s:.1f} s,"
            f" PyTorch {result.torch_s:.1f} s"
        )
        table(rows)
    return None


@app.command(context_settings=OWN_OPTIONS)
def lint(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(parser=path, help="ONNX file or bundle folder.")],
    toolchain: Annotated[
        str | None,
        typer.Option(help="Default: that of the bundle, or pulsar2.", autocompletion=toolchains),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check graphs against a chip's operators and what builds showed; exits 1 with findings."""
    registry = Invocation.of(context).registry()
    options = given_choices(context, *of_toolchain(registry, toolchain))
    findings = api.lint(target, toolchain=toolchain, options=options, registry=registry)
    if as_json:
        emit(findings)
    else:
        for finding in findings:
            where = f" in stage {finding.stage}" if finding.stage else ""
            typer.echo(f"{finding.severity}: {finding.file}: {finding.node} ({finding.op}){where}")
            typer.echo(f"  {finding.constraint}: {finding.detail}")
            source = f"source: {finding.source} ({finding.confidence})" if finding.source else ""
            for line in (finding.consequence, finding.remedy, source):
                if line:
                    typer.echo(f"  {line}")
        Invocation.of(context).reporter.say(f"{len(findings)} findings")
    if findings:
        raise typer.Exit(1)


@app.command()
def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Look at everything a conversion depends on; exits 1 when something needs attention."""
    from .doctor import examine

    checks = examine(Invocation.of(context).registry(warn=False))
    if as_json:
        emit(checks)
    else:
        table([(check.status, check.name, check.detail) for check in checks])
        for check in checks:
            if check.remedy:
                typer.echo(f"\nhint ({check.name}): {check.remedy}", err=True)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


def _model(entry: Entry, registry: Registry) -> dict[str, Any]:
    card = entry.card
    return {
        "id": card.id,
        "family": entry.family,
        "distribution": registry.plugins[entry.family].distribution,
        "repo": card.repo,
        "aliases": card.aliases,
        "architectures": card.architectures,
        "licence": card.licence,
        "parameters": card.parameters,
        "choices": dict(card.choices),
        "profiles": dict(card.profiles),
    }


def _next(bundle: Bundle, registry: Registry) -> str:
    """Return what follows a conversion: no command that would fail on this machine."""
    folder, name = bundle.folder, bundle.manifest.toolchain
    if _is_available(registry.toolchains[name]):
        return f"axcore build {folder} --toolchain {name}"
    scripts = [folder / file for file in bundle.manifest.files if file.endswith(".sh")]
    elsewhere = f"{name} is not installed here: run {scripts[0] if scripts else name} where it is"
    if not _builds_layers(bundle, registry):
        return elsewhere
    return f"axcore build {folder} --toolchain onnx (to run it on this machine; {elsewhere})"


def _is_available(toolchain: Toolchain) -> bool:
    """Whether a toolchain can work here; one that cannot even say so cannot."""
    try:
        return toolchain.availability().available
    except Exception:  # `axcore doctor` says what is wrong with it
        return False


def _builds_layers(bundle: Bundle, registry: Registry) -> bool:
    """Whether the embedded toolchain has layer models for a bundle's language model."""
    from ..errors import UnsupportedModel
    from ..language.architectures import described
    from ..runtime.deployment import Deployment

    if bundle.manifest.vision_only:
        return False
    job = Deployment.open(bundle.folder, registry).job
    if "decoder" in registry.hooks_of(job.family):
        return True
    try:
        described(job)
    except UnsupportedModel:
        return False
    return True


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _estimate(item: Estimate) -> tuple[str, str, str]:
    value = f"{item.value:.3g} {item.unit}"
    if item.unit == "B":
        value = size(item.value)
    elif item.unit == "s" and item.value >= _MINUTES_FROM_S:
        value = f"{item.value / 60:.0f} min"
    return f"  {item.subject}", value, item.certainty


def _print_plan(plan: Plan) -> None:
    typer.echo(f"{plan.model} ({plan.family}, task {plan.task}) from {plan.checkpoint}")
    for part in plan.components:
        ports = " → ".join(
            ", ".join(f"{port.name} {list(port.shape)}" for port in side)
            for side in (part.inputs, part.outputs)
        )
        typer.echo(f"\n{part.name}: {ports}")
        typer.echo(
            f"  {part.parameters / 1e6:.1f} M parameters, {part.stages} stages of"
            f" {part.kinds} kinds"
        )
    typer.echo(
        f"\nlanguage model: {plan.rows} rows per image, prompts of up to {plan.max_prompt}"
        f" tokens, {plan.llm.kv_cache_len + 1} positions in all"
    )
    typer.echo("\nfiles")
    table([("  " + file.name, size(file.bytes)) for file in plan.files])
    typer.echo(
        f"\npeak memory about {size(plan.peak_bytes)}, disk {size(plan.disk_bytes)},"
        f" about {plan.seconds:.0f} s on two cores"
    )
    if plan.board.estimates:
        typer.echo("\non the board (foreseen, not measured)")
        table([_estimate(item) for item in plan.board.estimates])
        for item in plan.board.estimates:
            typer.echo(f"  {item.subject}: {item.basis}")
    for note in (*plan.board.notes, *plan.notes):
        typer.echo(f"note: {note}")
    for name, text in plan.prepared_files.items():
        if text.startswith("#!"):
            typer.echo(f"\n{name}\n")
            typer.echo("\n".join(f"  {line}" for line in text.splitlines()))
