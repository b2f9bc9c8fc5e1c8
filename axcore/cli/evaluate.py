"""`axcore evaluate`: commands that judge a conversion."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..limits import MEASUREMENTS
from ..plain import shown
from .app import OWN_OPTIONS, BundleFolder, Json
from .console import emit, table
from .invocation import Invocation
from .options import backends, given_choices, of_backend, path
from .run import (
    BACKENDS,
    Backend,
    Penalty,
    System,
    Temperature,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..evaluate import Agreement, Judgement, VisionFidelity

evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

ImageFolder = Annotated[
    Path, typer.Option("--images", parser=path, help="Folder of images, archive or image.")
]
Answers = Annotated[list[Path], typer.Argument(parser=path, help="Prediction files, one or more.")]
Common = Annotated[bool, typer.Option("--common", help="Judge the images that are in all files.")]
_AGAINST = "against-"
LISTED = 10


@evaluate_app.callback()
def root() -> None:
    """Judge a conversion: its answers, its vision side, its speed.

    Backends have options of their own, as --device and --dtype of torch (see `axcore doctor`).
    Every command that runs a model takes them, behind the bundle.

    Exits 1 where images were left out or nothing could be done, 2 where the request is wrong.
    """


@evaluate_app.command(context_settings=OWN_OPTIONS)
def captions(
    context: typer.Context,
    bundle: BundleFolder,
    images: ImageFolder,
    out: Annotated[Path, typer.Option("-o", "--out", parser=path, help="Prediction file.")],
    sample: Annotated[int | None, typer.Option(help="Images to draw; default: all.", min=1)] = None,
    seed: Annotated[
        int, typer.Option(help="Of the draw, and of sampling at a temperature.", min=0)
    ] = 1234,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", help="Default: Describe this image in detail."),
    ] = None,
    system: System = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer at most.", min=1)] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    base_names: Annotated[
        bool,
        typer.Option("--base-names", help="Name images by base name, as a reference side does."),
    ] = False,
    backend: Backend = "onnx",
    as_json: Json = False,
) -> None:
    """Ask about every image of a folder; run again it continues.

    Exits 1 where images have no answer; the reasons are in OUT.run.json. Backends may have
    further options, as torch has --device and --dtype: see `axcore doctor`.
    """
    from ..evaluate import Captions, Question, write_captions
    from ..runtime.sampling import Sampling

    invocation = Invocation.of(context)
    registry = invocation.registry()
    options = given_choices(context, *of_backend(registry, backend))
    question = Question(system=system) if prompt is None else Question(prompt, system)
    sampling = Sampling(
        temperature, top_k, top_p, repetition_penalty, seed if temperature else None
    )
    with invocation.progress(continues=True) as reporter:
        file = write_captions(
            bundle,
            images,
            out,
            Captions(question, sampling, max_new_tokens),
            sample=sample,
            seed=seed,
            base_names=base_names,
            backend=backend,
            options=options,
            progress=reporter,
            registry=registry,
        )
    if as_json:
        emit({"file": file.path, "answers": file.answers, "errors": file.errors})
    else:
        typer.echo(f"{file.path}: {len(file.answers)} answers, {len(file.errors)} errors")
    if file.errors:
        raise typer.Exit(1)


@evaluate_app.command("clip-score")
def clip_score(
    context: typer.Context,
    files: Answers,
    images: ImageFolder,
    clip: Annotated[
        Path,
        typer.Option(parser=path, help="Weights: open_clip's file, or a Hugging Face CLIP folder."),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(parser=path, help="Vocabulary of the CLIP; default: beside its weights."),
    ] = None,
    common: Common = False,
    confidence: Annotated[float, typer.Option(help="Level of the interval.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Score answers by CLIP: mean cosine of image and answer; tell whether two files differ.

    Exits 1 where images were left out because they cannot be read.
    """
    from ..evaluate import judge

    with Invocation.of(context).progress() as reporter:
        judged = judge(
            files,
            images,
            clip,
            tokenizer=tokenizer,
            common=common,
            confidence=confidence,
            progress=reporter,
        )
    emit(_judged(files, judged)) if as_json else _print_judged(files, judged)
    if judged.scores.skipped:
        raise typer.Exit(1)


