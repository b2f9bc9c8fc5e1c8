"""Keep a program from outliving the process that started it; run by `process.child` as a script.

It starts the program in a process group of its own and waits. When the process that wants the
program ends, by whatever means, the kernel closes its end of a socket: then the group is told to
end, and killed if it does not. A process of its own does this, because nothing in a process
survives SIGKILL; and the kernel's "parent death signal" reaches the program alone, not what that
has started.

It needs few modules of the standard library, so that it starts at once.
"""

import contextlib
import os
import select
import signal
import sys
import time

NUMBER_BYTES = 16
"""Length of what is said over the link: a number, filled up with spaces."""

_POLL_S = 0.02
_NOT_STARTED = 127


class Group:
    """A program, and the process group that it leads.

    Attributes:
        code: How the program ended: its exit code, or -n for signal n. None while it runs.
    """

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        # Python ignores these two, and what is ignored stays so in a program that is started.
        ignored = [signal.SIGPIPE, signal.SIGXFSZ]
        self._id = os.posix_spawn(words[0], words, environment, setpgroup=0, setsigdef=ignored)
        self.code: int | None = None

    def has_ended(self) -> bool:
        """Say whether the program has ended."""
        if self.code is None:
            ended, status = os.waitpid(self._id, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code is not None

    def send(self, number: int) -> bool:
        """Send a signal, 0 for none, and say whether the group has a process left."""
        try:
            os.killpg(self._id, number)
        except ProcessLookupError:
            return False
        return True


def main(link: int, grace_s: float, environment: dict[str, str], words: list[str]) -> int:
    """Run a program to its end and that of its group.

    Args:
        link: A socket. It is told whether the program was started: ``0``, or else an `errno`; and
            at the end the most memory that it took, see `_peak_bytes`. When its other end closes,
            the program is stopped. SIGTERM stops it without grace.
        grace_s: Between SIGTERM and SIGKILL, and for processes that the program leaves behind.
        environment: Variables of the program.
        words: The program, as a path, and its arguments.

    Returns:
        See `Group.code`.
    """
    hurries: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: hurries.append(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # it is for the process that wants the program
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes)
    try:
        group = Group(words, environment)
    except OSError as error:
        _tell(link, error.errno)
        return _NOT_STARTED
    _tell(link, 0)
    while not group.has_ended():
        if link in _readable(link, woken) or hurries:
            group.send(signal.SIGTERM)
            break
        os.read(woken, select.PIPE_BUF)
    deadline = time.monotonic() + grace_s
    while group.send(0) and not hurries and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        group.has_ended()
    group.send(signal.SIGKILL)
    while not group.has_ended():
        time.sleep(_POLL_S)
    assert group.code is not None
    _tell(link, _peak_bytes())
    return group.code


def _readable(*descriptors: int) -> list[int]:
    """Wait until one can be read, or is closed at its other end; return those."""
    waiting = select.poll()  # `select.select` takes no numbers above 1023
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in waiting.poll()]


def _tell(link: int, number: int | None) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more: the loop sees that too
        os.write(link, str(number).encode().ljust(NUMBER_BYTES))


def _peak_bytes() -> int:
    """Return the most memory that one process of the group had, of those that were waited for."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _end_alike(code: int) -> None:
    """End as the program did."""
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left one already
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    descriptors, grace, count, *rest = sys.argv[1:]
    held = [int(number) for number in descriptors.split(",")]
    for descriptor in held:
        os.set_inheritable(descriptor, False)
    variables = dict(pair.split("=", 1) for pair in rest[: int(count)])
    _end_alike(main(held[0], float(grace), {**os.environ, **variables}, rest[int(count) :]))
