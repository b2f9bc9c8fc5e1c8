"""`axcore run` and `axcore chat`: ask a bundle."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import api
from ..calibration.pictures import find_pictures, read_picture
from ..errors import AxcoreError, BudgetError, UsageError
from .app import FAMILY_OPTIONS, BundleFolder, Json, _choices, _registry, app
from .console import emit, fail, progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from ..runtime.runner import Answer, Runner
    from ..runtime.sampling import Sampling

Pictures = Annotated[
    list[Path] | None, typer.Option("--image", help="A picture; repeatable, in order.")
]
Video = Annotated[
    list[Path] | None,
    typer.Option(help="Frames of a video: a folder, or files; repeatable, in order."),
]
Fps = Annotated[float, typer.Option(help="Frames per second of the video.", min=0.01)]
System = Annotated[str | None, typer.Option(help="System message; default: the model's own.")]
Tokens = Annotated[
    int | None, typer.Option("--max-new-tokens", help="Length of an answer at most.", min=1)
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Choose among the k likeliest tokens; 0 for all.")]
TopP = Annotated[float, typer.Option(help="Choose among tokens that make up this probability.")]
Penalty = Annotated[float, typer.Option(help="Above 1, tokens seen before become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Backend = Annotated[
    str, typer.Option(help="What runs it: onnx (this machine), axengine (a board), or a plugin's.")
]
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


@app.command(context_settings=FAMILY_OPTIONS)
def run(
    context: typer.Context,
    bundle: BundleFolder,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to ask.")],
    image: Pictures = None,
    video: Video = None,
    fps: Fps = 2.0,
    system: System = None,
    max_new_tokens: Tokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    backend: Backend = "onnx",
    as_json: Json = False,
) -> None:
    """Ask a question about pictures, and stream the answer.

    Backends may have further options: see `axcore doctor`. Ctrl-C ends the answer early.
    """
    sampling = _sampling(temperature, top_k, top_p, repetition_penalty, seed)
    pictures = [read_picture(path) for path in image or ()]
    messages = [*_system(system), _message(prompt, pictures, _frames(video or ()), fps)]
    runner = _open(bundle, backend, _choices(context.args))
    answer = _stream(runner, messages, sampling, max_new_tokens, shown=not as_json)
    if as_json:
        emit(_data(answer))
    else:
        _sum_up(answer, runner)
    if answer.finish_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


@app.command(context_settings=FAMILY_OPTIONS)
def chat(
    context: typer.Context,
    bundle: BundleFolder,
    system: System = None,
    max_new_tokens: Tokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    backend: Backend = "onnx",
) -> None:
    """Talk to a bundle; Ctrl-C stops an answer, Ctrl-D ends.

    /image FILE gives a picture to the next question, /reset begins anew, /quit ends. Backends may
    have further options: see `axcore doctor`.
    """
    sampling = _sampling(temperature, top_k, top_p, repetition_penalty, seed)
    runner = _open(bundle, backend, _choices(context.args))
    talk = _Chat(runner, _system(system), sampling, max_new_tokens)
    typer.echo("/image FILE, /reset, /quit; Ctrl-C stops an answer", err=True)
    while (line := _ask()) is not None and line != "/quit":
        try:
            talk.take(line)
        except AxcoreError as error:
            fail(error)


@dataclass
class _Chat:
    """A conversation: its messages so far, and pictures waiting for the next question."""

    runner: Runner
    beginning: list[dict[str, Any]]
    sampling: Sampling
    max_new_tokens: int | None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self.beginning)
        self.pictures: list[Image] = []

    def take(self, line: str) -> None:
        """Do what a line says; a question that fails leaves the conversation as it was."""
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self.reset()
        elif command == "/image":
            self.pictures.append(read_picture(Path(rest.strip()).expanduser()))
            typer.echo(f"pictures for the next question: {len(self.pictures)}", err=True)
        elif command.startswith("/"):
            raise UsageError(f"no command {command}", hint="/image FILE, /reset or /quit")
        elif line.strip():
            self._answer(line)

    def _answer(self, question: str) -> None:
        asked = [*self.messages, _message(question, self.pictures)]
        try:
            answer = _stream(self.runner, asked, self.sampling, self.max_new_tokens, shown=True)
        except BudgetError as error:
            error.hint += "; /reset begins anew"
            raise
        _sum_up(answer, self.runner)
        if answer.finish_reason == "interrupted" and not answer.text:
            return  # as if it had not been asked
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        self.pictures = []


def _ask() -> str | None:
    """Read a line; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        typer.echo(err=True)
        return None


def _open(bundle: Path, backend: str, options: Mapping[str, str]) -> Runner:
    with progress() as reporter:
        return api.load(
            bundle, backend=backend, options=options, progress=reporter, registry=_registry()
        )


def _stream(
    runner: Runner,
    messages: Sequence[dict[str, Any]],
    sampling: Sampling,
    max_new_tokens: int | None,
    *,
    shown: bool,
) -> Answer:
    """Write an answer as it comes; Ctrl-C ends it early."""
    from ..runtime.runner import Answer

    answer = Answer()
    with contextlib.suppress(KeyboardInterrupt):
        prompt = runner.prepare(messages)
        for piece in runner.answer(prompt, sampling, max_new_tokens, answer):
            if shown:
                typer.echo(piece, nl=False)
                sys.stdout.flush()
    if shown:
        typer.echo()
    return answer


def _message(
    text: str, pictures: Sequence[Image], frames: Sequence[Image] = (), fps: float = 1.0
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    if frames:
        parts.append({"type": "video", "video": frames, "fps": fps})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _frames(sources: Sequence[Path]) -> list[Image]:
    """Return the frames of a video: files as they are given, those of a folder by name."""
    return [frame.load() for source in sources for frame in find_pictures([source])]


def _system(text: str | None) -> list[dict[str, Any]]:
    return [] if text is None else [{"role": "system", "content": text}]


def _sampling(
    temperature: float, top_k: int, top_p: float, repetition_penalty: float, seed: int | None
) -> Sampling:
    from ..runtime.sampling import Sampling

    return Sampling(temperature, top_k, top_p, repetition_penalty, seed)


def _data(answer: Answer) -> dict[str, Any]:
    rates = {"first_token_s": answer.first_token_s, "tokens_per_s": answer.tokens_per_s}
    return asdict(answer) | rates


def _sum_up(answer: Answer, runner: Runner) -> None:
    """Tell lengths and times, and whether the answer lacks its end."""
    reused = f" ({answer.reused_tokens} kept)" if answer.reused_tokens else ""
    typer.echo(
        f"{answer.prompt_tokens} prompt tokens{reused}, {len(answer.token_ids)} new"
        f" ({answer.finish_reason}); first token after {answer.first_token_s:.2f} s"
        f" (pictures {answer.vision_s:.2f} s), then {answer.tokens_per_s:.1f} tokens/s",
        err=True,
    )
    if answer.finish_reason == "context":
        typer.echo(
            f"note: the answer was cut off: with the prompt it fills all {runner.language.context}"
            " tokens of this build",
            err=True,
        )
