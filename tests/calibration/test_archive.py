"""Calibration archives used as they are: found, fetched, counted, refused."""

from __future__ import annotations

import hashlib
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from axcore import Silent
from axcore.calibration import find_archive
from axcore.errors import DownloadError, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMBERS = ("set/1.JPEG", "set/2.png", "set/notes.txt", "3.npy")


def archive(path: Path) -> Path:
    """Write an archive of `MEMBERS` whose kind is told by its suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name in MEMBERS:
                zipped.writestr(name, b"content")
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name in MEMBERS:
            info = tarfile.TarInfo(name)
            info.size = 7
            tar.addfile(info, BytesIO(b"content"))
    return path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        """Promise more than comes where the path asks for it."""
        if keyword == "Content-Length" and "short" in self.path:
            value = str(int(value) + 1)
        super().send_header(keyword, value)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine that serves ``tmp_path/web``; the cache is temporary."""
    monkeypatch.setenv("AXCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    handler = partial(_Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_samples_are_counted_by_their_names(tmp_path: Path, name: str) -> None:
    """Images for one format, arrays for the others. Oracle: what was put in."""
    path = archive(tmp_path / name)
    found = find_archive(str(path), Silent())
    assert (found.path, found.source) == (path, str(path))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.samples("Image") == 2
    assert found.samples("Numpy") == found.samples("NumpyObject") == 1


def test_an_archive_is_fetched_once(server: str, tmp_path: Path) -> None:
    """The second time the cache serves, also offline. Oracle: the bytes, the file removed."""
    path = archive(tmp_path / "web" / "imagenet-calib.tar")
    url = f"{server}/imagenet-calib.tar?download=true"
    first = find_archive(url, Silent())
    assert first.path.name == "imagenet-calib.tar"
    assert first.path.read_bytes() == path.read_bytes()
    assert first.source == url
    path.unlink()
    assert find_archive(url, Silent()) == first


@pytest.mark.parametrize(
    ("host", "name", "evidence"),
    [
        ("", "absent.tar", "404"),
        ("", "short.tar", "10240 of 10241 bytes received"),
        ("http://127.0.0.1:9", "any.tar", "cannot be fetched"),  # nothing listens there
    ],
)
def test_what_cannot_be_fetched_leaves_nothing(
    server: str, tmp_path: Path, host: str, name: str, evidence: str
) -> None:
    """An absent and a truncated file, and no network. Oracle: what the server was made to do."""
    archive(tmp_path / "web" / "short.tar")
    with pytest.raises(DownloadError, match=evidence) as caught:
        find_archive(f"{host or server}/{name}", Silent())
    assert "fetch it elsewhere" in caught.value.hint
    assert f"--calibration-archive {name}" in caught.value.hint
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "content", "evidence"),
    [
        ("a.rar", b"", "does not end in .tar, .tar.gz, .zip"),
        ("a.tar", None, "No such file"),
        ("a.tar", b"no archive", "cannot be read"),
        ("a.zip", b"no archive", "neither a TAR nor a ZIP"),
    ],
)
def test_what_is_no_archive_is_refused(
    tmp_path: Path, name: str, content: bytes | None, evidence: str
) -> None:
    """Oracle: the file made."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=evidence):
        find_archive(str(tmp_path / name), Silent())


def test_an_archive_without_fitting_samples_is_refused(tmp_path: Path) -> None:
    """The message says what was looked for and what is there. Oracle: the one member."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("1.npy", b"")
    found = find_archive(str(tmp_path / "a.zip"), Silent())
    with pytest.raises(ImageError, match=r"\.jpg or \.jpeg or \.png") as caught:
        found.samples("Image")
    assert "found: 1.npy" in caught.value.message