@evaluate_app.command()
def agreement(
    first: Annotated[Path, typer.Argument(parser=path, help="Prediction file.")],
    second: Annotated[Path, typer.Argument(parser=path, help="Prediction file to compare with.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(parser=path, help="tokenizer.json or its folder; default: compare words."),
    ] = None,
    common: Common = False,
    as_json: Json = False,
) -> None:
    """Count equal answers, and show where the others part; no judge is needed."""
    from ..evaluate import agreement as compare
    from ..evaluate import match, read_predictions, tokens_of, words

    answers = match([read_predictions(first), read_predictions(second)], common=common)
    found = compare(answers, tokens_of(tokenizer) if tokenizer else words)
    if as_json:
        return emit({**asdict(found), "equal": found.equal, "share": found.share})
    return _print_agreement(found)


@evaluate_app.command(context_settings=OWN_OPTIONS)
def vision(
    context: typer.Context,
    bundle: BundleFolder,
    images: ImageFolder,
    backend: Annotated[
        str | None,
        typer.Option(help=f"What is compared: {BACKENDS} Default: onnx.", autocompletion=backends),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="Backend that is the reference, any of the same.", autocompletion=backends
        ),
    ] = "torch",
    onnx: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path, help="A quantised file in place of the graph it fits; repeatable."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(parser=path, help="Features from elsewhere: FOLDER/COMPONENT/photo.jpg.npy."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the features of the vision side with a reference, the worst image first.

    Exits 1 where images were left out. Backends may have further options, as torch has --device
    and --dtype: see `axcore doctor`. Those of the reference begin as in --against-device.
    """
    from ..evaluate import measure_vision

    invocation = Invocation.of(context)
    registry = invocation.registry()
    owner, own = of_backend(registry, backend or "onnx")
    of_reference = [_AGAINST + name for name in of_backend(registry, against)[1]]
    options = given_choices(context, owner, [*own, *of_reference])
    if backend and (onnx or features):
        raise UsageError(
            f"--backend {backend} and files to compare were both given",
            hint="give one of --backend, --onnx and --features",
        )
    theirs = {name for name in options if name.startswith(_AGAINST)}
    with invocation.progress() as reporter:
        found = measure_vision(
            bundle,
            images,
            backend=backend or "onnx",
            onnx=onnx or (),
            features=features,
            against=against,
            options={name: value for name, value in options.items() if name not in theirs},
            reference_options={name.removeprefix(_AGAINST): options[name] for name in theirs},
            progress=reporter,
            registry=registry,
        )
    if as_json:
        emit({"results": [_finite(asdict(r)) for r in found.results], "skipped": found.skipped})
    else:
        _print_fidelity(found)
    if found.skipped:
        raise typer.Exit(1)


@evaluate_app.command(context_settings=OWN_OPTIONS)
def throughput(
    context: typer.Context,
    bundle: BundleFolder,
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path, help="Table, as CSV; JSON goes beside it.")
    ],
    image: Annotated[
        Path | None, typer.Option(parser=path, help="An image; default: text alone.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Default: a long essay is asked for.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Prompts at once, as in 1-4,8.")] = "1-10",
    input_lens: Annotated[
        str, typer.Option(help="Prompt lengths in tokens, as in 128,256; default: as it is.")
    ] = "",
    output_len: Annotated[int, typer.Option(help="Tokens of an answer, 2 or more.")] = 256,
    backend: Backend = "onnx",
    mindie_columns: Annotated[
        bool, typer.Option("--mindie-columns", help="Name the columns as MindIE does.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(parser=path, help="PNG, SVG or PDF; default: a PNG beside the table."),
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Measure first-token time, decode time, tokens per second and memory by batch size.

    Backends may have further options, as torch has --device and --dtype: see `axcore doctor`.
    """
    from ..evaluate import measure_throughput
    from ..evaluate.throughput import COLUMNS, PROMPT, cells

    invocation = Invocation.of(context)
    registry = invocation.registry()
    options = given_choices(context, *of_backend(registry, backend))
    with invocation.progress() as reporter:
        done = measure_throughput(
            bundle,
            out,
            image=image,
            prompt=PROMPT if prompt is None else prompt,
            batch_sizes=_numbers("--batch-sizes", batch_sizes),
            input_lens=_numbers("--input-lens", input_lens),
            output_len=output_len,
            backend=backend,
            options=options,
            mindie_columns=mindie_columns,
            plot=None if no_plot else plot or out.parent / f"{out.stem}.png",
            progress=reporter,
            registry=registry,
        )
    emit(done) if as_json else table([COLUMNS, *map(cells, done)])


def _numbers(option: str, text: str) -> list[int]:
    """Return the numbers of a list such as ``1-4,8``."""
    found: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        # Nine digits: a number that has more is no batch and no length.
        if not (match := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)):
            raise UsageError(
                f"{option} {shown(text)} is no list of numbers", hint="write it as in 1-4,8"
            )
        low, high = int(match[1]), int(match[2] or match[1])
        if not 0 <= high - low < MEASUREMENTS - len(found):
            raise UsageError(
                f"{option} {shown(text)} has {'no' if high < low else 'too many'} numbers",
                hint=f"write it as in 1-4,8, with at most {MEASUREMENTS}",
            )
        found += range(low, high + 1)
    return found


# What is printed ---------------------------------------------------------------------------------


def _judged(files: Sequence[Path], judged: Judgement) -> dict[str, Any]:
    scores = judged.scores
    return {
        "means": {str(path): mean for path, mean in zip(files, scores.means, strict=True)},
        "scores": dict(zip(scores.names, scores.values.T.tolist(), strict=True)),
        "skipped": dict(scores.skipped),
        "comparison": judged.comparison,
        "most_different": judged.differences,
    }


def _print_judged(files: Sequence[Path], judged: Judgement) -> None:
    means = zip(files, judged.scores.means, strict=True)
    table([("ANSWERS", "CLIP SCORE"), *((str(path), f"{mean:.6f}") for path, mean in means)])
    typer.echo(f"{len(judged.scores.names)} images, {len(judged.scores.skipped)} left out")
    if judged.comparison is None:
        return
    typer.echo()
    rows = [("MOST DIFFERENT", "FIRST", "SECOND", "DIFFERENCE")]
    rows += [
        (one.name, f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}")
        for one in judged.differences
    ]
    table(rows)
    said: str = judged.comparison.verdict
    if said != "no difference shown":
        said = f"{files[0]} is {said} than {files[1]}"
    typer.echo(f"\n{said} ({judged.comparison.evidence})")


def _print_agreement(found: Agreement) -> None:
    typer.echo(f"{found.equal} of {found.count} answers are equal ({found.share:.1%})")
    if found.divergences:
        rows = [("IMAGE", "TOKEN", "FIRST", "SECOND")]
        rows += [
            (one.name, str(one.position), repr(one.first), repr(one.second))
            for one in found.divergences[:LISTED]
        ]
        table(rows)
    if (more := len(found.divergences) - LISTED) > 0:
        typer.echo(f"and {more} more")


def _print_fidelity(found: VisionFidelity) -> None:
    rows = [("IMAGE", "COMPONENT", "COSINE", "MAX ABS", "SNR [dB]")]
    rows += [
        (one.image, one.component, f"{one.cosine:.6f}", f"{one.max_abs:.3g}", f"{one.snr_db:.2f}")
        for one in found.results
    ]
    table(rows)


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    """Spell what JSON has no numbers for: "inf", "-inf" and "nan"."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in data.items()
    }
