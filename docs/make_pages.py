"""Write the pages that repeat what the code declares: ``python docs/make_pages.py``.

``hooks.md`` comes from the docstrings of `axcore.hookspecs`, ``options.md`` from `axcore.Request`
and the installed models and toolchains, ``json.md`` from the schema of what commands print,
``limits.md`` from `axcore.limits`, ``lint.md`` from the rules of the toolchains' targets,
``decoders.md`` from the list of architectures.
"""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import fields
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from axcore import Registry, Request, hookspecs, limits
from axcore.language import architectures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from axcore import Choice

HOOKS = """\
# The hooks

Written by `docs/make_pages.py` from `axcore/hookspecs.py`, in pipeline order. A plugin implements
them as module-level functions marked with `@axcore.hookimpl`, taking only the arguments it uses.
[Writing a plugin](plugins.md) shows a whole one.

This is version {contract} of the contract; plugins written for version {oldest} up to this one run.
A plugin's module says which one it is written for: `{declaration} = {contract}`. Without that it is
taken to be 1.
"""


def hooks() -> str:
    """Return the page about hooks."""
    specs = [spec for spec in vars(hookspecs).values() if hasattr(spec, "axcore_spec")]
    sections = [
        HOOKS.format(
            contract=hookspecs.CONTRACT,
            oldest=hookspecs.OLDEST_CONTRACT,
            declaration=hookspecs.DECLARATION,
        )
    ]
    for hook in specs:
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


BAR = "\\|"  # a bar that does not end a cell of a table

OPTIONS = """\
# Options of a conversion

Written by `docs/make_pages.py` from `axcore/request.py`, the models and the toolchains.
`axcore plan` and `axcore convert` take them on the command line, `axcore.plan` and
`axcore.convert` as keyword arguments, for example
`axcore.convert("foo-vl-1b", "bundle", images="photos", chip="AX650")`.

| command line | Python | meaning | default |
| --- | --- | --- | --- |
"""


def options() -> str:
    """Return the page about the options of a conversion."""
    registry = Registry()
    page = OPTIONS
    hints = get_type_hints(Request)
    for item in fields(Request):
        if not item.metadata or item.name == "model":
            continue
        flag = item.metadata["flag"] or f"--{item.name.replace('_', '-')}"
        flag = f"--no-{item.name}" if item.default is True else flag
        flag += "".join(" " + BAR.join(values) for values in _values(hints[item.name]))
        default = f"`{item.default}`" if isinstance(item.default, (str, int)) else ""
        page += f"| `{flag}` | `{item.name}` | {item.metadata['help']} | {default} |\n"
    for name, toolchain in registry.toolchains.items():
        page += _choices(f"Toolchain `{name}`", toolchain.options)
    for family in dict.fromkeys(entry.family for entry in registry.entries):
        cards = [entry.card for entry in registry.entries if entry.family == family]
        for choices in {str(card.choices): card.choices for card in cards}.values():
            same = ", ".join(f"`{card.id}`" for card in cards if card.choices == choices)
            page += _choices(same, choices)
    return page


def _values(kind: object) -> list[tuple[str, ...]]:
    """Return the words that a field takes, where it takes certain words alone."""
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    words = [part for part in (kind, *kinds) if get_origin(part) is Literal]
    return [get_args(part) for part in words[:1] if len(kinds) == 1 or part is kind]


def _choices(owner: str, choices: Mapping[str, Choice]) -> str:
    if not choices:
        return ""
    rows = [
        f"| `--{name}` | {', '.join(f'`{value}`' for value in choice.values) or 'any value'} |"
        f" {choice.about} |"
        for name, choice in choices.items()
    ]
    head = f"\n## {owner}\n\n| option | values, the default first | meaning |\n"
    head += "| --- | --- | --- |\n"
    return head + "\n".join(rows) + "\n"


