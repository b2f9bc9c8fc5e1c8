"""Answer a question about images or a video with the models in this folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
INTERRUPTED = 130  # the exit code by which shells report Ctrl-C


def main() -> None:
    """Stream the answer to standard output; Ctrl-C ends it early."""
    given = parse()
    sys.path.insert(0, str(HERE / "lib"))
    from axcore.errors import AxcoreError, UsageError

    try:
        answer(given)
    except AxcoreError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        from axcore.display import printable

        sys.stderr.write(printable(f"error: {error.message}{hint}\n"))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader has closed the pipe. Flushing at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"error: {error}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    compiled = any(HERE.glob("*.axmodel"))
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    files: dict[str, Any] = {"type": Path, "action": "append", "default": []}
    add("-p", "--prompt", required=True, help="the question")
    add("--image", **files, help="an image; may be repeated")
    add("--video", **files, help="frames of a video: a folder, or files; may be repeated")
    add("--fps", type=float, default=2.0, help="frames per second of the video; default: 2")
    add("--system", help="system message; default: the model's own")
    add(
        "--raw-prompt",
        action="store_true",
        help="markers in prompt and system message act, as control tokens",
    )
    add("--max-new-tokens", type=int, help="longest answer; default: until the context is full")
    add("--temperature", type=float, default=0.0, help="0 (default): always the likeliest token")
    add(
        "--top-k", type=int, default=0, help="choose among the k likeliest tokens; 0 (default): all"
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="choose among the likeliest tokens that reach this probability together",
    )
    add("--repetition-penalty", type=float, default=1.0, help="above 1 discourages repetition")
    add("--seed", type=int, help="makes an answer repeatable")
    add(
        "--backend",
        default="axengine" if compiled else "onnx",
        help="what runs the models (default here: %(default)s)",
    )
    given = parser.parse_args()
    for name, least in (("max_new_tokens", 1), ("fps", 0.01)):
        if (value := getattr(given, name)) is not None and not value >= least:
            parser.error(f"--{name.replace('_', '-')} {value} is out of range: {least} or more")
    return given


def answer(given: argparse.Namespace) -> None:
    """Stream the answer, then print how long it took."""
    from axcore.display import stream
    from axcore.plugins import Registry
    from axcore.runtime.deployment import Deployment
    from axcore.runtime.runner import Answer, Runner, prepare_prompt
    from axcore.runtime.sampling import Sampling

    sampling = Sampling(
        given.temperature, given.top_k, given.top_p, given.repetition_penalty, given.seed
    )
    asked = messages(given)
    registry, said = Registry(), Answer()
    prompt = prepare_prompt(Deployment.open(HERE, registry), registry, asked)
    runner = Runner.open(HERE, registry, given.backend, ahead=prompt)
    with contextlib.suppress(KeyboardInterrupt):
        for piece in runner.answer(prompt, sampling, given.max_new_tokens, said):
            stream(piece)
    stream("\n")
    sys.stderr.write(
        f"{said.prompt_tokens} prompt tokens, {len(said.token_ids)} new ({said.finish_reason});"
        f" first token after {said.first_token_s:.2f} s (images {said.vision_s:.2f} s),"
        f" then {said.tokens_per_s:.1f} tokens/s\n"
    )
    if said.finish_reason == "interrupted":
        sys.exit(INTERRUPTED)


def messages(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the conversation so far, images first."""
    from axcore.calibration.images import find_images, read_image
    from axcore.language.prompt import Control

    said = Control(given.prompt) if given.raw_prompt else given.prompt
    told = Control(given.system) if given.raw_prompt and given.system else given.system
    content: list[dict[str, Any]] = [
        {"type": "image", "image": read_image(path)} for path in given.image
    ]
    if frames := [frame.load() for path in given.video for frame in find_images([path])]:
        content.append({"type": "video", "video": frames, "fps": given.fps})
    content.append({"type": "text", "text": said})
    system = [] if told is None else [{"role": "system", "content": told}]
    return [*system, {"role": "user", "content": content}]


if __name__ == "__main__":
    main()
