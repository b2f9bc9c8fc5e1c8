"""The toy family's checkpoints, and stand-ins for gptqmodel and for a Python that has it."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from axcore import Registry, quantize
from axcore.testing import Recorder

from . import toy

if TYPE_CHECKING:
    from axcore.quantization.gptq import Quantised

LIBRARY = Path(__file__).with_name("standin_library")
GROUP = 32


@dataclass(frozen=True)
class Finished:
    """A run of everything but gptqmodel itself, which a stand-in replaces."""

    source: Path
    out: Path
    result: Quantised
    progress: Recorder


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The toy family alone, whatever is installed."""
    return Registry([EntryPoint("toy", toy.__name__, "axcore")])


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each layout, read only."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: toy.write(name, folder / name) for name in toy.CONFIGS}


@pytest.fixture(scope="session")
def pack() -> Any:
    """The way in which the stand-in for gptqmodel packs a matrix."""
    return runpy.run_path(str(LIBRARY / "gptqmodel/__init__.py"))["pack"]


@pytest.fixture(scope="session")
def finished(
    checkpoints: dict[str, Path], registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """The flat layout quantised to 4 bits; the worker is the real one."""
    out, progress = tmp_path_factory.mktemp("quantised") / "toy", Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(LIBRARY))
        result = quantize(
            str(checkpoints["flat"]), out, group_size=GROUP, python=Path(sys.executable),
            progress=progress, registry=registry,
        )  # fmt: skip
    return Finished(checkpoints["flat"], out, result, progress)


STANDIN_PYTHON = """#!{python}
'''A stand-in for a Python that has gptqmodel: packs zeros, or does what the test says.'''
import json, os, pathlib, sys, time
if sys.argv[1] == "-c":
    sys.exit({lacks_library})
order = json.loads(pathlib.Path(sys.argv[2]).read_text())
print(json.dumps("process " + str(os.getpid())), flush=True)
{then}
if order["task"] == "measure":
    figures = "perplexity_before perplexity_after cosine_mean cosine_min held_out_tokens".split()
    report = dict.fromkeys(figures, 1)
    report.update(worst_weight="w", worst_weight_error={error})
    pathlib.Path(order["report"]).write_text(json.dumps(report))
    sys.exit(0)
import ml_dtypes, numpy, safetensors.numpy
out = pathlib.Path(order["out"]); out.mkdir()
found = dict()
for path in pathlib.Path(order["model"]).glob("*.safetensors"):
    for name, tensor in safetensors.numpy.load_file(path).items():
        stem = name.removesuffix("weight")
        if tensor.ndim == 2 and ".layers." in name:
            rows, columns = tensor.shape
            word, groups = order["bits"], columns // order["group_size"]
            zeros = lambda *shape: numpy.zeros(shape, numpy.int32)
            found[stem + "qweight"] = zeros(columns * word // 32, rows)
            found[stem + "qzeros"] = zeros(groups, rows * word // 32)
            found[stem + "scales"] = numpy.zeros((groups, rows), numpy.float16)
            found[stem + "g_idx"] = zeros(columns)
{change}
safetensors.numpy.save_file(found, out / "model.safetensors")
(out / "config.json").write_text("dict()".replace("dict()", "{{}}"))
said = dict(quant_method="gptq", bits=order["bits"], group_size=order["group_size"])
report = dict.fromkeys(("seconds", "peak_bytes", "device_peak_bytes"), 1)
report.update(calibration_tokens={tokens}, quantization_config=said)
pathlib.Path(order["report"]).write_text(json.dumps(report))
"""


def standin_python(folder: Path, **does: Any) -> Path:
    path = folder / "python"
    told = {"lacks_library": 0, "then": "", "change": "", "error": 0.1, "tokens": 9999, **does}
    path.write_text(STANDIN_PYTHON.format(python=sys.executable, **told))
    path.chmod(0o755)
    return path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A stand-in for a Python that has gptqmodel, far quicker than the real worker."""
    return standin_python(tmp_path)