JSON = """\
# What `--json` prints

Written by `docs/make_pages.py` from `axcore/data/json.schema.json`, a JSON Schema that comes with
the package: `$defs` has an entry for every command. Data goes to standard output, in UTF-8 with
characters as they are; messages go to standard error. Exit codes are those of the command without
`--json`; where one ends with an error, nothing is printed as data.
"""


def json_output() -> str:
    """Return the page about the output of commands as JSON."""
    text = resources.files("axcore").joinpath("data/json.schema.json").read_text(encoding="utf-8")
    page = JSON
    for name, entry in json.loads(text)["$defs"].items():
        page += f"\n## {name}\n\n" + _described(entry)
    return page


def _described(entry: Mapping[str, Any]) -> str:
    """Describe one entry of the schema: a sentence, and a table of its keys."""
    about = entry.get("description", "")
    if reference := entry.get("$ref", entry.get("items", {}).get("$ref", "")):
        name = reference.rpartition("/")[2]
        about += f" Keys: those of [{name}](#{name})" + (
            "." if "properties" not in entry else ", and:"
        )
    keys = (entry.get("items") or entry).get("properties", {})
    rows = "".join(
        f"| `{key}` | {_kind(key_)} | {key_['description']} |\n" for key, key_ in keys.items()
    )
    head = "\n| key | type | meaning |\n| --- | --- | --- |\n" if rows else ""
    listed = "A list. " if entry.get("type") == "array" else ""
    return f"{listed}{about.strip()}\n{head}{rows}"


def _kind(entry: Mapping[str, Any]) -> str:
    """Return the type of a value; of a list of objects with their keys."""
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    kinds = entry["type"] if isinstance(entry["type"], list) else [entry["type"]]
    keys = entry.get("items", {}).get("properties", {})
    return " or ".join(kinds) + (f" of {', '.join(f'`{key}`' for key in keys)}" if keys else "")


LIMITS = """\
# Limits

Written by `docs/make_pages.py` from `axcore/limits.py`: what is read at most of files that others
wrote. What is larger is refused, by name and before it is read. [Security](security.md) says why.

| limit | at most | of what, and what real files need |
| --- | --- | --- |
"""


def limit_table() -> str:
    """Return the page about limits."""
    nodes = ast.parse(inspect.getsource(limits)).body
    rows = [
        f"| `{at.targets[0].id}` | {_amount(at.targets[0].id)} | {_said(text.value.value)} |\n"
        for at, text in pairwise(nodes)
        if isinstance(at, ast.Assign)
        and isinstance(at.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    ]
    return LIMITS + "".join(rows)


def _said(text: object) -> str:
    return " ".join(str(text).replace("``", "`").replace("|", "\\|").split())


def _amount(name: str) -> str:
    """Return a limit with its unit."""
    value = getattr(limits, name)
    if name.endswith("_S"):
        return f"{value:,} s"
    if not name.endswith("_BYTES"):
        return f"{value:,}"
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))
    size, unit = next(pair for pair in units if value % pair[0] == 0)
    return f"{value // size:,} {unit}"


LINT = """\
# What graphs are checked against

Written by `docs/make_pages.py`; the rules below are those of the toolchains' targets.

Exported graphs are rewritten into forms that builds take, whatever the target: a power of 3 or 5
to 8 is written as multiplications, Reciprocal as a division, Squeeze as Reshape; constants are the
second operand of Add and Mul; reductions name their axes; a vector added to the product of two
computed matrices has the shape `[1, N]`; and every attribute that has a default is written out, as
some front ends know no defaults. The results are the same to the bit (tested under ONNX Runtime),
but for powers above the third, where each multiplication rounds. Layer models are written so, too.

`axcore convert` and `axcore lint` then check what is left, against the published operator table of
the chip and against what builds and devices showed beside it. A finding names the node, the
restriction, what was found, what happens otherwise, what to do, and who says so:

- **severity**: `error` where a build fails or a result is wrong; `warning` where the table does not
  list the operator, the file does not tell, or the build need not fail.
- **confidence**: seen on a `device`, in a real `build` or in the vendor's `simulator`; in its
  `documentation`; or `inferred` from these. None of it was run here.

An observation that a file does not decide, for want of a shape, is passed over; a restriction of
the table is then a warning. The newest of every source counts: where a later table lifts a
restriction it is gone, and the versions in which something was seen stand with the source.
"""


