"""What the commands print, and where."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from axcore import Options, Registry, plan

from ..bundles import (
    FORMATS,
    IMAGES,
    MODEL,
    STEM,
    Axcore,
    Outcome,
    command_line,
    contents,
    environment,
    install,
)


def data_of(outcome: Outcome, code: int = 0) -> Any:
    """Return what was printed as JSON; there must be nothing else on standard output."""
    assert outcome.code == code, outcome.err
    return json.loads(outcome.out)


# A graph of somebody else: a Neg, which the chip lacks, and a Resize in a mode it lacks.
FOREIGN = """<ir_version: 8, opset_import: ["": 17]>
foreign (float[1, 3, 8, 8] image) => (float[1, 3, 16, 16] resized)
<float[4] scales = {1, 1, 2, 2}, float three = {3}> {
    [turn] tangent = Tan(image)
    [grow] large = Resize<mode="cubic">(tangent, , scales)
    [root] resized = Pow(large, three)
}"""


@pytest.fixture
def broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed distribution whose plugin does not import."""
    install(tmp_path, "broken", "import a_module_that_is_not_there\n", "1.2")
    monkeypatch.syspath_prepend(tmp_path)
    return "a_module_that_is_not_there"


def weight_bytes(bundle: Path) -> int:
    """Return the bytes of weights beside a graph.

    Tables of positions lie there too; they do not grow with depth, and a plan leaves them out.
    """
    graph = onnx.load(bundle / f"{STEM}.onnx", load_external_data=False).graph
    weights = [value for value in graph.initializer if not value.name.startswith("constant_")]
    return sum(int(e.value) for w in weights for e in w.external_data if e.key == "length")


# Models ------------------------------------------------------------------------------------------


def test_list_models(axcore: Axcore) -> None:
    """Text and JSON name the same models. Oracle: the registry."""
    known = [entry.card.id for entry in Registry().entries]
    text = axcore("list-models")
    heading, *rows = text.out.splitlines()
    assert heading.split() == ["MODEL", "FAMILY", "REPOSITORY", "TASKS", "PARAMETERS", "LICENCE"]
    assert [row.split()[0] for row in rows] == known
    assert [entry["id"] for entry in data_of(axcore("list-models", "--json"))] == known
    assert {MODEL, "qwen2.5-vl-7b"} <= set(known)


def test_show(axcore: Axcore) -> None:
    """By alias, in text and JSON. Oracle: the card."""
    text = axcore("show", "qwen25vl-3b").out
    for fact in ("Qwen/Qwen2.5-VL-3B-Instruct", "task image", "448x448 px", "task video", "1023"):
        assert fact in text
    data = data_of(axcore("show", "qwen25vl-3b", "--json"))
    assert data["id"] == MODEL
    assert data["profiles"]["video"]["prefill_len"] == 128
    assert data["profiles"]["video"]["published"]["prefill_len"] == 512


# Plan --------------------------------------------------------------------------------------------


def test_a_plan_is_a_dry_run(axcore: Axcore, checkpoint: Path, tmp_path: Path) -> None:
    """`plan --json`, `convert --dry-run --json` and `axcore.plan` agree; nothing is written.

    Oracle: each other, and the folder.
    """
    convert = command_line(checkpoint, tmp_path / "out")
    planned = data_of(axcore("plan", *convert[1:], "--json"))
    assert planned == data_of(axcore(*convert, "--dry-run", "--json"))
    options = Options(embedding_formats=FORMATS)
    made = plan(MODEL, checkpoint=str(checkpoint), images=[IMAGES], options=options)
    assert planned["files"] == [{"name": file.name, "bytes": file.bytes} for file in made.files]
    assert planned["peak_bytes"] == made.peak_bytes > 0
    assert planned["seconds"] == made.seconds > 0
    assert not (tmp_path / "out").exists()


