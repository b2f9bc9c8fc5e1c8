"""Finding ``atc`` and asking CANN what it is."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path

from axcore import ToolchainError
from axcore.toolchain import Tool

_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
_SOURCE = "source the set_env.sh of CANN, e.g. /usr/local/Ascend/ascend-toolkit/set_env.sh"
_REMEDY = (
    f"install the CANN toolkit and {_SOURCE}; or say what starts atc: "
    '--tool "docker run --rm --init -v FOLDER:FOLDER -w FOLDER IMAGE atc"; or copy the bundle to a '
    "machine that has it and run build_ascend.sh there"
)
_INFO_BYTES = 64 << 10  # of a few lines
_ADVICE = "from CANN 8.5 on the operator package of the card must be installed as well"


def find_tool(command: str | None) -> Tool:
    """Look for ``atc``, or for what `command` names in a shell's quoting.

    Raises:
        ToolchainError: It is no program here, or ``atc`` lacks the environment it needs.
    """
    tool = Tool.find("atc", command or "atc", remedy=_REMEDY, advice=_ADVICE)
    home = cann_home()
    # A container brings an environment of its own.
    if home is None and command is None:
        raise ToolchainError(
            f"{tool.words[0]} is here, but {' and '.join(_HOMES)} are not set", hint=_SOURCE
        )
    return replace(tool, version=_version(home) if home else ())


def cann_home() -> Path | None:
    """Return the folder of the CANN toolkit whose environment is set."""
    return next((Path(os.environ[name]) for name in _HOMES if os.environ.get(name)), None)


def _version(home: Path) -> tuple[str, ...]:
    for path in sorted(home.glob("*-linux/ascend_toolkit_install.info")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            said = file.read(_INFO_BYTES).decode(errors="replace")
            if found := re.search(r"^version=(\S{1,100})", said, re.MULTILINE):
                return (f"CANN {found[1]}",)
    return ()
