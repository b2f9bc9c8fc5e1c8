"""Write ``hooks.md`` from the docstrings of `axcore.hookspecs`: ``python docs/make_hooks.py``."""

from __future__ import annotations

import inspect
from pathlib import Path

from axcore import hookspecs

INTRODUCTION = """\
# The hooks

Written by `docs/make_hooks.py` from `axcore/hookspecs.py`, in pipeline order. A plugin implements
them as module-level functions marked with `@axcore.hookimpl`, taking only the arguments it uses.
[Writing a plugin](plugins.md) shows a whole one.
"""


def text() -> str:
    """Return the page."""
    hooks = [spec for spec in vars(hookspecs).values() if hasattr(spec, "axcore_spec")]
    sections = [INTRODUCTION]
    for hook in hooks:
        names = ", ".join(inspect.signature(hook).parameters)
        body = inspect.getdoc(hook) or ""
        returned = inspect.signature(hook).return_annotation
        required = "" if hook.axcore_spec["firstresult"] else " from every plugin"
        sections.append(
            f"## {hook.__name__}({names})\n\n{_markdown(body)}\n\nReturns `{returned}`{required}.\n"
        )
    return "\n".join(sections)


def _markdown(docstring: str) -> str:
    """Turn a Google-style docstring into Markdown: its sections become lists."""
    lines = []
    for line in docstring.replace("``", "`").splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Yields:"):
            lines.append(f"**{line[:-1]}**\n")
        elif line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            plain = not colon or " " in name
            lines.append(line.strip() if plain else f"- `{name}`: {rest}")
        else:
            lines.append(line.strip())
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("hooks.md").write_text(text(), encoding="utf-8")
