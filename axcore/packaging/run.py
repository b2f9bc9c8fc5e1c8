"""Answer a question about pictures with the models in this folder."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the answer to standard output, as it comes; Ctrl-C ends it early."""
    given = parse()
    sys.path.insert(0, str(HERE / "lib"))
    from axcore.errors import AxcoreError

    try:
        with contextlib.suppress(KeyboardInterrupt):
            for piece in answer(given):
                sys.stdout.write(piece)
                sys.stdout.flush()
        sys.stdout.write("\n")
    except AxcoreError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        sys.exit(f"error: {error.message}{hint}")


def parse() -> argparse.Namespace:
    """Return what was given on the command line."""
    compiled = any(HERE.glob("*.axmodel"))
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--prompt", required=True, help="the question")
    add("--image", type=Path, action="append", default=[], help="a picture; may be repeated")
    add("--max-new-tokens", type=int, help="longest answer; default: until the context is full")
    add("--temperature", type=float, default=0.0, help="0 (default): the likeliest token always")
    add("--top-k", type=int, default=0, help="choose from so many tokens; 0 (default): from all")
    add("--top-p", type=float, default=1.0, help="choose from tokens of this probability in all")
    add("--repetition-penalty", type=float, default=1.0, help="above 1 discourages repetition")
    add("--seed", type=int, help="makes an answer repeatable")
    add(
        "--engine",
        choices=("axengine", "onnx"),
        default="axengine" if compiled else "onnx",
        help="what runs the models (default here: %(default)s)",
    )
    return parser.parse_args()


def answer(given: argparse.Namespace) -> Iterator[str]:
    """Yield the answer in pieces."""
    from axcore.plugins import Registry
    from axcore.runtime.runner import Runner
    from axcore.runtime.sampling import Sampling

    sampling = Sampling(
        given.temperature, given.top_k, given.top_p, given.repetition_penalty, given.seed
    )
    runner = Runner.open(HERE, Registry(), given.engine)
    content = [{"type": "image", "image": path} for path in given.image]
    content.append({"type": "text", "text": given.prompt})
    prompt = runner.prepare([{"role": "user", "content": content}])
    yield from runner.answer(prompt, sampling, given.max_new_tokens)


if __name__ == "__main__":
    main()
