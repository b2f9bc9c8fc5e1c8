"""`axcore run` and `axcore chat`: ask a bundle."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import api
from ..calibration.images import find_images, read_image
from ..display import stream
from ..errors import AxcoreError, BudgetError, UsageError
from ..language.prompt import Control
from ..limits import PROMPT_CHARS
from .app import OWN_OPTIONS, BundleFolder, Json, app
from .console import emit
from .invocation import INTERRUPTED, Invocation
from .options import backends, given_choices, of_backend, path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from ..language_model import Prompt
    from ..plugins import Registry
    from ..runtime.runner import Answer, Runner
    from ..runtime.sampling import Sampling

Images = Annotated[
    list[Path] | None, typer.Option("--image", parser=path, help="An image; repeatable, in order.")
]
Video = Annotated[
    list[Path] | None,
    typer.Option(parser=path, help="Frames of a video: a folder, or files; repeatable, in order."),
]
Fps = Annotated[float, typer.Option(help="Frames per second of the video.", min=0.01)]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw-prompt", help="Markers in prompt and system message act, as control tokens."
    ),
]
System = Annotated[str | None, typer.Option(help="System message; default: the model's own.")]
Tokens = Annotated[
    int | None, typer.Option("--max-new-tokens", help="Length of an answer at most.", min=1)
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Choose among the k likeliest tokens; 0 for all.")]
TopP = Annotated[float, typer.Option(help="Choose among tokens that make up this probability.")]
Penalty = Annotated[float, typer.Option(help="Above 1, tokens seen before become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
BACKENDS = "onnx (this machine), axengine (a board), torch (the reference), or a plugin's."
KeepVision = Annotated[
    bool,
    typer.Option("--keep-vision", help="Keep the vision side in memory; else opened per picture."),
]
Backend = Annotated[str, typer.Option(help=f"What runs it: {BACKENDS}", autocompletion=backends)]


@app.command(context_settings=OWN_OPTIONS)
def run(
    context: typer.Context,
    bundle: BundleFolder,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to ask.")],
    image: Images = None,
    video: Video = None,
    fps: Fps = 2.0,
    system: System = None,
    raw_prompt: Raw = False,
    max_new_tokens: Tokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    keep_vision: KeepVision = False,
    backend: Backend = "onnx",
    as_json: Json = False,
) -> None:
    """Ask a question about images, and stream the answer.

    Backends may have further options: see `axcore doctor`. Ctrl-C ends the answer early.
    """
    from ..runtime.deployment import Deployment
    from ..runtime.runner import prepare_prompt
    from ..runtime.sampling import Sampling

    invocation = Invocation.of(context)
    registry = invocation.registry()
    options = given_choices(context, *of_backend(registry, backend))
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    images = [read_image(path) for path in image or ()]
    said = Control(prompt) if raw_prompt else prompt
    told = Control(system) if raw_prompt and system else system
    messages = [*_system(told), _message(said, images, _frames(video or ()), fps)]
    asked = prepare_prompt(Deployment.open(bundle, registry), registry, messages)
    runner = _open(invocation, bundle, backend, options, registry, keep_vision, asked)
    answer = _stream(runner, asked, sampling, max_new_tokens, shown=not as_json)
    if as_json:
        emit(_data(answer))
    else:
        _sum_up(answer, runner, invocation)
    if answer.finish_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)


@app.command(context_settings=OWN_OPTIONS)
def chat(
    context: typer.Context,
    bundle: BundleFolder,
    system: System = None,
    raw_prompt: Raw = False,
    max_new_tokens: Tokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    keep_vision: KeepVision = False,
    backend: Backend = "onnx",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each answer as JSON, on a line of stdout.")
    ] = False,
) -> None:
    """Talk to a bundle; Ctrl-C stops an answer, Ctrl-D ends.

    /image FILE gives an image to the next question, /image alone drops those that wait, /reset
    begins anew, /quit ends. Backends may have further options: see `axcore doctor`.
    """
    from ..runtime.sampling import Sampling

    invocation = Invocation.of(context)
    registry = invocation.registry()
    options = given_choices(context, *of_backend(registry, backend))
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    runner = _open(invocation, bundle, backend, options, registry, keep_vision)
    kind = Control if raw_prompt else str
    beginning = _system(kind(system) if system else system)
    talk = _Chat(invocation, runner, beginning, sampling, max_new_tokens, as_json, kind)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # one line that is no text ends no chat
    invocation.reporter.say("/image FILE, /reset, /quit; Ctrl-C stops an answer")
    while (line := _ask()) is not None and line != "/quit":
        try:
            talk.take(line)
        except AxcoreError as error:
            invocation.fail(error)
        except KeyboardInterrupt:
            typer.echo(err=True)


@dataclass
class _Chat:
    """A conversation: its messages so far, and images waiting for the next question."""

    invocation: Invocation
    runner: Runner
    beginning: list[dict[str, Any]]
    sampling: Sampling
    max_new_tokens: int | None
    as_json: bool = False
    kind: type[str] | type[Control] = str

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self.beginning)
        self.images: list[Image] = []

    def take(self, line: str) -> None:
        """Do what a line says; a question that fails leaves the conversation as it was."""
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self.reset()
        elif command == "/image":
            self._show(rest.strip())
        elif command.startswith("/"):
            raise UsageError(f"no command {command}", hint="/image FILE, /reset or /quit")
        elif line.strip():
            self._answer(self.kind(line))

    def _show(self, typed: str) -> None:
        """Have an image wait for the next question, or none any more."""
        self.images = [*self.images, read_image(_pasted(typed))] if typed else []
        self.invocation.reporter.say(f"images for the next question: {len(self.images) or 'none'}")

    def _answer(self, question: str | Control) -> None:
        asked = [*self.messages, _message(question, self.images)]
        try:
            prompt = self.runner.prepare(asked)
            shown = not self.as_json
            answer = _stream(self.runner, prompt, self.sampling, self.max_new_tokens, shown=shown)
        except AxcoreError as error:
            error.hint += self._ways_out(error)
            raise
        if answer.text or answer.finish_reason != "interrupted":  # else it was as good as not asked
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
            self.images = []
        if self.as_json:
            emit(_data(answer), indent=None)
        else:
            _sum_up(answer, self.runner, self.invocation)

    def _ways_out(self, error: AxcoreError) -> str:
        """Return what to do about a refused question, whose images wait for the next one."""
        drop = f"; /image alone drops its images ({len(self.images)})" if self.images else ""
        return drop + ("; /reset begins anew" if isinstance(error, BudgetError) else "")


def _piped() -> str:
    """Read a line of a pipe or file, as long as a prompt may be.

    Raises:
        EOFError: There is none.
        UsageError: It is longer.
    """
    line = sys.stdin.readline(PROMPT_CHARS + 1)
    if not line:
        raise EOFError
    if len(line) > PROMPT_CHARS:
        raise UsageError(
            f"a line of standard input has more than {PROMPT_CHARS} characters",
            hint="split it into several questions",
        )
    return line.rstrip("\n")


def _ask() -> str | None:
    """Read a line; None at the end of input."""
    while True:
        try:
            return input("> ") if sys.stdin.isatty() else _piped()
        except EOFError:
            typer.echo(err=True)
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise typer.Exit(INTERRUPTED) from None
            typer.echo("\nCtrl-D or /quit ends the chat", err=True)


def _pasted(typed: str) -> Path:
    """Return the path that was meant: as it is if it exists, else without a shell's quoting."""
    readings = [typed]
    with contextlib.suppress(ValueError):  # a quote without its other end
        words = shlex.split(typed)
        readings += words if len(words) == 1 else []
    # Unlike those of Path, these raise nothing, whatever was typed.
    paths = [os.path.expanduser(reading) for reading in readings]  # noqa: PTH111
    return Path(next(filter(os.path.lexists, paths), paths[-1]))