def test_a_plan_foretells_the_bundle(
    axcore: Axcore, checkpoint: Path, converted: Path, tmp_path: Path
) -> None:
    """Names, sizes, configurations. Oracle: the bundle made by the same request.

    Single samples and copied files are not planned by name.
    """
    command = command_line(checkpoint, tmp_path / "out")
    planned = data_of(axcore("plan", *command[1:], "--json"))
    sizes = {file["name"]: file["bytes"] for file in planned["files"]}
    copied = {"axcore.json", "config.json", "generation_config.json", "preprocessor_config.json"}
    copied.add("tokenizer.json")
    samples = {name for name in contents(converted) if name.startswith("calib_")}
    assert set(sizes) == set(contents(converted)) - copied - samples
    exact = [name for name in sizes if name.endswith((".bin", ".json", ".sh"))]
    for name in exact:
        assert sizes[name] == (converted / name).stat().st_size, name
    assert sizes[f"{STEM}.onnx.data"] == pytest.approx(weight_bytes(converted), rel=0.01)
    assert planned["disk_bytes"] == sum(sizes.values())
    for name, text in planned["prepared_files"].items():
        assert (converted / name).read_text() == text


def test_a_plan_for_people(axcore: Axcore, checkpoint: Path, tmp_path: Path) -> None:
    """Shapes, files, need and the exact commands. Oracle: the same plan as data."""
    arguments = command_line(checkpoint, tmp_path / "out")[1:]
    text, planned = axcore("plan", *arguments).out, data_of(axcore("plan", *arguments, "--json"))
    assert "hidden_states [1, 3, 1024, 392] → hidden_states_out [256, 64]" in text
    assert "256 rows per image, prompts of up to 512 tokens, 1024 positions" in text
    for file in planned["files"]:
        assert file["name"] in text
    for line in planned["prepared_files"]["build.sh"].splitlines():
        assert line in text


# Convert, verify, lint, build --------------------------------------------------------------------


def test_convert_prints_its_manifest_and_nothing_else(
    axcore: Axcore, bundle: Path, checkpoint: Path
) -> None:
    """Data on stdout, messages on stderr. Oracle: the manifest."""
    outcome = axcore(*command_line(checkpoint, bundle), "--prefill-len", "384", "--json")
    manifest = json.loads((bundle / "axcore.json").read_text())
    assert data_of(outcome) == {"bundle": str(bundle), **manifest}
    for line in ("export-vision: kept", "toolchain: done in"):
        assert line in outcome.err


def test_convert_sums_up_and_says_what_comes_next(
    axcore: Axcore, bundle: Path, own_checkpoint: Path
) -> None:
    """One line on stdout. Oracle: the number of files; the notes of the manifest.

    Pulsar2 is not on this machine, so that its build is proposed for another one.
    """
    (own_checkpoint / "tokenizer.json").unlink()
    outcome = axcore(*command_line(own_checkpoint, bundle))
    (line,) = outcome.out.splitlines()
    files = len(json.loads((bundle / "axcore.json").read_text())["files"])
    assert line.startswith(f"{bundle}: {files} files, ")
    assert f"next: axcore build {bundle} --toolchain onnx (" in outcome.err
    assert f"pulsar2 is not installed here: run {bundle}/build.sh where it is" in outcome.err
    assert "has no tokenizer" in outcome.err