def lint() -> str:
    """Return the page about the lint."""
    page = LINT
    for name, toolchain in Registry().toolchains.items():
        tables = [target.operators for target in toolchain.targets.values()]
        rules = dict.fromkeys(rule for table in tables if table for rule in table.rules)
        if rules:
            page += f"\n## Rules of `{name}`\n\n"
            page += "| operators | rule | severity | otherwise | confidence | source |\n"
            page += "| --- | --- | --- | --- | --- | --- |\n"
        for rule in rules:
            told = (rule.constraint, rule.severity, rule.consequence, rule.confidence, rule.source)
            cells = [", ".join(rule.operators), *(cell.replace("|", BAR) for cell in told)]
            page += f"| {' | '.join(cells)} |\n"
    return page


DECODERS = """\
# Language models that are built here

Written by `docs/make_pages.py` from `axcore/data/architectures.json`. A build whose toolchain has
no builder of language models asks the family's hook `decoder` for layers. Where a family leaves it
out, the default computes the architectures below, by the `model_type` of the language model's part
of `config.json`, or of `Layout.text_model`. Each is tested against transformers' class: the logits
of every token, in one run, in chunks and token by token, in float32, within 1e-4.

Everything else is refused by name when a build begins, never computed in part:

- an architecture that is not listed,
- a field of the config, or of its rotary positions, that is neither read nor known to change
  nothing, and a value that is not implemented,
- rotary positions scaled otherwise than `default`, `linear`, `longrope`, or `dynamic` within the
  trained length,
- a tensor of a layer that the architecture does not have, or one that is missing.

Where one config holds both sides, a field of the vision side is named in `Layout.text_model` with
`None`. An architecture that is not listed takes a hook `decoder` of the family's own.

A layer with a window, or one whose state is not a growing cache (a convolution, a linear
attention), is a `DecoderLayer`. The embedded toolchain builds it; the layer models that a vendor's
builder makes may lack it, which `axcore plan` says.

| `model_type` | oracle | differs from Llama by |
| --- | --- | --- |
"""


def decoders() -> str:
    """Return the page about the default decoder."""
    page = DECODERS
    for name, known in architectures.listed().architectures.items():
        names = ", ".join(f"`{one}`" for one in (name, *known.aliases))
        page += f"| {names} | `{known.oracle}` | {', '.join(_traits(known)) or 'nothing'} |\n"
    page += "\nFields that are read of every config: "
    page += ", ".join(f"`{name}`" for name in architectures.listed().common.read) + ".\n"
    return page


def _traits(known: architectures.Architecture) -> Iterator[str]:
    """Yield how the layers of an architecture differ, in words."""
    told = {
        "norms of queries and keys": known.qk_norm,
        "norms that multiply by 1 + weight": known.zero_centred,
        "norms behind attention and MLP": known.norms != 2,
        "a gate on attention": known.gate,
        "rotation of neighbours": known.pairs == "neighbours",
        "axes of positions in turns": known.interleaved,
        "rows multiplied by the root of their width": known.embedding != "nothing",
    }
    yield from (text for text, applies in told.items() if applies)
    yield from (f"`{name}`" for name in sorted({*known.read} - {*known.neutral}))


PAGES = {
    "decoders.md": decoders,
    "hooks.md": hooks,
    "options.md": options,
    "json.md": json_output,
    "limits.md": limit_table,
    "lint.md": lint,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(__file__).with_name(name).write_text(page(), encoding="utf-8")
