"""Slices find their place in a volume, or are refused with the reason."""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import AXIAL, BODY, elements, only_series, rotation, save, save_series

from synthoma.errors import DataError
from synthoma.formats.series import find_series, read_series
from synthoma.formats.source import Tally


def read_by_simpleitk(folder: Path) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_slices_are_ordered_by_their_positions_whatever_their_files_are_called(
    tmp_path: Path,
) -> None:
    save_series(tmp_path)
    series = only_series(tmp_path)
    assert np.array_equal(series.volume.values, BODY - 1024)
    assert series.volume.values.dtype == np.int16
    assert series.volume.spacing_mm == pytest.approx((2.5, 0.7, 0.5))
    assert series.slice_uids == tuple(f"1.2.3.4.{k}" for k in range(6))
    assert series.positions_mm == pytest.approx([30, 32.5, 35, 37.5, 40, 42.5])
    assert (series.slice_thickness_mm, series.unit, series.padded) == (3.0, "hu", 0)


@pytest.mark.parametrize(
    "orientation",
    [AXIAL, (-1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1),
     rotation(30), rotation(-20)],
    ids=["axial", "prone", "head first", "coronal", "sagittal", "oblique", "oblique back"],
)  # fmt: skip
def test_every_voxel_lies_where_simpleitk_says(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    save_series(tmp_path, orientation=orientation)
    series, theirs = only_series(tmp_path), read_by_simpleitk(tmp_path)
    volume = series.volume
    world = [volume.affine @ (x, y, z, 1) for z, y, x in np.ndindex(volume.values.shape)]
    found = [
        theirs[theirs.TransformPhysicalPointToIndex((-ras[0], -ras[1], ras[2]))] for ras in world
    ]
    assert np.array_equal(found, volume.values.ravel())
    assert (np.diag(volume.affine)[:3] * (-1, -1, 1) > 0).all()  # LPS+
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    axial = normal.argmax() == 2
    assert len(series.slice_uids) == (6 if axial else 0)
    assert (np.diff(series.positions_mm) > 0).all()
    if axial:
        up = np.cross(orientation[:3], orientation[3:])
        up = up * np.sign(up[2])
        corners = volume.affine @ [[0] * 6, [0] * 6, range(6), [1] * 6]
        assert series.positions_mm == pytest.approx(up @ (corners[:3] * [[-1], [-1], [1]]))
    for z, name in enumerate(series.slice_uids):
        k = int(name.rsplit(".", 1)[1])
        assert set(volume.values[z].ravel()) == set(BODY[k].ravel() - 1024)


def test_positions_written_to_a_tenth_of_a_millimetre_are_still_regular(tmp_path: Path) -> None:
    save_series(tmp_path, places_mm=(0, 0.6, 1.3, 1.9, 2.5, 3.1))
    assert only_series(tmp_path).volume.spacing_mm[0] == pytest.approx(0.62)


@pytest.mark.parametrize(
    ("places_mm", "reason"),
    [
        ((0, 2.5, 7.5, 10, 12.5, 15), "1 slice missing between it and"),
        ((0, 2.5, 12.5, 15, 17.5, 20), "3 slices missing between it and"),
        ((0, 1, 2, 4, 6, 8), "mixed spacing, slices are 1 to 2 mm apart"),
        ((0, 2.5, 2.5, 5, 7.5, 10), "a duplicate of"),
        ((0, 2.5, 5, 8.4, 10, 12.5), "mixed spacing"),
    ],
)
def test_a_stack_that_is_not_regular_is_refused_with_the_reason(
    tmp_path: Path, places_mm: tuple[float, ...], reason: str
) -> None:
    save_series(tmp_path, places_mm=places_mm)
    with pytest.raises(DataError, match=reason):
        only_series(tmp_path)


def test_a_duplicate_is_named_with_the_file_that_it_doubles(tmp_path: Path) -> None:
    paths = save_series(tmp_path)
    (tmp_path / "copy.dcm").write_bytes(paths[2].read_bytes())
    with pytest.raises(DataError, match=r"copy.dcm.*same SOPInstanceUID") as error:
        only_series(tmp_path)
    assert paths[2].name in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PixelSpacing", [0.7, 0.6], "spacing_mm"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0, -1], "orientation"),
        ("FrameOfReferenceUID", "1.9", "frame_of_reference"),
        ("ImagePositionPatient", [-10, -18, 45], "2 mm beside the line"),
        ("ImagePositionPatient", None, "ImagePositionPatient"),
        ("NumberOfFrames", 2, "2 frames"),
    ],
)
def test_a_slice_that_does_not_belong_is_refused(
    tmp_path: Path, name: str, value: object, reason: str
) -> None:
    save_series(tmp_path)
    own = {"ImagePositionPatient": [-10, -20, 45], name: value}
    save(tmp_path / "odd.dcm", elements(BODY[0], uid="1.2.3.9", **own))
    with pytest.raises(DataError, match=reason):
        only_series(tmp_path)


def test_series_that_share_a_folder_are_told_apart(tmp_path: Path) -> None:
    save_series(tmp_path / "a")
    save_series(tmp_path / "b", SeriesInstanceUID="1.2.3.2", PatientID="ben")
    both = tmp_path / "both"
    both.mkdir()
    for folder in ("a", "b"):
        for path in (tmp_path / folder).iterdir():
            path.rename(both / f"{path.stem}{folder}.dcm")
    (both / "notes.txt").write_text("not DICOM")
    (both / "broken.dcm").write_bytes((both / "0a.dcm").read_bytes()[:300])
    tally = Tally()
    first, second = find_series(tmp_path, tally)
    assert (first.patient, second.patient) == ("anna", "ben")
    assert (len(first.files), len(second.files), first.modality) == (6, 6, "CT")
    assert list(first.files) == sorted(first.files)
    assert tally.dropped["not a DICOM file"] == 1
    assert sum(tally.dropped.values()) == 2
    for files in (first, second):
        assert np.array_equal(read_series(files).volume.values, BODY - 1024)
    mixed = replace(first, files=first.files + second.files[:1])
    with pytest.raises(DataError, match="a duplicate of"):
        read_series(mixed)


@pytest.mark.slow
def test_a_chest_ct_is_read_as_simpleitk_reads_it(real_data: Path, tmp_path: Path) -> None:
    archive = real_data / "lung_lidc_dicom/LIDC-IDRI-0001/LIDC-IDRI-0001_ct_133slices.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    series, theirs = only_series(tmp_path), read_by_simpleitk(tmp_path)
    volume = series.volume
    assert volume.values.shape == (133, 512, 512)
    assert np.array_equal(volume.values, sitk.GetArrayFromImage(theirs))
    assert volume.spacing_mm == pytest.approx(theirs.GetSpacing()[::-1])
    origin = volume.affine[:3, 3] * (-1, -1, 1)
    assert origin == pytest.approx(theirs.GetOrigin())
    assert series.positions_mm[[0, -1]] == pytest.approx([-340, -10])
