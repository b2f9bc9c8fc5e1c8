"""Prompts are prepared on boards, where only a few small packages are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from ..bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path

    from ..plugins import Registry

_PREPARE = """
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from axcore import Registry
from axcore.calibration import embedded_images
from axcore.runtime.deployment import Deployment

bundle, *plugin = sys.argv[1:]
deployment = Deployment.open(Path(bundle), Registry([EntryPoint(*plugin, "axcore")]))
parts = [{"type": "image", "image": embedded_images()[0]}, {"type": "text", "text": "what?"}]
message = {"role": "user", "content": parts}
deployment.hook("prepare_prompt", job=deployment.job, messages=[message])
print(*{"torch", "transformers", "pydantic", "typer", "psutil"} & sys.modules.keys())
"""


def check_prompt(bundle: Path, registry: Registry) -> None:
    """Check that the prompt of a converted model is prepared without what a board lacks.

    Args:
        bundle: The bundle; its language model need not be built.
        registry: The plugins, the model's family among them.

    Raises:
        AssertionError: `prepare_prompt` failed, or imported a package that a board lacks.
    """
    family = registry.plugins[Bundle.open(bundle).manifest.model.family]
    done = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(bundle), family.name, family.module],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"preparing a prompt imports {done.stdout}"
