"""Everyday situations: whatever is typed, and wherever axcore runs, no traceback is the answer."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

import axcore as library
from axcore import UsageError
from axcore.cli import app, main
from axcore.cli.explain import explanation_of

from ..bundles import MODEL, Axcore, environment, install
from .test_bad_input import assert_explained

HOSTILE = "\x1b]0;pwned\x07\x1b[31m\x9b31m\u202e[red][/]"
LONG = "n" * 300

# Complete command lines, each of which ends early: at a folder that is not there.
COMMANDS: dict[str, list[str]] = {
    "show": ["nothing"],
    "plan": [MODEL, "--checkpoint", "./nowhere"],
    "convert": [MODEL, "--checkpoint", "./nowhere", "-o", "out"],
    "build": ["nowhere"],
    "verify": ["nowhere"],
    "lint": ["nowhere"],
    "package": ["nowhere", "--runtime", "python", "-o", "out"],
    "run": ["nowhere", "--prompt", "?"],
    "chat": ["nowhere"],
    "quantize gptq": [MODEL, "--checkpoint", "./nowhere", "-o", "out"],
    "evaluate captions": ["nowhere", "--images", "nowhere", "-o", "a.json"],
    "evaluate clip-score": ["nowhere", "--images", "nowhere", "--clip", "nowhere"],
    "evaluate agreement": ["nowhere", "nowhere"],
    "evaluate vision": ["nowhere", "--images", "nowhere"],
    "evaluate throughput": ["nowhere", "-o", "t.csv"],
}
PATHS = ["", LONG, "a.txt/x", "loop/x", "~nouser/x", "caf\udce9", HOSTILE]
VALUES = ["", "nan", "1e999", "9" * 5000, "٣", "caf\udce9", HOSTILE]
PATH_OPTIONS = {
    *("bundle", "target", "first", "second", "files", "model"),
    *("--checkpoint", "--images", "--image", "--video", "--clip", "--tokenizer", "--onnx"),
    *("--features", "--plot", "--text", "--python", "--calibration-archive", "-o"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file and a link that leads to itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def parameters(command: str) -> list[Any]:
    """Return what a command declares to take a value, those of every command aside."""
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    return [p for p in found.params if p.expose_value and not getattr(p, "is_flag", False)]


def with_value(command: str, parameter: Any, value: str) -> list[str]:
    """Return the complete command line with a value in the place of one parameter's."""
    line, option = list(COMMANDS[command]), parameter.opts[0]
    if not option.startswith("-"):
        arguments = [p.name for p in parameters(command) if not p.opts[0].startswith("-")]
        line[arguments.index(parameter.name)] = value
    elif given := [name for name in parameter.opts if name in line]:
        line[line.index(given[0]) + 1] = value
    else:
        line += [option, value]
    return [*command.split(), *line]


def assert_quiet(text: str) -> None:
    """Nothing that a terminal obeys is in what was printed."""
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text), text


# What is typed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_typed_is_explained(axcore: Axcore, place: Path, command: str) -> None:
    """In each argument of each command: fact, remedy, exit code 1 or 2; nothing is written.

    Two values for each argument, every value for some. Oracle: the law; no command line can
    succeed, as its folder is not there.
    """
    before = sorted(place.iterdir())
    for number, parameter in enumerate(parameters(command)):
        values = PATHS if parameter.opts[0] in PATH_OPTIONS else VALUES
        for value in (values[number % 7], values[(number + 3) % 7]):
            outcome = axcore(*with_value(command, parameter, value))
            assert outcome.code in (1, 2), (parameter.opts, value)
            assert re.search(r"error: .+\n\nhint: .", outcome.err, re.S), (parameter.opts, value)
            assert_quiet(outcome.out + outcome.err)
    assert sorted(place.iterdir()) == before


def test_every_command_is_tried() -> None:
    """Oracle: the commands that there are; three others take no value, two are tried elsewhere."""

    def named(group: Any, prefix: str = "") -> Iterator[str]:
        for name, command in group.commands.items():
            nested = hasattr(command, "commands")
            yield from named(command, f"{name} ") if nested else [prefix + name]

    others = {"list-models", "doctor", "plugins list", "plugins new", "plugins check"}
    assert {*named(typer.main.get_command(app))} == COMMANDS.keys() | others


