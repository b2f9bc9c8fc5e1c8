"""Laws of answers: built, asked, packaged, and held against the model's own class."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api import build, package
from ..errors import UsageError
from .answers import answered, logits, user
from .conversion import CONVERTS
from .prompts import FITS
from .trial import Law, NotApplicable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..language_model import Decoder, LlmCheckpoint, Prompt
    from .trial import Trial

_COUNT = 5  # tokens of an answer
_ALONE = """
import runpy, sys
for name in ("torch", "transformers", "onnx", "pydantic", "typer", "psutil", "scipy", "safetensors",
             "huggingface_hub"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _builds(trial: Trial) -> None:
    options = {"exact": "float32"}
    build(trial.bundle.folder, toolchain="onnx", options=options, registry=trial.registry)


def _answers(trial: Trial) -> None:
    """Text, a picture, two pictures; another picture gives other logits."""
    for name, prompt in _prompts(trial):
        made = answered(trial.runner, prompt, max_new_tokens=_COUNT)
        assert made.token_ids or made.finish_reason == "stop", f"{name}: no token was answered"
    asked = dict(_prompts(trial))
    one, other = (logits(trial.runner, asked[name], ()) for name in ("one picture", "another"))
    assert (one != other).any(), "two different pictures give the same logits"


def _resumes(trial: Trial) -> None:
    """The second turn of a conversation runs only what is new."""
    if not trial.card.profiles[trial.task].last_kv_cache_len:
        raise NotApplicable("a prompt is one chunk: the profile has no `last_kv_cache_len`")
    runner, first = trial.runner, _images()[0]
    runner.forget()
    question = user(first, "what?")
    said = answered(runner, [question], max_new_tokens=_COUNT)
    reply = {"role": "assistant", "content": said.text}
    turn = runner.prepare([question, reply, user("why?")])
    made = answered(runner, turn, max_new_tokens=1)
    rows = max((int(places.max(initial=-1)) for places in turn.places.values()), default=-1)
    if not _crops(trial):  # states come back from the end of a chunk alone
        chunk = runner.deployment.llm.prefill_len
        rows = rows // chunk * chunk - 1
    assert made.reused_tokens > rows, (
        f"the second turn takes {made.reused_tokens} tokens from the caches; the picture ends at"
        f" {rows}"
    )


def _crops(trial: Trial) -> bool:
    """Whether every cache grows by a row per token, so that it can be cut anywhere."""
    job, embedding = trial.whole.job, trial.whole.embedding
    decoder: Decoder = trial.registry.call(trial.family, "decoder", job=job, embedding=embedding)
    return all(cache.grows for layer in decoder.specs for cache in layer.caches)


def _packages(trial: Trial) -> None:
    """The folder for a board answers without what a board lacks."""
    folder = trial.out / "packaged"
    package(trial.bundle.folder, folder, runtime="python", registry=trial.registry)
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(folder / "run.py"), "--image", str(_images()[0]),
         "--prompt", "what?", "--max-new-tokens", str(_COUNT), "--backend", "onnx"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, f"`python run.py` failed\n{done.stderr}"
    here = answered(trial.runner, [user(_images()[0], "what?")], max_new_tokens=_COUNT)
    assert done.stdout.strip() == here.text.strip(), (
        f"packaged, the model answers {done.stdout.strip()!r}, and here {here.text.strip()!r}"
    )


def _text_model(trial: Trial) -> None:
    """The checkpoint that is written for a builder is one that transformers takes as a whole."""
    wanted = trial.whole.llm.checkpoint
    if wanted is None:
        raise NotApplicable("`llm_build_args` returns no checkpoint")
    kind = _causal(wanted)
    from ..language.checkpoint import write_checkpoint
    from ..progress import Silent

    folder = trial.out / "text-model"
    write_checkpoint(trial.whole.job.checkpoint, wanted, folder, Silent())
    _, found = kind.from_pretrained(folder, output_loading_info=True)
    wrong = [
        f"{what.partition('_')[0]}: {', '.join(sorted(map(str, found[what]))[:3])}"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if found.get(what)
    ]
    assert not wrong, "transformers does not take the LlmCheckpoint as it is: " + "; ".join(wrong)


def _causal(wanted: LlmCheckpoint) -> Any:
    try:
        import transformers
    except ImportError:
        raise NotApplicable("transformers is not installed") from None
    architecture = str((wanted.config.get("architectures") or [""])[0])
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise NotApplicable(f"transformers has no `{architecture}`")
    return kind


def _equals(trial: Trial) -> None:
    """Token by token, in float32: text alone, a picture, two pictures."""
    if trial.oracle is None:
        raise NotApplicable("no oracle was given")
    for name, prompt in _prompts(trial):
        made = answered(trial.runner, prompt, max_new_tokens=_COUNT).token_ids
        expected = trial.oracle(trial.checkpoint, prompt, _COUNT)[: len(made)]
        assert made == expected, f"{name}: answers {made}, and the model's own class {expected}"


def _prompts(trial: Trial) -> Iterator[tuple[str, Prompt]]:
    first, second = _images()
    for name, parts in (
        ("text alone", ("what?",)),
        ("one picture", (first, "what?")),
        ("another", (second, "what?")),
        ("two pictures", (first, second, "what?")),
    ):
        try:
            prompt = trial.runner.prepare([user(*parts)])
        except UsageError:
            if name != "two pictures":
                raise
            continue  # a model that takes one says so; the law of prompts has looked at it
        if prompt.input_ids.size <= trial.card.profiles[trial.task].max_prompt:
            yield name, prompt


def _images() -> tuple[Path, Path]:
    from ..calibration import embedded_images

    first, second = embedded_images()[:2]
    return Path(first), Path(second)


BUILDS = Law("layer models are built for this machine", _builds, (FITS.name,))
ANSWERS = Law("it answers to text, a picture and two pictures", _answers, (BUILDS.name,))
LAWS = (
    Law("transformers loads the checkpoint of the language model", _text_model, (CONVERTS.name,)),
    BUILDS,
    ANSWERS,
    Law("a second turn runs what is new alone", _resumes, (ANSWERS.name,)),
    Law("packaged, it answers in a bare environment", _packages, (ANSWERS.name,)),
    Law("answers equal those of the model's own class", _equals, (ANSWERS.name,)),
)
