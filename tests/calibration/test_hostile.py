"""Hostile images and archives are refused by what they say, before memory or time is spent."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from axcore import Silent
from axcore.calibration import SourceImage, embedded_images, find_archive, find_images, images
from axcore.errors import ImageError
from axcore.limits import JPEG_SCANS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PHOTO = embedded_images()[0].read_bytes()


# Images ------------------------------------------------------------------------------------------


def refusal(content: bytes) -> str:
    with pytest.raises(ImageError, match="`hostile` cannot be read") as caught:
        SourceImage("hostile", lambda: content).load()
    return caught.value.message


def chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int, *before: bytes, rows: int = 1) -> bytes:
    """A transparent PNG that has `rows` of the rows that it says, and chunks before them."""
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(bytes(1 + 4 * width)) for _ in range(rows)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    parts = (head, *before, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", **options)
    return file.getvalue()


def exif(entries: int, size: int) -> bytes:
    """EXIF of many entries that all have the same `size` bytes as their value."""
    table = b"".join(struct.pack("<HHII", 0x1000 + i, 7, size, 8) for i in range(entries))
    ifd = struct.pack("<H", entries) + table + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + size) + bytes(size) + ifd


@pytest.mark.parametrize(
    ("width", "height", "needed"), [(10_000, 10_000, 762), (1, 100_000_000, 762)]
)
def test_pixels_are_bounded_by_the_memory_they_take(width: int, height: int, needed: int) -> None:
    """Oracle: the arithmetic, two copies of four bytes a pixel."""
    assert f"{width} x {height} pixels take {needed} MiB" in refusal(png(width, height))


def test_decoders_that_take_more_have_fewer_pixels() -> None:
    """WebP has two canvases and copies of the frame, a progressive JPEG all its coefficients.

    Oracle: the arithmetic over the sizes that the headers are made to say.
    """
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP")
    webp = bytearray(file.getvalue())
    webp[26:30] = struct.pack("<HH", 6000, 6000)
    assert "6000 x 6000 pixels take 686 MiB" in refusal(bytes(webp))
    progressive = jpeg(progressive=True)
    place = progressive.index(b"\xff\xc2") + 5
    large = progressive[:place] + struct.pack(">HH", 8000, 8000) + progressive[place + 4 :]
    assert "8000 x 8000 pixels take 610 MiB" in refusal(large)


def test_passes_over_a_progressive_jpeg_are_bounded() -> None:
    """A scan of a few bytes goes over all pixels: at the largest size, no more than some."""
    scans = jpeg(progressive=True)
    place = scans.index(b"\xff\xc2") + 5
    large = scans[:place] + struct.pack(">HH", 6000, 6000) + scans[place + 4 : -2]
    last = large[large.rindex(b"\xff\xda") :]
    assert "passes over its pixels" in refusal(large + last * 3 * JPEG_SCANS + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_parts_are_counted(kind: str) -> None:
    """Pillow takes microseconds of Python for each of millions of empty chunks or segments."""
    many = {
        "PNG": png(4, 4, chunk(b"juNk", b"") * 100_001, rows=4),
        "JPEG": jpeg()[:2] + b"\xff\xff" * 50_001 + jpeg()[2:],
    }
    assert "more than 100000 parts" in refusal(many[kind])


def test_exif_is_bounded() -> None:
    """Pillow copies a value once for each entry that points at it: 1 MB becomes gigabytes."""
    long = exif(5_000, 60_000)
    assert "EXIF has more than 64 KiB" in refusal(png(4, 4, chunk(b"eXIf", long), rows=4))
    parts = (long[i : i + 60_000] for i in range(0, len(long), 60_000))
    segments = (b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in parts)
    assert "EXIF has more than 64 KiB" in refusal(jpeg()[:2] + b"".join(segments) + jpeg()[2:])


def test_a_large_image_is_decoded_in_little_memory(tmp_path: Path) -> None:
    """16 megapixels with transparency, in a process that may take 0.2 GB more than its libraries.

    Two copies take 0.13 GB; blending at once takes five. The limit is the system's.
    """
    (tmp_path / "large.png").write_bytes(png(4000, 4000, rows=4000))
    code = (
        "import resource, sys, numpy\n"
        "from PIL import PngImagePlugin, ImageOps, TiffImagePlugin, Image\n"
        "from axcore import read_image\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)\n"
        "print(read_image(sys.argv[1]).size)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "(4000, 4000)\n", done.stderr


# Files and folders -------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_refused_or_passed_over(tmp_path: Path) -> None:
    """A pipe and a device, by name and in a folder. Before, the pipe was waited for for ever."""
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    assert [image.name for image in find_images([tmp_path])] == [str(tmp_path / "photo.jpg")]
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(ImageError, match="a pipe or device"):
            find_images([tmp_path / name])
        with pytest.raises(ImageError, match="a pipe or device"):
            SourceImage.of_file(tmp_path / name).load()
        with pytest.raises(ImageError, match="a pipe or device"):
            _ = SourceImage.of_file(tmp_path / name).sha256


def test_a_folder_of_very_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted before one is opened."""
    monkeypatch.setattr(images, "FOLDER_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(ImageError, match="more than 3 files"):
        find_images([tmp_path])


# Archives ----------------------------------------------------------------------------------------


def header(kind: bytes, size: int, name: str = "member") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(*records: str) -> bytes:
    lines = []
    for record in records:
        size = len(record) + 2
        size += len(str(size + len(str(size))))
        lines.append(f"{size} {record}\n".encode())
    content = b"".join(lines)
    return header(b"x", len(content)) + content + bytes(-len(content) % 512)


def archive_refusals(path: Path) -> list[str]:
    found = []
    for read in (lambda: find_images([path]), lambda: find_archive(str(path), Silent())):
        with pytest.raises(ImageError) as caught:
            read()
        found.append(caught.value.message)
    return found


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_what_a_tar_says_of_a_file_is_bounded(tmp_path: Path, kind: bytes) -> None:
    """A pax header, a global one, a long name and a long link of 1 GB, most of it a hole."""
    path = tmp_path / "a.tar"
    path.write_bytes(header(kind, 1 << 30))
    os.truncate(path, 1 << 30)
    for message in archive_refusals(path):
        assert "says more of itself than is read" in message


@pytest.mark.parametrize(
    "member",
    [
        pax("size=-512") + header(b"0", 0),
        pax("GNU.sparse.major=1", "GNU.sparse.minor=0") + header(b"0", 512) + b"x" * 512,
        pax("GNU.sparse.major=1", "GNU.sparse.minor=0")
        + header(b"0", 1 << 22)
        + b"4000000\n"
        + b"1\n" * (1 << 21),
        pax(f"path={'9' * 5000}") + header(b"0", 0),
        pax("size=x") * 2000,
    ],
    ids=["negative", "sparse", "sparse map", "name", "chain"],
)
def test_a_tar_that_contradicts_itself_is_refused(tmp_path: Path, member: bytes) -> None:
    """Sizes that lead back, maps without end, names that no disk has, headers of headers."""
    path = tmp_path / "a.tar"
    path.write_bytes(member + bytes(10_240))
    archive_refusals(path)


def test_links_and_devices_in_a_tar_are_left_out(tmp_path: Path) -> None:
    """Nothing is opened by the names in an archive. Oracle: the one regular file."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../photo.jpg")
        info.size = len(PHOTO)
        tar.addfile(info, io.BytesIO(PHOTO))
    assert [image.name for image in find_images([path])] == [f"{path}/../../photo.jpg"]
    assert find_archive(str(path), Silent()).samples("Image") == 1


@pytest.mark.parametrize("opener", [gzip.open, bz2.open])
def test_headers_of_a_compressed_tar_are_bounded(
    tmp_path: Path, opener: Callable[..., gzip.GzipFile]
) -> None:
    """Half a kB for each of very many empty files becomes nothing; so does a long hole."""
    path = tmp_path / "a.tar.gz"
    with opener(path, "wb") as file:
        file.write(header(b"0", 1 << 40))
    for message in archive_refusals(path):
        assert "unpacks to more than 256 MiB" in message or "ended before" in message


def test_the_directory_of_a_zip_is_bounded(tmp_path: Path) -> None:
    """One of 9 MB, which says that nothing is in it. Oracle: its size."""
    path = tmp_path / "a.zip"
    path.write_bytes(bytes(9 << 20) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 9 << 20, 0, 0))
    with path.open("r+b") as file:
        file.write(b"PK\3\4")
    for message in archive_refusals(path):
        assert "says more of itself than is read" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_methods_that_set_their_own_memory_are_refused(tmp_path: Path, method: int) -> None:
    """A member says how large the dictionary of LZMA is. They are named."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("photo.jpg", PHOTO)
    with pytest.raises(ImageError, match=r"`photo\.jpg` is neither stored nor deflated"):
        find_images([path])
    with tarfile.open(tmp_path / "a.tar", "w:xz"):
        pass
    with pytest.raises(ImageError, match="xz, which is not read"):
        find_images([tmp_path / "a.tar"])


def test_an_archive_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    """Before, it was waited for for ever."""
    os.mkfifo(tmp_path / "a.tar")
    for message in archive_refusals(tmp_path / "a.tar"):
        assert "a pipe or device" in message
