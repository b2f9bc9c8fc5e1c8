"""Finding, reading and judging images. The oracles are PIL, tarfile and zipfile themselves."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from axcore.calibration import (
    SourceImage,
    check_images,
    embedded_images,
    find_images,
    images,
    members,
    read_image,
)
from axcore.errors import ImageError
from axcore.progress import Silent
from axcore.testing import Recorder

if TYPE_CHECKING:
    from random import Random

PHOTO = Image.open(io.BytesIO(embedded_images()[0].read_bytes())).resize((64, 48))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image(content: bytes, name: str = "image") -> SourceImage:
    return SourceImage(name, lambda: content)


def distinct(count: int) -> list[bytes]:
    """Small photographs that differ from each other."""
    return [encoded(PHOTO.rotate(3 * turn)) for turn in range(count)]


# Find --------------------------------------------------------------------------------------------


def names(found: list[SourceImage], root: Path) -> list[str]:
    return [Path(one.name).relative_to(root).as_posix() for one in found]


def test_a_folder_is_searched_in_natural_order(tmp_path: Path) -> None:
    """Numbers count as numbers, folders are entered, and content decides, not the name."""
    for name in ("img10.png", "img2.png", "sub10/a.png", "sub9/a.png", "img1.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(PHOTO))
    (tmp_path / "notes.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    expected = ["img1.dat", "img2.png", "img10.png", "sub9/a.png", "sub10/a.png"]
    assert names(find_images([tmp_path]), tmp_path) == expected


@given(st.lists(st.from_regex(r"[ab]{0,2}[0-9]{0,3}/?[a-c]?", fullmatch=True)), st.randoms())
def test_the_order_of_sources_does_not_matter(some: list[str], random: Random) -> None:
    """Any names can be compared, and they end in one order however they came in."""
    ordered = sorted(some, key=images._natural)
    random.shuffle(some)
    assert [Path(name) for name in sorted(some, key=images._natural)] == list(map(Path, ordered))


def write_tar(path: Path, mode: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


ARCHIVES = {
    "tar": lambda path, members: write_tar(path, "w:", members),
    "tar.gz": lambda path, members: write_tar(path, "w:gz", members),
    "tar.bz2": lambda path, members: write_tar(path, "w:bz2", members),
    "zip": write_zip,
}


@pytest.mark.parametrize("write", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_are_read_in_place(tmp_path: Path, write: object) -> None:
    """Images of an archive equal those put in; nothing is unpacked, hostile names included."""
    one, two, three = distinct(3)
    members = {"../../img10.png": three, "img2.png": two, "readme": b"text", "/img1.png": one}
    path = tmp_path / "images"
    write(path, members)
    found = {Path(item.name).name: item for item in find_images([path])}
    assert {name: item.read() for name, item in found.items()} == {
        "img1.png": one,
        "img2.png": two,
        "img10.png": three,
    }
    assert [item.name for item in tmp_path.iterdir()] == ["images"]


def test_a_compressed_archive_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive that unpacks to more than is held in memory is refused.

    In a compressed TAR padding counts too; a ZIP unpacks its images alone.
    """
    monkeypatch.setattr(members, "ARCHIVE_BYTES", 100_000)
    monkeypatch.setattr(images, "ARCHIVE_BYTES", 100_000)
    photo = encoded(PHOTO)
    for write, padding in (("tar.gz", bytes(200_000)), ("zip", photo + bytes(200_000))):
        ARCHIVES[write](tmp_path / "bomb", {"zeros": padding, "a.png": photo})
        with pytest.raises(ImageError, match="unpacks to more than"):
            find_images([tmp_path / "bomb"])
    ARCHIVES["zip"](tmp_path / "padded", {"zeros": bytes(200_000), "a.png": photo})
    assert len(find_images([tmp_path / "padded"])) == 1


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04 broken", b"\x1f\x8b broken"])
def test_a_named_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    """What a folder would pass over is an error where it was asked for by name."""
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"file\.png`") as refusal:
        find_images([tmp_path / "file.png"])
    assert refusal.value.hint


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    """Each source has to contribute, so that a misspelt one is noticed."""
    with pytest.raises(ImageError, match="cannot be read"):
        find_images([*embedded_images(), tmp_path / "missing"])
    with pytest.raises(ImageError, match="holds no"):
        find_images([*embedded_images(), tmp_path])


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    """An archive cut between members is damaged, not short."""
    path = tmp_path / "images.tar"
    ARCHIVES["tar"](path, {f"{i}.png": content for i, content in enumerate(distinct(3))})
    path.write_bytes(path.read_bytes()[: 512 + len(distinct(1)[0]) // 2])
    with pytest.raises(ImageError):
        find_images([path])


# Decode ------------------------------------------------------------------------------------------


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_transparency_is_laid_on_white(pixels: np.ndarray) -> None:
    """Oracle: the blend written out in floating point, within rounding."""
    colour, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    loaded = np.asarray(image(encoded(Image.fromarray(pixels))).load(), float)
    assert np.abs(loaded - (alpha * colour + (1 - alpha) * 255)).max() <= 1


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_deep_gray_keeps_the_high_byte(pixels: np.ndarray) -> None:
    """16-bit gray becomes three equal channels; oracle: integer division."""
    loaded = np.asarray(image(encoded(Image.fromarray(pixels))).load())
    assert np.array_equal(loaded, np.repeat((pixels // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """An opaque image means the same in every mode. Oracle: PIL's own conversion."""
    kind = {"CMYK": "JPEG", "PA": "WEBP"}.get(mode, "PNG")
    source = PHOTO.quantize(16) if mode == "P" else PHOTO.convert("L" if mode == "PA" else mode)
    content = encoded(source, kind)
    loaded = image(content).load()
    assert loaded.mode == "RGB"
    assert np.array_equal(loaded, Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_transparent_palette_entry_is_white() -> None:
    """Transparency hides in palettes too."""
    source = Image.new("P", (2, 1))
    source.putpalette([10, 20, 30, 40, 50, 60])
    source.putpixel((1, 0), 1)
    loaded = image(encoded(source, transparency=0)).load()
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(orientation: int) -> None:
    """Each EXIF orientation shows the same image. Oracle: PIL's transpositions, inverted."""
    undo = [
        "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE",
        "ROTATE_270",
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = PHOTO
    if orientation > 1:
        stored = PHOTO.transpose(Image.Transpose[undo[orientation - 2]])
    assert np.array_equal(image(encoded(stored, exif=exif)).load(), PHOTO)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@given(share=st.floats(0, 0.95))
def test_a_truncated_image_is_an_error(kind: str, share: float) -> None:
    """Cut anywhere, a file is refused under its name, never half read."""
    content = encoded(PHOTO, kind)
    with pytest.raises(ImageError, match="`cut` cannot be read"):
        image(content[: int(share * len(content))], "cut").load()


def test_a_huge_image_is_refused_before_it_is_decoded() -> None:
    """30000 x 30000 pixels in a file of a few bytes."""
    header = encoded(Image.new("1", (1, 1)))
    side = (30_000).to_bytes(4, "big")
    ihdr = b"IHDR" + side + side + header[24:29]
    content = header[:12] + ihdr + zlib.crc32(ihdr).to_bytes(4, "big") + header[33:]
    with pytest.raises(ImageError, match="30000 x 30000"):
        image(content).load()


def test_an_image_of_a_prompt_is_a_file_or_an_image(tmp_path: Path) -> None:
    """By path or text, upright; an image is taken as it is but for its mode. Oracle: PIL."""
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, exif=Image.Exif()))
    for source in (path, str(path), PHOTO, PHOTO.convert("RGBA")):
        read = read_image(source)
        assert read.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(PHOTO.convert("RGB")))
    with pytest.raises(ImageError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")


# Check -------------------------------------------------------------------------------------------


def refused(contents: list[bytes]) -> str:
    with pytest.raises(ImageError) as refusal:
        check_images([image(c, f"p{i}") for i, c in enumerate(contents)], 1, Silent())
    return refusal.value.message


def test_the_shipped_photographs_pass() -> None:
    """Real images are refused for nothing, and their number is what was asked for."""
    shipped = embedded_images()
    recorder = Recorder()
    check_images(find_images(shipped), len(shipped), recorder)
    assert recorder.warned == []
    assert recorder.done == recorder.totals
    assert sum(recorder.done.values()) == len(shipped) >= 4


def test_the_shipped_photographs_are_small_and_licensed() -> None:
    """What the package carries: at most 150 KB and 1024 px each, every one with its licence."""
    for path in embedded_images():
        assert path.stat().st_size <= 150_000
        with Image.open(path) as photo:
            assert max(photo.size) <= 1024
        assert f"`{path.name}`" in (path.parent / "LICENSES.md").read_text()


def test_everything_bad_is_named_in_one_message() -> None:
    """Truncated, doubled, plain and noisy images, each with its reason."""
    good = distinct(1)[0]
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)
    bad = [
        good,
        good[:500],
        encoded(PHOTO.rotate(0), compress_level=0),
        encoded(Image.new("RGB", (50, 40), "navy")),
        encoded(Image.fromarray(pixels)),
    ]
    first, *lines = refused(bad).splitlines()
    assert first == "4 of 5 images are unfit for calibration"
    expected = ("`p1` cannot be read", "`p2` has the same pixels as `p0`",
                "`p3` has only one colour", "`p4` is noise")  # fmt: skip
    for line, start in zip(lines, expected, strict=True):
        assert line.strip().startswith(start)


def test_shape_belongs_to_the_pixels() -> None:
    """The same bytes in another shape are another image."""
    pixels = np.tile(np.arange(48, dtype=np.uint8)[:, None], (1, 3))
    shapes = [(4, 12, 3), (12, 4, 3)]
    contents = [encoded(Image.fromarray(pixels.reshape(shape))) for shape in shapes]
    check_images([image(content) for content in contents], 1, Silent())


@given(st.integers(0, 2**32 - 1), st.integers(24, 200), st.integers(24, 200), st.booleans())
def test_noise_is_told_from_a_photograph(seed: int, height: int, width: int, jpeg: bool) -> None:
    """White noise of any size and strength is refused, a noisy photograph is not."""
    random = np.random.default_rng(seed)
    noise = random.normal(128, random.uniform(10, 80), (height, width, 3)).clip(0, 255)
    kind = "JPEG" if jpeg else "PNG"
    assert "is noise" in refused([encoded(Image.fromarray(noise.astype(np.uint8)), kind)])
    photo = np.asarray(PHOTO.resize((width, height))) + random.normal(0, 8, (height, width, 3))
    content = encoded(Image.fromarray(photo.clip(0, 255).astype(np.uint8)), kind)
    check_images([image(content)], 1, Silent())


@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(1, 40), st.integers(1, 40))
def test_one_colour_is_refused(colour: tuple[int, int, int], height: int, width: int) -> None:
    """Any colour, any size, JPEG artefacts included."""
    assert "only one colour" in refused(
        [encoded(Image.new("RGB", (width, height), colour), "JPEG")]
    )


def test_stripes_are_no_noise() -> None:
    """A barcode varies at random in one direction only."""
    row = np.random.default_rng(0).integers(0, 2, 100, np.uint8) * 255
    barcode = Image.fromarray(np.tile(row, (60, 1)))
    rotated = barcode.transpose(Image.Transpose.ROTATE_90)
    check_images([image(encoded(barcode)), image(encoded(rotated))], 1, Silent())


def test_a_long_list_ends_in_a_count() -> None:
    """Twenty bad images are named, the others counted."""
    lines = refused([b"bad"] * 45).splitlines()
    assert len(lines) == 22
    assert lines[-1].strip() == "and 25 more"


def test_few_images_are_said_and_none_is_an_error() -> None:
    """A small set warns with both numbers; an empty one cannot calibrate."""
    recorder = Recorder()
    check_images([image(content) for content in distinct(3)], 4, recorder)
    assert len(recorder.warned) == 1
    assert "3 images" in recorder.warned[0]
    assert "at least 4" in recorder.warned[0]
    with pytest.raises(ImageError, match="there are no images"):
        check_images([], 4, recorder)