def _open(
    invocation: Invocation,
    bundle: Path,
    backend: str,
    options: Mapping[str, str],
    registry: Registry,
    keep_vision: bool,
    ahead: Prompt | None = None,
) -> Runner:
    with invocation.progress() as reporter:
        return api.load(
            bundle,
            backend=backend,
            options=options,
            progress=reporter,
            registry=registry,
            keep_vision=keep_vision,
            ahead=ahead,
        )


def _stream(
    runner: Runner,
    prompt: Prompt,
    sampling: Sampling,
    max_new_tokens: int | None,
    *,
    shown: bool,
) -> Answer:
    """Write an answer as it comes; Ctrl-C ends it early."""
    from ..runtime.runner import Answer

    answer = Answer()
    with contextlib.suppress(KeyboardInterrupt):
        for piece in runner.answer(prompt, sampling, max_new_tokens, answer):
            if shown:
                stream(piece)
    if shown:
        stream("\n")
    return answer


def _message(
    text: str | Control, images: Sequence[Image], frames: Sequence[Image] = (), fps: float = 1.0
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if frames:
        parts.append({"type": "video", "video": frames, "fps": fps})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _frames(sources: Sequence[Path]) -> list[Image]:
    """Return the frames of a video: files as they are given, those of a folder by name."""
    return [frame.load() for source in sources for frame in find_images([source])]


def _system(text: str | Control | None) -> list[dict[str, Any]]:
    return [] if text is None else [{"role": "system", "content": text}]


def _data(answer: Answer) -> dict[str, Any]:
    rates = {"first_token_s": answer.first_token_s, "tokens_per_s": answer.tokens_per_s}
    return asdict(answer) | rates


def _sum_up(answer: Answer, runner: Runner, invocation: Invocation) -> None:
    """Tell lengths and times, and whether the answer lacks its end."""
    load = f" vision side opened in {answer.load_s:.2f} s, then" if answer.load_s > 0.01 else ""
    reused = f" ({answer.reused_tokens} kept)" if answer.reused_tokens else ""
    invocation.reporter.say(
        f"{answer.prompt_tokens} prompt tokens{reused}, {len(answer.token_ids)} new"
        f" ({answer.finish_reason});{load} first token after {answer.first_token_s:.2f} s"
        f" (images {answer.vision_s:.2f} s), then {answer.tokens_per_s:.1f} tokens/s"
    )
    if answer.finish_reason == "context":
        invocation.note(
            f"the answer was cut off: with the prompt it fills all {runner.language.context}"
            " tokens of this build"
        )
