"""`axcore run` and `axcore chat`: ask a bundle."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import api
from ..errors import AxcoreError, UsageError
from .app import BundleFolder, Json, _registry, app
from .console import emit, fail, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..runtime.runner import Answer, Runner
    from ..runtime.sampling import Sampling

Pictures = Annotated[
    list[Path] | None, typer.Option("--image", help="A picture; repeatable, in order.")
]
Video = Annotated[
    list[Path] | None,
    typer.Option(help="Frames of a video: a folder, or files; repeatable, in order."),
]
Fps = Annotated[float, typer.Option(help="Frames per second of the video.")]
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
FRAMES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@app.command()
def run(
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
    """Ask a question about pictures, and stream the answer."""
    sampling = _sampling(temperature, top_k, top_p, repetition_penalty, seed)
    message = _message(prompt, image or [], video or [], fps)
    messages = [*_system(system), message]
    runner = _open(bundle, backend)
    answer = _stream(runner, messages, sampling, max_new_tokens, shown=not as_json)
    if as_json:
        emit(_data(answer))
    else:
        typer.echo(_summary(answer), err=True)


@app.command()
def chat(
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

    /image FILE gives a picture to the next question, /reset begins anew, /quit ends.
    """
    sampling = _sampling(temperature, top_k, top_p, repetition_penalty, seed)
    talk = _Chat(_open(bundle, backend), _system(system), sampling, max_new_tokens)
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
        self.pictures: list[Path] = []

    def take(self, line: str) -> None:
        """Do what a line says; a question that fails leaves the conversation as it was."""
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self.reset()
        elif command == "/image":
            path = Path(rest.strip()).expanduser()
            if not path.is_file():
                raise UsageError(f"no file {path}", hint="write /image and the path of a picture")
            self.pictures.append(path)
        elif command.startswith("/"):
            raise UsageError(f"no command {command}", hint="/image FILE, /reset or /quit")
        elif line.strip():
            self._answer(line)

    def _answer(self, question: str) -> None:
        asked = [*self.messages, _message(question, self.pictures, [], 1.0)]
        answer = _stream(self.runner, asked, self.sampling, self.max_new_tokens, shown=True)
        typer.echo(_summary(answer), err=True)
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        self.pictures = []


def _ask() -> str | None:
    """Read a line; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        typer.echo(err=True)
        return None


def _open(bundle: Path, backend: str) -> Runner:
    with progress() as reporter:
        return api.load(bundle, backend=backend, progress=reporter, registry=_registry())


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
    prompt = runner.prepare(messages)
    with contextlib.suppress(KeyboardInterrupt):
        for piece in runner.answer(prompt, sampling, max_new_tokens, answer):
            if shown:
                typer.echo(piece, nl=False)
                sys.stdout.flush()
    if shown:
        typer.echo()
    return answer


def _message(
    text: str, pictures: Sequence[Path], video: Sequence[Path], fps: float
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
    if video:
        parts.append({"type": "video", "video": _frames(video), "fps": fps})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _frames(sources: Sequence[Path]) -> list[Path]:
    """Return the frames of a video: files as they are given, those of a folder by name."""
    found: list[Path] = []
    for source in sources:
        inside = sorted(source.iterdir()) if source.is_dir() else [source]
        found += [path for path in inside if path.suffix.lower() in FRAMES or path == source]
    if not found:
        raise UsageError(
            f"no frames in {', '.join(map(str, sources))}",
            hint=f"give a folder with files of type {', '.join(FRAMES)}",
        )
    return found


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


def _summary(answer: Answer) -> str:
    reused = f" ({answer.reused_tokens} kept)" if answer.reused_tokens else ""
    return (
        f"{answer.prompt_tokens} prompt tokens{reused}, {len(answer.token_ids)} new"
        f" ({answer.finish_reason}); first token after {answer.first_token_s:.2f} s"
        f" (pictures {answer.vision_s:.2f} s), then {answer.tokens_per_s:.1f} tokens/s"
    )