def test_what_comes_next_is_what_this_machine_can_do(
    axcore: Axcore, bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulsar2 where it is (a script stands in for it); no layer models of a vision side alone."""
    arguments = ("--no-verify", "--no-lint")
    alone = ["convert", MODEL, "--checkpoint", checkpoint, "-o", tmp_path / "v", "--vision-only"]
    assert "--toolchain onnx" not in (err := axcore(*alone, *arguments).err)
    assert f"next: pulsar2 is not installed here: run {tmp_path}/v/build.sh where it is\n" in err
    (tmp_path / "pulsar2").write_text("#!/bin/sh\n")
    (tmp_path / "pulsar2").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    outcome = axcore(*command_line(checkpoint, bundle))
    assert f"next: axcore build {bundle} --toolchain pulsar2\n" in outcome.err


def test_a_fabricated_model_by_module(tmp_path: Path, converted: Path) -> None:
    """`python -m axcore` in a process of its own, from nothing, into the default folder.

    Oracle: the shared bundle, whose checkpoint has the same weights in other shards.
    """
    done = subprocess.run(
        [sys.executable, "-m", "axcore", "convert", MODEL, "--weights", "random-tiny", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["bundle"] == f"{MODEL}-bundle"
    assert "no calibration images: give --images before building" in manifest["notes"]
    made = contents(tmp_path / f"{MODEL}-bundle")
    for name in (f"{STEM}.onnx", f"{STEM}.onnx.data", "config.json"):
        assert made[name] == contents(converted)[name]
    begun, ended = "trace vision (6 stages) …", "verify-vision: done in"
    assert done.stderr.index(begun) < done.stderr.index(ended)


def test_verify_shows_every_stage(axcore: Axcore, bundle: Path) -> None:
    """As a table and as data. Oracle: the stages in the manifest."""
    stages = json.loads((bundle / "axcore.json").read_text())["components"][0]["stages"]
    text = axcore("verify", bundle)
    assert text.code == 0
    rows = [line.split() for line in text.out.splitlines()[1:]]
    assert rows[0] == ["STAGE", "COSINE", "MAX", "ABS"]
    assert [row[0] for row in rows[1:]] == stages
    (result,) = data_of(axcore("verify", bundle, "--json"))
    assert [stage["stage"] for stage in result["stages"]] == stages


def test_lint_has_nothing_to_say_of_our_graphs(axcore: Axcore, converted: Path) -> None:
    """A bundle and its file alone. Oracle: the promise of the chip's operator table."""
    for target in (converted, converted / f"{STEM}.onnx"):
        outcome = axcore("lint", target)
        assert (outcome.code, outcome.out) == (0, "")
        assert "0 findings" in outcome.err
        assert data_of(axcore("lint", target, "--json")) == []


def test_lint_of_a_foreign_graph(axcore: Axcore, tmp_path: Path) -> None:
    """Exits with 1 and names node, operator, constraint, remedy. Oracle: the graph's making."""
    foreign = tmp_path / "foreign.onnx"
    onnx.save(onnx.parser.parse_model(FOREIGN), foreign)
    outcome = axcore("lint", foreign)
    assert outcome.code == 1
    assert f"{foreign}: turn (Tan)" in outcome.out.replace("error: ", "")
    assert "grow (Resize)" in outcome.out
    assert "cubic" in outcome.out
    findings = data_of(axcore("lint", foreign, "--json"), code=1)
    assert [(finding["node"], finding["op"]) for finding in findings] == [
        ("turn", "Tan"),
        ("grow", "Resize"),
        ("root", "Pow"),
    ]
    assert all(f["constraint"] and f["remedy"] and f["source"] for f in findings)
    assert [f["confidence"] for f in findings] == ["documentation", "documentation", "build"]
    assert all(f[key] in outcome.out for f in findings for key in ("consequence", "source"))


def test_build_runs_the_tool_and_lists_what_it_made(
    axcore: Axcore, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Pulsar2 checks arguments and files. Oracle: the documented names."""
    tool = tmp_path / "pulsar2"
    standin = Path(__file__).parents[1] / "toolchains/standin_pulsar2.py"
    tool.write_text(f"#!{sys.executable}\n{standin.read_text()}")
    tool.chmod(0o755)
    tool.with_name("settings.json").write_text('{"generation": "llm_build"}')
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the lock of the real tool is no concern of ours
    data = data_of(axcore("build", bundle, "--pulsar2", tool, "--json"))
    made, results = data["files"], data["results"]
    assert (results[STEM]["subgraphs"], results[STEM]["cosine"]) == (1, 0.99871)
    assert str(bundle / f"{STEM}.axmodel") in made
    assert len([name for name in made if "_together" in name or "_post" in name]) == 2 + 1
    again = axcore("build", bundle, "--pulsar2", tool)
    assert again.out.splitlines() == made
    assert "9.3 ms ±10 %" in again.err


# Plugins and doctor ------------------------------------------------------------------------------


def test_plugins_in_use(axcore: Axcore) -> None:
    """Name, version, hooks; as data too. Oracle: what the family implements."""
    text = axcore("plugins", "list").out
    assert "qwen25vl  axcore-plugins-qwen25vl" in text.replace("_", "-")
    (entry,) = [p for p in data_of(axcore("plugins", "list", "--json")) if p["name"] == "qwen25vl"]
    assert entry["status"] == "ok"
    assert {"model_cards", "export_vision", "patch_attention"} <= set(entry["hooks"])


def test_a_broken_plugin_is_named_and_harms_nobody(axcore: Axcore, broken_plugin: str) -> None:
    """Listed with its error, warned of, and a failure for `doctor`. Oracle: the missing module."""
    listed = {entry["name"]: entry for entry in data_of(axcore("plugins", "list", "--json"))}
    assert listed["broken"]["status"] == "set aside"
    assert listed["broken"]["version"] == "1.2"
    assert broken_plugin in listed["broken"]["error"]
    assert listed["qwen25vl"]["status"] == "ok"
    models = axcore("list-models")
    assert models.code == 0
    assert MODEL in models.out
    assert broken_plugin in models.err
    doctor = axcore("doctor")
    assert doctor.code == 1
    assert "plugin broken" in doctor.out
    assert "AXCORE_DISABLE_PLUGINS=broken" in doctor.err


@pytest.mark.parametrize("word", ["doctor", "plugins"])
def test_a_broken_plugin_is_named_whatever_the_arguments(
    axcore: Axcore, broken_plugin: str, word: str
) -> None:
    """A model that is called like a command silences nothing. Oracle: the missing module."""
    outcome = axcore("show", word)
    assert f"no installed plugin has a model `{word}`" in outcome.err
    assert (
        "warning: plugin `broken` (axcore-broken 1.2) is set aside: ModuleNotFoundError: No module"
        f" named '{broken_plugin}'" in outcome.err
    )
    for command in ("doctor", "plugins list"):
        assert "warning: " not in axcore(*command.split()).err


def test_doctor_looks_at_everything(axcore: Axcore) -> None:
    """Packages, plugins, toolchain, machine. Oracle: what is installed here."""
    checks = {check["name"]: check for check in data_of(axcore("doctor", "--json"))}
    for name in ("python", "torch", "plugin qwen25vl", "toolchain pulsar2", "system", "memory"):
        assert checks[name]["detail"], name
    assert checks["torch"]["status"] == "ok"
    text = axcore("doctor")
    assert text.code == 0
    assert all(name in text.out for name in checks)


def test_doctor_asks_toolchains_and_backends(axcore: Axcore, abacus: None) -> None:
    """What else matters to a toolchain, options, and what would make an absent one available.

    The toolchain of a plugin is a stand-in. Oracle: what it says of itself; there is no board.
    """
    outcome = axcore("doctor", "--json")
    found = {check["name"]: check for check in data_of(outcome)}
    rows = {name: (row["status"], row["detail"], row["remedy"]) for name, row in found.items()}
    assert rows["toolchain abacus"] == ("ok", "on the desk (options: --beads, --frame)", "")
    assert rows["abacus: oil"] == ("absent", "not found", "buy some oil")
    assert rows["abacus: rods"] == ("ok", "13", "")
    assert rows["backend onnx"][0] == "ok"
    status, detail, remedy = rows["backend axengine"]
    assert (status, "No module named 'axengine'" in detail) == ("absent", True)
    assert "install pyaxengine on the board" in remedy
    assert all("\n" not in row["detail"] for row in found.values())


# How it looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("no_color", ["1", ""])
def test_colour_on_a_terminal_unless_refused(no_color: str) -> None:
    """``NO_COLOR`` as https://no-color.org has it: set and not empty. Oracle: escape codes."""
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "axcore", "show", "nothing-like-it"],
            stderr=follower,
            stdout=subprocess.DEVNULL,
            check=False,
            env={**environment(), "NO_COLOR": no_color, "TERM": "xterm"},
        )
        text = os.read(leader, 10_000)
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 1
    assert b"error: " in text
    assert (b"\x1b[" in text) is (no_color == "")


def test_expected_failures_show_a_traceback_when_asked(
    axcore: Axcore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``AXCORE_TRACEBACK``. Oracle: the exception itself comes through."""
    from axcore import PluginNotFound

    monkeypatch.setenv("AXCORE_TRACEBACK", "1")
    with pytest.raises(PluginNotFound, match="nothing-like-it"):
        axcore("show", "nothing-like-it")


def test_version_and_help(axcore: Axcore) -> None:
    """Every command is listed. Oracle: the README's table, written out by hand."""
    from axcore import __version__

    assert axcore("--version").out == f"axcore {__version__}\n"
    text = axcore("--help").out
    commands = "list-models show plan convert build verify lint run chat package quantize doctor"
    for name in commands.split():
        assert f"\n  {name} " in text
