"""DICOM files: values have their scale, and what is wrong is said and left out."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import BODY, elements, only_series, rotation, save, save_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from synthoma.errors import DataError
from synthoma.formats import dicom_decode, dicom_header
from synthoma.formats.convert import import_dataset
from synthoma.formats.dicom import DicomSettings, read
from synthoma.formats.dicom_header import read_header
from synthoma.formats.dicom_pixels import read_frames
from synthoma.formats.source import Tally


def frame(path: Path) -> tuple[np.ndarray, int]:
    ((values, n_padded),) = read_frames(read_header(path))
    return values[0], n_padded


def test_stored_values_become_those_of_the_modality(tmp_path: Path) -> None:
    signed = np.array([[-2000, -24], [0, 1024]], np.int16)
    path = save(tmp_path / "signed.dcm", elements(signed, RescaleIntercept=0))
    assert frame(path)[0].tolist() == signed.tolist()
    unsigned = np.array([[0, 1000], [1024, 4095]], np.uint16)
    path = save(tmp_path / "unsigned.dcm", elements(unsigned))
    assert frame(path)[0].tolist() == [[-1024, -24], [0, 3071]]
    pet = {"Modality": "PT", "RescaleSlope": 0.25, "RescaleIntercept": 0}
    values, _ = frame(save(tmp_path / "pet.dcm", elements(unsigned, **pet)))
    assert values.dtype == np.float32
    assert values.tolist() == [[0, 250], [256, 1023.75]]
    path = save(tmp_path / "far.dcm", elements(np.array([[0, 65535]], np.uint16)))
    with pytest.raises(DataError, match="-1024 to 64511 HU; allowed: 16 bits"):
        frame(path)


def test_bits_that_are_not_stored_are_cleared(tmp_path: Path) -> None:
    """Old files keep an overlay there."""
    stored = np.array([[0xF123, 0x0FFF]], np.uint16)
    own = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": 0}
    path = save(tmp_path / "a.dcm", elements(stored, **own))
    assert frame(path)[0].tolist() == [[0x123, 0xFFF]]
    path = save(tmp_path / "b.dcm", elements(stored, PixelRepresentation=1, **own))
    assert frame(path)[0].tolist() == [[0x123, -1]]


def test_padding_is_air_even_where_it_is_stated_unsigned(tmp_path: Path) -> None:
    stored = np.array([[-2000, 10, 20]], np.int16)
    made = elements(stored, RescaleIntercept=0)
    made.add_new("PixelPaddingValue", "US", 63536)  # the bits of -2000, as LIDC-IDRI has it
    values, n_padded = frame(save(tmp_path / "ct.dcm", made))
    assert (values.tolist(), n_padded) == ([[-1024, 10, 20]], 1)
    made = elements(np.array([[5, 6, 9, 4095]], np.uint16), Modality="MR")
    made.RescaleIntercept = 0
    made.add_new("PixelPaddingValue", "US", 4095)
    values, n_padded = frame(save(tmp_path / "mr.dcm", made))
    assert (values.tolist(), n_padded) == ([[5, 6, 9, 0]], 1)


def test_in_monochrome1_more_becomes_brighter(tmp_path: Path) -> None:
    own = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR"}
    made = elements(np.array([[0, 1000, 4095]], np.uint16), BitsStored=12, HighBit=11, **own)
    made.RescaleIntercept = 0
    assert frame(save(tmp_path / "x.dcm", made))[0].tolist() == [[4095, 3095, 0]]
    made.add_new("PixelPaddingValue", "US", 0)
    assert frame(save(tmp_path / "y.dcm", made))[0].tolist() == [[0, 3095, 0]]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_compressed_slices_give_the_same_volume(tmp_path: Path, syntax: str) -> None:
    values = np.arange(6 * 64 * 64, dtype=np.int16).reshape(6, 64, 64)
    for path in save_series(tmp_path, values=values):
        made = pydicom.dcmread(path)
        if syntax == DeflatedExplicitVRLittleEndian:
            made.file_meta.TransferSyntaxUID = syntax
        else:
            made.compress(syntax, generate_instance_uid=False)
        made.save_as(path)
    assert np.array_equal(only_series(tmp_path).volume.values, values - 1024)


def refused(path: Path, reason: str) -> None:
    """The file is refused with its name and the reason."""
    with pytest.raises(DataError, match=reason) as error:
        list(read_frames(read_header(path)))
    assert path.name in str(error.value)


def test_what_a_file_declares_is_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    made = elements(BODY[0], Rows=60000, Columns=60000)
    refused(save(tmp_path / "huge.dcm", made), "6866 MiB decoded; at most 256 MiB")
    refused(save(tmp_path / "frames.dcm", elements(BODY[0], NumberOfFrames=2**31 - 1)), "at most")
    refused(save(tmp_path / "rows.dcm", elements(BODY[0], Rows=0)), "frames, rows, columns")
    refused(save(tmp_path / "bits.dcm", elements(BODY[0], BitsStored=99)), "99 stored")
    refused(save(tmp_path / "short.dcm", elements(BODY[0], Rows=6)), "truncated")
    refused(save(tmp_path / "flat.dcm", elements(BODY[0], PixelSpacing=[0, 1])), "above 0 mm")
    skewed = elements(BODY[0], ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    refused(save(tmp_path / "skewed.dcm", skewed), "right angle")
    enhanced = elements(BODY[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    refused(save(tmp_path / "enhanced.dcm", enhanced), "Enhanced CT")


def test_a_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = elements(BODY[0], ImageComments="x" * 10)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(tmp_path / "bomb.dcm", made)
    start = path.read_bytes()
    end = 132 + 12 + int.from_bytes(start[140:144], "little")
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = machine.compress(bytes(1 << 24)) + machine.flush()
    path.write_bytes(start[:end] + packed)
    monkeypatch.setattr(dicom_header, "LIMIT_DECODED", 1 << 20)
    with pytest.raises(DataError, match="inflates beyond the limit of 1 MiB"):
        read_header(path)
    path.write_bytes(start[: end + 40])
    with pytest.raises(DataError, match="truncated"):
        read_header(path)


def test_a_header_without_end_is_left_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_header, "LIMIT_READS", 3000)
    path = save(tmp_path / "a.dcm", elements(BODY[0]))
    content = path.read_bytes()
    one = b"\x09\x00\x10\x10LO\x00\x00"
    path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")] + one * 4000)
    with pytest.raises(DataError, match="header beyond the limit"):
        read_header(path)
    many = "\\".join(["1"] * 9000)
    made = elements(BODY[0])
    made.add_new("PixelSpacing", "UN", many.encode())
    with pytest.raises(DataError, match=r"PixelSpacing of 1\d+ bytes"):
        read_header(save(tmp_path / "b.dcm", made))


def test_a_decoder_that_hangs_costs_its_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_decode, "LIMIT_SECONDS", 0.5)
    endless = {"transfer_syntax": RLELossless, "n_frames": 1}
    with pytest.raises(DataError, match=r"/dev/zero: decoding took more than 0.5 s"):
        list(dicom_decode.decoded(Path("/dev/zero"), **endless))
    monkeypatch.undo()
    colours = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    path = save(tmp_path / "next.dcm", elements(colours))
    ((values, _),) = read_frames(read_header(path))
    assert np.array_equal(values, colours.transpose(2, 0, 1))


def test_a_codestream_larger_than_its_header_is_refused(tmp_path: Path) -> None:
    made = elements(np.zeros((64, 64), np.uint16))
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    path = save(tmp_path / "a.dcm", made)
    content = path.read_bytes()
    at = content.index(b"\xff\x51") + 6
    sides = (60000).to_bytes(4, "big")
    path.write_bytes(content[:at] + sides * 2 + content[at + 8 :])
    with pytest.raises(DataError, match=r"a\.dcm: (cannot be decoded|decod|the decoder)"):
        list(read_frames(read_header(path)))


def imported(source: Path, **fields: Any) -> Any:
    """The summary of an import, and its dataset."""
    from synthoma.data.dataset import Dataset as Folder

    out = source.parent / f"{source.name}-{len(list(source.parent.iterdir()))}"
    settings = DicomSettings.model_validate(fields)
    summary = import_dataset(source, out, format="dicom", settings=settings)
    return summary, Folder.open(out)


def a_study(root: Path) -> Path:
    """A series, a localiser, an X-ray, a film in colour, a report, and two broken files."""
    save_series(root / "ct")
    localiser = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(root / "ct" / "scout.dcm", elements(BODY[0], uid="1.2.3.7", ImageType=localiser))
    no_place = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    own = {"SeriesInstanceUID": "1.2.3.5", "Modality": "DX", "PatientID": "ben", **no_place}
    save(root / "xray.dcm", elements(BODY[1].astype(np.uint16) + 7, uid="1.2.3.8", **own))
    film = elements(np.arange(120, dtype=np.uint8).reshape(10, 4, 3), NumberOfFrames=2, Rows=5)
    film.SeriesInstanceUID, film.Modality, film.PatientID = "1.2.3.6", "US", ""
    save(root / "film.dcm", film)
    report = elements(BODY[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    del report.PixelData
    save(root / "report.dcm", report)
    (root / "short.dcm").write_bytes((root / "xray.dcm").read_bytes()[:-9])
    made = pydicom.dcmread(root / "short.dcm", defer_size=1, stop_before_pixels=True)
    assert made.Modality == "DX"
    (root / "twisted.dcm").write_bytes((root / "xray.dcm").read_bytes().replace(b"0.7", b"x.7"))
    return root


def test_an_import_tells_series_images_and_damage_apart(tmp_path: Path) -> None:
    root = a_study(tmp_path / "study")
    summary, dataset = imported(root)
    names = [case.case_id for case in dataset]
    first = min(path.name for path in (root / "ct").glob("[0-9].dcm"))
    slices = [f"ct/{first}#axial-{k:03}" for k in range(6)]
    assert names == [*slices, "film.dcm#000", "film.dcm#001", "xray.dcm"]
    assert len(summary.errors) == 2
    assert any("short.dcm: truncated" in message for message in summary.errors)
    assert any("twisted.dcm: PixelSpacing" in message for message in summary.errors)
    assert summary.dropped["localiser"] == 1
    assert summary.dropped["no pixels (Basic Text SR Storage)"] == 1
    patients = {case.case_id: case.patient_id for case in dataset}
    assert (patients[slices[0]], patients["xray.dcm"]) == ("anna", "ben")
    assert patients["film.dcm#000"] == "1.2.3"
    case = dataset[2]
    assert (case.image.unit, case.image.values.shape) == ("hu", (1, 5, 4))
    assert np.array_equal(case.image.values[0], BODY[2] - 1024)
    assert case.traits["modality"] == "CT"
    assert dataset[6].image.values.shape == (3, 5, 4)


def test_settings_choose_what_a_series_becomes(tmp_path: Path) -> None:
    root = a_study(tmp_path / "study")
    _, volumes = imported(root, axis="volume")
    assert [case.image.values.shape for case in volumes] == [(1, 6, 5, 4)]
    summary, stored = imported(root, axis="stored", modalities=["CT"])
    assert len(stored) == 7
    assert summary.dropped["modality US"] == 1
    assert all(case.image.affine is not None for case in stored)
    _, coronal = imported(root, axis="coronal", modalities=["CT"], every=2)
    assert [case.traits["slice"] for case in coronal] == [0, 2, 4]
    assert np.array_equal(coronal[0].image.values[0], BODY[::-1, 0] - 1024)


def test_a_slice_alone_lies_where_it_lies_in_its_series(tmp_path: Path) -> None:
    save_series(tmp_path / "in", orientation=rotation(30))
    _, stored = imported(tmp_path / "in", axis="stored")
    (volume,) = imported(tmp_path / "in", axis="volume")[1]
    places = [case.image.affine[:3, 3] for case in stored]
    inverse = np.linalg.inv(volume.image.affine)
    indices = [inverse @ (*place, 1) for place in places]
    assert sorted(round(float(index[2]), 6) for index in indices) == pytest.approx(range(6))


#: Files of pydicom's collection whose images cannot be read, and why.
UNREADABLE = {
    "JPEG-lossy.dcm": "12-bit precision",
    "JPGExtended.dcm": "12-bit precision",
    "JPEG2000-embedded-sequence-delimiter.dcm": "cannot be decoded",
    "MR_truncated.dcm": "truncated, frame 1 of 1 has 8130 of 8192 bytes",
    "SC_rgb_rle_16bit.dcm": "colours of 16 bits",
    "SC_rgb_rle_16bit_2frame.dcm": "colours of 16 bits",
    "SC_rgb_rle_32bit.dcm": "colours of 32 bits",
    "SC_rgb_rle_32bit_2frame.dcm": "colours of 32 bits",
}


def test_odd_files_give_one_clear_error_or_the_image_that_simpleitk_reads(real_data: Path) -> None:
    folder = real_data / "dicom_oddities_pydicom"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tally = Tally()
    reading = read(folder, DicomSettings(axis="stored"), tally, {})
    errors, n_images = {}, 0
    for entry in reading.entries:
        try:
            found = entry.read()
        except DataError as error:
            errors[entry.name] = str(error)
            continue
        n_images += 1
        values = np.concatenate([case.image.values for case in found])
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(folder / entry.name))
        if len(found[0].image.values) == 3:
            theirs = np.moveaxis(theirs, -1, 1).reshape(values.shape)
        padding = theirs == -3024 if entry.name == "693_J2KI.dcm" else np.zeros(theirs.shape, bool)
        assert np.array_equal(values[~padding], theirs[~padding]), entry.name
        assert (values[padding] == -1024).all()
    assert errors.keys() == UNREADABLE.keys()
    for name, reason in UNREADABLE.items():
        assert name in errors[name]
        assert reason in errors[name]
    assert n_images == 52
    assert sum(tally.dropped.values()) == 34
