"""What a piece of code reaches out for: files that it changes, processes, sockets, libraries.

Python tells an audit hook of such events, whichever module causes them. A hook can never be
removed, so there is one, and it does nothing outside `watching`.
"""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# Event to the places of the paths among its arguments that it changes.
CHANGES = {
    "os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,),
    "os.link": (1,), "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,),
    "os.chown": (0,), "os.utime": (0,), "os.setxattr": (0,), "os.removexattr": (0,),
    "os.mkfifo": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1),
    "tempfile.mkstemp": (0,), "tempfile.mkdtemp": (0,),
}  # fmt: skip
REACHES = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "pty.spawn", "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg",
    "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request",
    "http.client.connect", "ftplib.connect", "smtplib.connect", "webbrowser.open",
    "pickle.find_class",
}  # fmt: skip
# torch makes a folder for what it compiles when it is imported, whether it compiles or not.
LIBRARIES = (Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}",)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Watch:
    """What is allowed, and what happened besides.

    Attributes:
        allowed: Folders below which files may be changed.
        foreign: Folders from which nothing may be imported or loaded as a library.
        seen: What happened besides, one line each.
    """

    allowed: tuple[Path, ...]
    foreign: tuple[Path, ...] = ()
    seen: list[str] = field(default_factory=list)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at an event of the interpreter."""
        if event in REACHES:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and _writes(arguments):
            self._changed("open to write", arguments[0])
        elif event in CHANGES:
            # A name beside an open folder (``dir_fd``) is below one that was looked at.
            relative = any(isinstance(value, int) and value >= 0 for value in arguments[1:])
            for place in CHANGES[event]:
                if not (relative and not _absolute(arguments[place])):
                    self._changed(event, arguments[place])
        elif event in ("import", "ctypes.dlopen", "exec"):
            self._loaded(event, arguments)

    def _changed(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return  # an open file was looked at when it was opened
        real = _real(path)
        if real != Path(os.devnull) and not any(real.is_relative_to(root) for root in self.allowed):
            self.seen.append(f"{event} {real}")

    def _loaded(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "exec":
            name = getattr(arguments[0], "co_filename", "")
        else:
            name = arguments[1] if event == "import" and len(arguments) > 1 else arguments[0]
        if isinstance(name, str) and any(Path(name).is_relative_to(r) for r in self.foreign):
            self.seen.append(f"{event} {name}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & WRITES)


def _absolute(path: Any) -> bool:
    return not isinstance(path, int) and path is not None and Path(os.fsdecode(path)).is_absolute()


def _real(path: Any) -> Path:
    """Return the place that is changed: the folder's links are followed, the last part is as is."""
    path = Path(os.fsdecode(path))
    return Path(os.path.realpath(path.parent)) / path.name


_active: list[Watch] = []
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active:
        watch = _active.pop()  # what looking causes is not looked at
        try:
            watch.note(event, arguments)
        finally:
            _active.append(watch)


@contextmanager
def watching(*allowed: Path, foreign: tuple[Path, ...] = ()) -> Iterator[Watch]:
    """Watch the code in this block, of all threads; see `Watch`."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    watch = Watch(
        tuple(Path(os.path.realpath(path)) for path in (*allowed, *LIBRARIES)),
        tuple(Path(os.path.realpath(path)) for path in foreign),
    )
    _active.append(watch)
    try:
        yield watch
    finally:
        _active.clear()
