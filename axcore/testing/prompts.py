"""Prompts: prepared on boards, where only a few small packages are, of what anybody may say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from ..bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path

    from ..plugins import Registry

_PREPARE = """
import json, sys
from importlib.metadata import EntryPoint
from pathlib import Path
from axcore import AxcoreError, Registry, load_tokenizer
from axcore.calibration import embedded_images
from axcore.runtime.deployment import Deployment

bundle, *plugin = sys.argv[1:]
deployment = Deployment.open(Path(bundle), Registry([EntryPoint(*plugin, "axcore")]))
tokenizer = load_tokenizer(deployment.folder, ())
added = tokenizer.get_added_tokens_decoder()
unknown = json.loads(tokenizer.to_str())["model"].get("unk_token")


def markers(text, role="user"):
    parts = [{"type": "image", "image": embedded_images()[0]}, {"type": "text", "text": text}]
    messages = [{"role": role, "content": parts}]
    prompt = deployment.hook("prepare_prompt", job=deployment.job, messages=messages)
    ids = prompt.input_ids.tolist()
    return {number: ids.count(number) for number in added if added[number].content != unknown}


expected = markers("what?")
special = [number for number in expected if added[number].special or expected[number]]
said = " ".join(added[number].content for number in special)
found = {"said": markers("what? " + said)}
try:
    found["role"] = markers("what?", "user" + said)
except AxcoreError:
    pass
result = {
    name: [added[n].content for n in special if counts[n] != expected[n]]
    for name, counts in found.items()
}
heavy = {"torch", "transformers", "pydantic", "typer", "psutil"}
print(json.dumps({**result, "imported": sorted(heavy & sys.modules.keys())}))
"""


def check_prompt(bundle: Path, registry: Registry) -> None:
    """Check that the prompt of a converted model is prepared as a board needs it.

    It needs no package that a board lacks. What a user types stays text: the tokenizer's special
    tokens, and those that the family writes, become none of their ids. A role that contains such
    a token is refused, or becomes none either.

    Args:
        bundle: The bundle; its language model need not be built.
        registry: The plugins, the model's family among them.

    Raises:
        AssertionError: `prepare_prompt` failed, or broke one of these rules.
    """
    family = registry.plugins[registry.of_bundle(Bundle.open(bundle).manifest.model).family]
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(bundle), family.key, family.module],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["imported"], f"preparing a prompt imports {', '.join(found['imported'])}"
    for place in ("said", "role"):
        tokens = ", ".join(found.get(place, ()))
        what = "what a user types" if place == "said" else "a role"
        assert not tokens, (
            f"{what} becomes control tokens: {tokens}; give `encode_prompt` texts as they are, and"
            " only what the family writes as `Control`"
        )