def test_a_log_that_cannot_be_one(axcore: Axcore, place: Path) -> None:
    """A pipe is not waited for, and a log of a hostile name is shown harmlessly."""
    os.mkfifo(place / "pipe")
    for value in ("pipe", "", LONG, "a.txt/x", "loop", f"nowhere/{HOSTILE}"):
        outcome = axcore("list-models", "--log-file", value)
        assert_explained(outcome, "--log-file", code=2)
        assert_quiet(outcome.err)


def test_a_log_has_nothing_that_a_terminal_obeys(axcore: Axcore, place: Path) -> None:
    """Whoever reads it by `cat`; the traceback of the failure included."""
    axcore("show", HOSTILE, "--log-file", "log")
    text = (place / "log").read_text()
    assert "Traceback" in text
    assert_quiet(text)


def test_home_is_meant_by_a_tilde(
    axcore: Axcore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind ``=``, where no shell expands it, and in Python. Oracle: HOME."""
    monkeypatch.setenv("HOME", str(place / "mine"))
    assert f"{place}/mine/x" in axcore("lint", "~/x").err
    assert f"{place}/mine/c" in axcore("plan", MODEL, "--checkpoint=~/c/").err
    with pytest.raises(library.AxcoreError, match=f"{place}/mine/x"):
        library.lint("~/x")


@pytest.mark.parametrize("wrong", ["", "a\0b", b"bytes", 7, None])
def test_what_is_no_path_in_python(wrong: Any) -> None:
    """Of every verb that takes one. Oracle: the law."""
    calls: list[Callable[[], object]] = [
        lambda: library.convert(MODEL, wrong),
        lambda: library.build(wrong),
        lambda: library.verify(wrong),
        lambda: library.load(wrong),
        lambda: library.lint(wrong),
        lambda: library.package(wrong, "out", runtime="python"),
        lambda: library.plan(MODEL, images=[wrong]),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.hint


# Where it runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HOME", "/proc/nobody"), ("HOME", "/dev/null"), ("AXCORE_CACHE", "a.txt")],
)
def test_a_cache_that_cannot_be_written(
    axcore: Axcore, place: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Where it has to be: for a fabricated checkpoint. Oracle: the folder, named by the message."""
    for name in ("AXCORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    outcome = axcore("plan", MODEL, "--weights", "random-tiny")
    assert_explained(outcome, value)
    assert axcore("list-models").code == 0


def test_doctor_sees_a_cache_that_is_no_folder(
    axcore: Axcore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to do about it. Oracle: the file that is in its place."""
    monkeypatch.setenv("AXCORE_CACHE", str(place / "a.txt"))
    (check,) = (c for c in json.loads(axcore("doctor", "--json").out) if c["name"] == "cache")
    assert (check["status"], "AXCORE_CACHE" in check["remedy"]) == ("failed", True)


def test_a_working_folder_that_was_removed(
    axcore: Axcore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by every command at once. Oracle: the folder."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in ("doctor", f"plan {MODEL} --weights random-tiny"):
        assert_explained(axcore(*command.split()), "working folder")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", [k for k in vars(errno) if k in {"EROFS", "EIO", "EMFILE", "EACCES"}]
)
def test_what_the_system_refuses_has_a_remedy(name: str) -> None:
    """What cannot be brought about in a test. Oracle: the error that is explained."""
    number = getattr(errno, name)
    found = explanation_of(OSError(number, os.strerror(number), "/some/file"))
    assert found is not None
    assert found.message == f"/some/file: {os.strerror(number)}"
    assert found.hint


def test_a_bug_keeps_its_traceback() -> None:
    """A file of axcore's own, no file at all, and no error of the system."""
    own = str(Path(library.__file__).parent / "data" / "missing.json")
    for error in (FileNotFoundError(2, "x", own), OSError(22, "Invalid"), OSError("timed out")):
        assert explanation_of(error) is None


def test_a_toolchain_that_fails_when_asked(
    axcore: Axcore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of `doctor` is as ever. Oracle: the exceptions that were written."""
    source = (
        "from axcore import hookimpl\n"
        "class Odd:\n"
        "    name, options, targets = 'odd', {}, {}\n"
        "    target = lint = reads = prepare = build = print\n"
        "    def availability(self): raise SystemExit('no')\n"
        "    def checks(self): return 7\n"
        "@hookimpl\n"
        "def toolchains(): return [Odd()]\n"
    )
    install(tmp_path / "site", "odd", source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    outcome = axcore("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    assert outcome.code == 1
    assert checks["toolchain odd"]["detail"] == "SystemExit: no"
    assert "AttributeError" in checks["odd: checks"]["detail"]
    assert {"toolchain onnx", "memory", "cache"} <= checks.keys()


# Terminals ---------------------------------------------------------------------------------------


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[bytearray]:
    """Have a terminal on standard output and standard error; yield what it gets."""
    leader, follower = pty.openpty()
    got = bytearray()

    def read() -> None:
        while True:
            try:
                got.extend(os.read(leader, 65536))
            except OSError:  # the other end was closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(follower, "w") as out, os.fdopen(os.dup(follower), "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        yield got
        monkeypatch.undo()
    reader.join()
    os.close(leader)


OURS = [
    b"\x1b[31m\x1b[1merror: \x1b[0m",
    b"\x1b[36m\r\nhint: \x1b[0m",
    b"\x1b[33mwarning: ",
    b"\x1b[0m\r\n",
]


def test_no_name_reaches_a_terminal_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model, path, value, file in a folder, plugin: shown, not obeyed.

    Oracle: every byte that a terminal got, axcore's own two colours aside.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    image = folder / f"{HOSTILE.replace('/', '_')}.jpg"
    image.write_bytes(b"no image")
    install(tmp_path / "site", "hostile", f"raise RuntimeError({HOSTILE!r})")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    lines = [
        with_value(command, parameter, HOSTILE)
        for command in COMMANDS
        for parameter in parameters(command)[:1]
    ]
    lines += [["list-models"], ["plugins", "list"], ["doctor"], ["list-models", "--json"],
              ["run", "nowhere", "-p", "?", "--video", str(folder)],
              ["show", HOSTILE, "--verbose"], ["list-models", f"--{HOSTILE}"], [HOSTILE],
              ["evaluate", HOSTILE]]  # fmt: skip
    with terminal(monkeypatch) as got:
        for line in lines:
            monkeypatch.setattr(sys, "argv", ["axcore", *line])
            with pytest.raises(SystemExit):
                main()
    text = bytes(got)
    assert text.count(b"pwned") > len(lines)
    for own in OURS:
        assert own in text
        text = text.replace(own, b"")
    assert b"\x1b" not in text
    assert b"\x07" not in text
    decoded = text.decode()
    assert_quiet(decoded.replace("\r\n", "\n"))


@pytest.mark.parametrize(
    ("redirect", "encoding"), [("", "ascii"), ("<&- >&- 2>&-", "utf-8"), ("| head -0", "utf-8")]
)
def test_streams_that_are_poor_or_closed(place: Path, redirect: str, encoding: str) -> None:
    """Characters are spelt out, and no file takes the place of a closed stream.

    Oracle: a log, which is written while standard error is closed.
    """
    verb = "list-models" if "|" in redirect else "show 鸡"
    script = f"{sys.executable} -m axcore {verb} --log-file log {redirect}"
    environ = {**environment(), "PYTHONIOENCODING": encoding, "COLUMNS": "0", "TERM": "dumb"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=environ, check=False)
    log = (place / "log").read_text()
    assert b"Traceback" not in done.stderr
    if "|" not in redirect:
        assert re.match(r"\S+ \S+ ERROR no installed plugin has a model `鸡`", log)
        assert done.returncode == 1
    if not redirect:
        assert done.stderr.startswith(b"error: no installed plugin has a model `\\u9e21`")


def test_ctrl_c_while_modules_are_imported() -> None:
    """Exit code 130 and not a word. A module that waits stands in for the imports."""
    code = (
        "import sys, types, time, axcore_command\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'axcore':\n"
        "            print('importing', flush=True); time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "axcore_command.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b""
    assert process.returncode == 130
