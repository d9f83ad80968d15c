"""Pictures: what is read as it is, what is changed, and what is refused."""

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats import pixels
from synthoma.formats.convert import import_dataset
from synthoma.formats.pixels import PictureReader, PictureSettings, decode
from synthoma.formats.source import Tally

GREY = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5
COLOURS = np.stack([GREY, GREY.T.reshape(6, 8), 255 - GREY], axis=-1)


def reader(colour: str = "auto", *paths: Path) -> tuple[PictureReader, Tally]:
    tally = Tally()
    return PictureReader("csv", PictureSettings(colour=colour), lambda: paths, tally), tally  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pixels_are_exact(tmp_path: Path, suffix: str, dtype: type) -> None:
    values = GREY.astype(dtype) * (1 if dtype == np.uint8 else 256)
    Pillow.fromarray(values).save(tmp_path / f"a.{suffix}")
    read, _, notes = decode(tmp_path / f"a.{suffix}")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read[0], values)
    assert notes == []


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_pixels_are_exact_and_channels_first(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Pillow.fromarray(COLOURS).save(path)
    image, _ = reader("rgb")[0].read(path)
    np.testing.assert_array_equal(image.values, COLOURS.transpose(2, 0, 1))


def test_fractions_in_a_tiff_are_kept_and_gaps_refused(tmp_path: Path) -> None:
    values = GREY.astype(np.float32) / 7
    Pillow.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode(tmp_path / "a.tif")[0][0], values)
    values[1, 1] = np.nan
    Pillow.fromarray(values).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif: 1 pixels not finite"):
        decode(tmp_path / "b.tif")


def test_transparency_is_dropped_and_noted(tmp_path: Path) -> None:
    alpha = np.concatenate([COLOURS, GREY[..., None]], axis=-1)
    Pillow.fromarray(alpha).save(tmp_path / "a.png")
    read, tally = reader("rgb")
    image, _ = read.read(tmp_path / "a.png")
    np.testing.assert_array_equal(image.values, COLOURS.transpose(2, 0, 1))
    assert tally.noted == {"transparency dropped": 1}


def test_a_palette_becomes_colours(tmp_path: Path) -> None:
    picture = Pillow.new("P", (8, 6), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.save(tmp_path / "a.png")
    image, _ = reader("rgb")[0].read(tmp_path / "a.png")
    assert image.values[:, 0, 0].tolist() == [200, 100, 50]


def test_a_camera_turned_by_a_quarter_is_turned_back(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    values, _, notes = decode(tmp_path / "a.png")
    np.testing.assert_array_equal(values[0], np.rot90(GREY, -1))
    assert notes == ["turned upright (EXIF)"]


def test_grey_stored_as_three_channels_becomes_one(tmp_path: Path) -> None:
    Pillow.fromarray(np.stack([GREY] * 3, axis=-1)).save(tmp_path / "a.jpg")
    image, _ = reader("auto", tmp_path / "a.jpg")[0].read(tmp_path / "a.jpg")
    assert image.values.shape == (1, 6, 8)


def test_a_set_with_colours_has_three_channels_throughout(tmp_path: Path) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "a.png")
    Pillow.fromarray(COLOURS).save(tmp_path / "b.png")
    summary = import_dataset(tmp_path, tmp_path / "out", format="folder")
    assert [case.image.values.shape[0] for case in Dataset.open(tmp_path / "out")] == [3, 3]
    assert summary.noted == {"grey repeated to three channels": 1}


def test_a_coloured_image_in_a_grey_set_says_which_setting_to_give(tmp_path: Path) -> None:
    Pillow.fromarray(COLOURS).save(tmp_path / "a.png")
    Pillow.fromarray(GREY).save(tmp_path / "b.png")
    read, _ = reader("auto", tmp_path / "b.png")
    with pytest.raises(
        DataError, match=r"a\.png: .* --set csv.colour=rgb .* --set csv.colour=grey"
    ):
        read.read(tmp_path / "a.png")
    read, tally = reader("grey")
    image, _ = read.read(tmp_path / "a.png")
    assert image.values.shape == (1, 6, 8)
    assert tally.noted == {"colour averaged to grey": 1}


FORMATS_OF_PICTURES = {
    "csv": ("a.png", "cases.csv", "image\na.png\n"),
    "folder": ("a.png", "", ""),
    "yolo": ("images/a.png", "classes.txt", "cell\n"),
    "voc": (
        "JPEGImages/a.png",
        "Annotations/a.xml",
        "<annotation><filename>a.png</filename></annotation>",
    ),
    "coco": (
        "images/a.png",
        "annotations.json",
        '{"images": [{"id": 1, "file_name": "images/a.png"}], "annotations": [], "categories": []}',
    ),
}


@pytest.mark.parametrize("format", FORMATS_OF_PICTURES)
def test_the_setting_that_a_coloured_image_asks_for_is_one_of_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    picture, note, text = FORMATS_OF_PICTURES[format]
    for name in (name for name in (picture, note) if name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(COLOURS).save(tmp_path / picture)
    if note:
        (tmp_path / note).write_text(text)
    monkeypatch.setattr(PictureReader, "_decide", lambda self: 1)  # the others are grey
    with pytest.raises(DataError, match=rf"in colour.* --set {format}\.colour=rgb"):
        import_dataset(tmp_path, tmp_path / "out", format=format)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.png", "not that of a PNG picture"),
        ("a.JPG", "not that of a JPEG picture"),
        ("a.tiff", "not that of a TIFF picture"),
        ("a.gif", r"not a picture; allowed: \.png"),
    ],
)
def test_a_damaged_picture_is_not_told_that_its_suffix_is_wrong(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / name).write_text("no picture")
    with pytest.raises(DataError, match=said) as error:
        decode(tmp_path / name)
    assert ("allowed: .png" in str(error.value)) == (name == "a.gif")


