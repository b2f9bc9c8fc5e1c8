"""What holds for every command: how much it says and where, Ctrl-C, completion, JSON."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from axcore import AxcoreError, Registry, api
from axcore.checkpoint import Checkpoint
from axcore.cli import app
from axcore.cli.console import emit
from axcore.runtime.deployment import Deployment

from ..bundles import MODEL, SCHEMA, Axcore, command_line, environment
from .test_bad_input import assert_explained

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


# How much is said --------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_quiet_leaves_data_warnings_and_notes(
    axcore: Axcore, bundle: Path, own_checkpoint: Path, before: bool
) -> None:
    """Progress and what comes next are gone. Oracle: the same conversion without the option."""
    (own_checkpoint / "tokenizer.json").unlink()
    command = command_line(own_checkpoint, bundle)
    loud = axcore(*command)
    quiet = axcore("-q", *command) if before else axcore(*command, "--quiet")
    assert quiet.err == "note: the checkpoint has no tokenizer: it converts, but cannot be run\n"
    assert {"next: ", "note: "} <= {line[:6] for line in loud.err.splitlines()}
    assert quiet.out.partition(" in ")[0] == loud.out.partition(" in ")[0]


def test_errors_are_never_quiet(axcore: Axcore) -> None:
    """Fact and hint, whatever is asked for. Oracle: the same command without the option."""
    assert axcore("show", "nothing", "-q").err == axcore("show", "nothing").err != ""


def test_verbose_shows_tracebacks_and_libraries(
    axcore: Axcore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a nested command, too; the next invocation is as silent as ever.

    Oracle: a message of a logger that stands in for a library's.
    """
    outcome = axcore("show", "nothing", "--verbose")
    assert outcome.err.index("Traceback") < outcome.err.index("PluginNotFound: no installed")
    assert_explained(axcore("show", "nothing"), "no installed plugin has a model `nothing`")

    def known(self: Registry) -> list[Any]:
        logging.getLogger("library").info("looked around")
        return []

    monkeypatch.setattr(Registry, "entries", property(known))
    assert "INFO looked around\n" in axcore("plugins", "list", "-v").err
    assert "looked around" not in axcore("plugins", "list").err


