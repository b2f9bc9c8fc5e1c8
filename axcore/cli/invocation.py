"""State of one invocation, the same for all commands: how much is shown, and where."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..display import for_people, printable
from ..errors import UsageError
from ..plugins import Registry
from ..progress import Silent
from .console import fail
from .options import path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..errors import AxcoreError
    from ..progress import Progress, Task

INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended
_LOG = logging.getLogger("axcore")
_LOG.addHandler(logging.NullHandler())
_LOG.setLevel(logging.INFO)
_LOG.propagate = False  # the terminal shows axcore's own messages already


class Invocation:
    """The state of one invocation, kept on the context of typer; options set it.

    Attributes:
        quiet: Whether only errors and warnings are shown.
        verbose: Whether log messages of libraries and tracebacks of expected failures are shown.
        log_file: Every message is appended to this file, with a timestamp.
    """

    def __init__(self) -> None:
        self.quiet, self.verbose = False, False
        self.log_file: Path | None = None
        self._logging = ExitStack()  # undoes what `configure` did to the loggers

    @staticmethod
    def of(context: typer.Context) -> Invocation:
        """Return the state of the invocation that a context belongs to."""
        return context.ensure_object(Invocation)

    def __enter__(self) -> Invocation:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Log the bug that ended the invocation, if one did, and close the log."""
        if isinstance(error, Exception):
            _LOG.error("%s", error, exc_info=error)
        self._logging.close()

    def configure(self, name: str, value: Any) -> None:
        """Set an attribute to the value of an option, and direct the messages accordingly.

        Raises:
            UsageError: The log file cannot be written, or both quiet and verbose are set.
        """
        setattr(self, name, value)
        self.__dict__.pop("reporter", None)
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose contradict each other", hint="give one of them")
        self._logging.close()
        root = logging.getLogger()
        if self.verbose or self.log_file:
            # With a handler on the root logger, Python no longer prints warnings of libraries.
            level = logging.INFO if self.verbose else logging.WARNING
            self._attach(logging.StreamHandler(sys.stderr), level, root)
            self._logging.callback(root.setLevel, root.level)
            root.setLevel(logging.INFO)
        if self.log_file:
            self._attach(_log_handler(self.log_file), logging.INFO, root, _LOG)

    def _attach(self, handler: logging.Handler, level: int, *loggers: logging.Logger) -> None:
        handler.setFormatter(_Formatter())
        handler.setLevel(level)
        self._logging.callback(handler.close)
        for logger in loggers:
            logger.addHandler(handler)
            self._logging.callback(logger.removeHandler, handler)

    @cached_property
    def reporter(self) -> Progress:
        """Where messages and long work go: the terminal, and the log."""
        return _Logged(for_people(), self.quiet)

    @contextmanager
    def progress(self, *, continues: bool = False) -> Iterator[Progress]:
        """Yield the reporter; end with 130 where Ctrl-C is pressed.

        Args:
            continues: Whether the same command, run again, continues where it was interrupted.
        """
        try:
            yield self.reporter
        except KeyboardInterrupt:
            self.interrupted("; run the same command again to continue" if continues else "")

    def interrupted(self, remedy: str = "") -> NoReturn:
        """Print that Ctrl-C ended the command, and exit with 130."""
        _LOG.error("interrupted%s", remedy)
        typer.echo(f"interrupted{remedy}", err=True)
        raise typer.Exit(INTERRUPTED) from None

    def registry(self, *, warn: bool = True) -> Registry:
        """Return the installed plugins; with `warn`, print a warning for each set aside."""
        registry = Registry()
        _ = registry.entries, registry.toolchains
        for problem in registry.problems if warn else ():
            self.reporter.warn(f"plugin {problem.plugin} is set aside: {problem.error}")
        return registry

    def note(self, message: str) -> None:
        """Print a note on a result; `quiet` does not hide it."""
        _LOG.warning("%s", message)
        typer.echo(f"note: {message}", err=True)

    def fail(self, error: AxcoreError) -> None:
        """Print an expected failure; `verbose` prints its traceback first."""
        _LOG.error("%s", error.message, exc_info=error)
        if self.verbose:
            traceback.print_exception(error)
        fail(error)


class _Logged:
    """A `Progress` whose messages go into the log, too; where it is quiet, people see warnings."""

    def __init__(self, shown: Progress, quiet: bool) -> None:
        self._warnings, self._shown = shown, Silent() if quiet else shown

    def say(self, message: str) -> None:
        """Pass on and log a message."""
        _LOG.info("%s", message)
        self._shown.say(message)

    def warn(self, message: str) -> None:
        """Pass on and log a warning."""
        _LOG.warning("%s", message)
        self._warnings.warn(message)

    @contextmanager
    def task(self, label: str, total: float, unit: str = "") -> Iterator[Task]:
        """Pass on a task, and log its beginning and its end."""
        _LOG.info("%s: begins", label)
        with self._shown.task(label, total, unit) as task:
            yield task
        _LOG.info("%s: done", label)


def _log_handler(file: Path) -> logging.Handler:
    try:
        if file.is_fifo():  # opening it waits for a reader
            raise OSError(errno.EINVAL, "it is a pipe")
        return logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"--log-file {file} cannot be written: {error.strerror}",
            hint="name a file in a folder that exists",
        ) from error


class _Formatter(logging.Formatter):
    """A time before each message, in which nothing is left that a terminal obeys."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, its traceback included."""
        return printable(super().format(record))


# Options of every command ------------------------------------------------------------------------


def _configure(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> None:
    if value and not context.resilient_parsing:
        Invocation.of(context).configure(str(parameter.name), value)


def _option(*names: str, **others: Any) -> Any:
    return typer.Option(*names, callback=_configure, expose_value=False, **others)


Quiet = Annotated[bool, _option("--quiet", "-q", help="Show errors and warnings only.")]
Verbose = Annotated[
    bool, _option("--verbose", "-v", help="Also show log messages of libraries, and tracebacks.")
]
LogFile = Annotated[
    Path | None,
    _option("--log-file", parser=path, help="Append every message to this file, with a timestamp."),
]


class Root(TyperGroup):
    """The group of all commands. Options that set the `Invocation` work behind a command, too."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        shared = [parameter for parameter in self.params if not parameter.expose_value]
        _extend(self.commands.values(), shared)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; if Ctrl-C ends it, print that."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            Invocation.of(ctx).interrupted()


def _extend(commands: Iterable[Any], parameters: Sequence[Any]) -> None:
    for command in commands:
        if isinstance(command, TyperGroup):
            _extend(command.commands.values(), parameters)
        else:
            command.params.extend(parameters)
