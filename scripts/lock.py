"""Write down the hashes of the tests' set of packages: ``python scripts/lock.py``, which needs uv.

``constraints.txt`` says which versions; this script adds what each of their files must be, for
every system and Python, and what they need in turn. `make` installs with ``--require-hashes``, so a
package that was exchanged on its way, or on the index, is refused.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS, LOCKED = ROOT / "constraints.txt", ROOT / "requirements"
OLDEST = "3.10"

# PyPI's torch for Linux is built for CUDA and needs these libraries, a CPU build none of them.
CUDA = re.compile(r"cuda-|nvidia-|torch==|triton==")

# axcore does not run there.
NOT_HERE = re.compile(r"sys_platform == '(win32|emscripten)'")

# torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl: for CPUs, not on PyPI.
# In a list with those of PyPI, pip would prefer these, because the index tells it their hashes.
TORCH_CPU = """\
torch==2.13.0+cpu \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"""

# It has builds for these alone.
ATHERIS = (
    "atheris ; python_version >= '3.11' and python_version < '3.14'"
    " and sys_platform == 'linux' and platform_machine == 'x86_64'"
)

HEADER = """\
# {what}
# Made of constraints.txt by scripts/lock.py; do not edit.
"""


def main() -> None:
    """Write the files of `LOCKED`."""
    plugins = (
        *ROOT.glob("axcore_plugins_*/pyproject.toml"),
        *ROOT.glob("plugins/*/pyproject.toml"),
    )
    packages = resolved([f"-e {ROOT}[dev]", *(f"-e {path.parent}" for path in sorted(plugins))])
    cuda = [package for package in packages if CUDA.match(package)]
    write(
        "dev", "What the tests run with.", [package for package in packages if package not in cuda]
    )
    write("torch", "torch as on PyPI, and the CUDA libraries that it needs.", cuda)
    write("torch-cpu", "torch for CPUs, where pip finds it.", [TORCH_CPU])
    write("fuzz", "What `make fuzz` needs besides.", resolved([ATHERIS]))


def resolved(wanted: list[str]) -> list[str]:
    """Return a requirement with its hashes for each package that `wanted` takes, sorted."""
    command = [
        *("uv", "pip", "compile", "-", "--universal", "--python-version", OLDEST),
        *("--constraint", str(CONSTRAINTS), "--generate-hashes"),
        *("--no-header", "--no-annotate", "--no-emit-package", "axcore", "--no-python-downloads"),
    ]
    done = subprocess.run(
        command, input="\n".join(wanted), text=True, stdout=subprocess.PIPE, check=True
    )
    packages = re.findall(r"^[a-z0-9].*(?:\n    .*)*", done.stdout, re.MULTILINE)
    return [package for package in packages if not NOT_HERE.search(package)]


def write(name: str, what: str, packages: list[str]) -> None:
    """Write one file."""
    text = HEADER.format(what=what) + "\n".join([*packages, ""])
    (LOCKED / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