def test_a_log_gets_every_message_with_its_time(
    axcore: Axcore, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Also of a quiet command; a second one adds to it. Oracle: what the terminal got."""
    log = tmp_path / "log.txt"
    told = axcore("--log-file", log, *command_line(checkpoint, bundle), "--prefill-len", 384)
    lines = log.read_text().splitlines()
    assert all(re.match(f"{TIME} [A-Z]+ ", line) for line in lines)
    logged = [line.split(" INFO ", 1)[-1] for line in lines]
    for line in ("export-vision: kept", "checking images: done"):
        assert line in logged
    (following,) = (line for line in told.err.splitlines() if line.startswith("next: "))
    assert following in logged
    axcore("show", "nothing", "--quiet", "--log-file", log)
    added = log.read_text().splitlines()[len(lines) :]
    assert re.fullmatch(f"{TIME} ERROR no installed plugin has a model `nothing`.*", added[0])
    assert "Traceback (most recent call last):" in added


def test_settings_that_make_no_sense(axcore: Axcore, tmp_path: Path) -> None:
    """A log where no file can be, and more and less at once."""
    missing = tmp_path / "nowhere" / "log.txt"
    outcome = axcore("list-models", "--log-file", missing)
    assert_explained(outcome, f"--log-file {missing} cannot be written", code=2)
    outcome = axcore("-q", "list-models", "-v")
    assert (outcome.code, outcome.out) == (2, "")
    assert "error: --quiet and --verbose contradict each other" in outcome.err


# Ctrl-C ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "command", "continues"),
    [
        ("convert", ["convert", MODEL], True),
        ("build", ["build", "bundle"], True),
        ("plan", ["plan", MODEL], False),
        ("verify", ["verify", "bundle"], False),
        ("package", ["package", "bundle", "--runtime", "python"], False),
        ("lint", ["lint", "bundle"], False),
    ],
)
def test_ctrl_c_says_whether_the_same_command_continues(
    axcore: Axcore, monkeypatch: pytest.MonkeyPatch, verb: str, command: list[str], continues: bool
) -> None:
    """Exit code 130 and no traceback. A stand-in for the verb is interrupted at once.

    Oracle: the guide, which says what is kept.
    """

    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, verb, interrupted)
    outcome = axcore(*command)
    remedy = "; run the same command again to continue" if continues else ""
    assert (outcome.code, outcome.out, outcome.err) == (130, "", f"interrupted{remedy}\n")


# Options that are misspelt -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        (f"convert {MODEL} --weights random-full --imagez photos", "--images"),
        (f"plan {MODEL} --weights random-full --chipp AX650", "--chip"),
        (f"convert {MODEL} --weights random-full --no-verifi", "--no-verify"),
        ("build nowhere --weight-tipe s8", "--weight-type"),
        ("build nowhere --toolchain onnx --dynamic-bach", "--dynamic-batch"),
        ("lint nowhere --toolchian onnx", "--toolchain"),
        ("run nowhere -p ? --imgae cat.jpg", "--image"),
        ("chat nowhere --backend torch --divice cuda", "--device"),
        ("evaluate captions nowhere --images nowhere -o a.json --sede 1", "--seed"),
        ("evaluate vision nowhere --images nowhere --against-divice npu", "--against-device"),
    ],
)
def test_a_misspelt_option_is_named_first(axcore: Axcore, command: str, nearest: str) -> None:
    """Before a checkpoint is made or a bundle is looked for, which would fail otherwise."""
    (misspelt,) = re.findall(r"--\S*(?:imagez|chipp|verifi|tipe|bach|toolchian|imgae|ivice|sede)",
                             command)  # fmt: skip
    outcome = axcore(*command.split())
    assert_explained(outcome, f"has no option {misspelt}", f"did you mean {nearest}?", code=2)


# Completion --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("show qwen2.5-vl-", {"qwen2.5-vl-3b", "qwen2.5-vl-7b"}),
        ("convert x --toolchain pul", {"pulsar2"}),
        ("run x --backend tor", {"torch"}),
        ("doct", {"doctor"}),
    ],
)
def test_a_shell_completes(typed: str, offered: set[str]) -> None:
    """Commands, models, toolchains, backends. Oracle: what is installed."""
    code = "import sys; sys.argv = ['axcore']; from axcore.cli import main; main()"
    words = {"COMP_WORDS": f"axcore {typed}", "COMP_CWORD": str(len(typed.split()))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**environment(), **words, "_AXCORE_COMPLETE": "complete_bash"},
    )  # fmt: skip
    assert set(done.stdout.split()) == offered, done.stderr


# JSON --------------------------------------------------------------------------------------------


def test_every_command_has_a_schema() -> None:
    """Each that takes ``--json``; all but the parts that they share. Oracle: the commands."""
    import typer

    def named(group: Any, prefix: str = "") -> list[str]:
        found = []
        for name, command in group.commands.items():
            nested = hasattr(command, "commands")
            takes_json = any("--json" in option.opts for option in command.params)
            assert nested or takes_json, name
            found += named(command, f"{name} ") if nested else [prefix + name]
        return found

    assert {*named(typer.main.get_command(app)), "model", "manifest"} == set(SCHEMA["$defs"])


def test_characters_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a name that is no text, and where the encoding lacks them. Oracle: json."""
    emit(["鸡蛋"])
    assert capsys.readouterr().out == '[\n  "鸡蛋"\n]\n'
    emit(["caf\udce9"], indent=None)
    assert capsys.readouterr().out == '["caf\\udce9"]\n'
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        emit(["鸡蛋"])
    assert json.loads((tmp_path / "out").read_bytes()) == ["鸡蛋"]


# System ------------------------------------------------------------------------------------------


def test_another_system_is_refused(
    axcore: Axcore, checkpoint: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every command but the help, and by the library. A name stands in for the system."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert_explained(axcore("list-models"), "axcore runs on Linux; this is darwin")
    assert axcore("--help").code == 0
    with pytest.raises(AxcoreError, match="runs on Linux"):
        Checkpoint.open(checkpoint)
    with pytest.raises(AxcoreError, match="runs on Linux"):
        Deployment.open(finished, Registry())