def png_of(width: int, height: int, data: bytes, *, depth: int = 8, kind: int = 0) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + sum_

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_a_picture_that_declares_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_of(60_000, 60_000, zlib.compress(b"\0" * 100)))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"a\.png"):
        decode(tmp_path / "a.png")
    assert time.monotonic() - start < 1


def test_16_bit_colour_is_refused_rather_than_halved(tmp_path: Path) -> None:
    data = zlib.compress(b"".join(b"\0" + bytes(4 * 6) for _ in range(4)))
    (tmp_path / "a.png").write_bytes(png_of(4, 4, data, depth=16, kind=2))
    with pytest.raises(DataError, match="16-bit colour"):
        decode(tmp_path / "a.png")


def test_a_jpeg_of_too_many_scans_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "a.jpg", progressive=True)
    decode(tmp_path / "a.jpg")
    monkeypatch.setattr(pixels, "LIMIT_SCANNED", 6 * 8 * 3)
    with pytest.raises(DataError, match="scans of 8 x 6 pixels"):
        decode(tmp_path / "a.jpg")


def test_a_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    page = Pillow.fromarray(GREY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match="more than one page"):
        decode(tmp_path / "a.tif")


def test_every_broken_picture_is_one_clear_error(tmp_path: Path) -> None:
    """A picture cut or changed anywhere is read or refused, and never anything else."""
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "tif"):
        buffer = io.BytesIO()
        Pillow.fromarray(COLOURS).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        whole = buffer.getvalue()
        path = tmp_path / f"a.{suffix}"
        for i in range(120):
            broken = bytearray(whole[: int(rng.integers(0, len(whole)))] if i % 2 else whole)
            for place in rng.integers(0, max(len(broken), 1), 4 if broken else 0):
                broken[place] = int(rng.integers(0, 256))
            path.write_bytes(broken)
            try:
                decode(path)
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017


def test_a_pipe_or_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for name in ("a.png", "b.png"):
        with pytest.raises(DataError, match="not a regular file"):
            decode(tmp_path / name)


def test_the_import_goes_on_after_broken_files(tmp_path: Path) -> None:
    Pillow.fromarray(GREY).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "page.html").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    summary = import_dataset(tmp_path, tmp_path / "out", format="folder")
    assert summary.n_cases == 1
    assert summary.dropped == {"unreadable": 3, "not a picture": 1}
    assert [message.split(": ")[0].split("/")[-1] for message in summary.errors] == [
        "empty.png", "pipe.png", "text.png"]  # fmt: skip


def test_if_nothing_is_left_the_first_message_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: its content is not that of a PNG"):
        import_dataset(tmp_path, tmp_path / "out", format="folder")
    assert not (tmp_path / "out").exists()


def test_histology_tiles_are_colour(real_data: Path, tmp_path: Path) -> None:
    summary = import_dataset(real_data / "histology_mopadi", tmp_path / "d", format="folder")
    dataset = Dataset.open(tmp_path / "d")
    assert summary.n_cases == 4
    assert all(case.image.values.shape[0] == 3 for case in dataset)


def test_chest_x_rays_are_grey_and_have_two_classes(real_data: Path, tmp_path: Path) -> None:
    summary = import_dataset(real_data / "cxr_pneumonia_kermany", tmp_path / "d", format="folder")
    dataset = Dataset.open(tmp_path / "d")
    assert summary.n_cases == summary.n_patients == 240
    assert dataset.labels == ["normal", "pneumonia"]
    assert {case.image.values.shape for case in dataset} == {(1, 224, 224)}
    assert dataset.about["value_range"] == (0, 255)
