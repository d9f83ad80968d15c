"""BraTS of every year: which files are a case, whose it is, and which slices are clear."""

import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydantic import ValidationError

from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare, prepare
from synthoma.errors import DataError
from synthoma.formats.brats import BratsSettings
from synthoma.formats.brats_cases import find_cases
from synthoma.formats.convert import ImportSummary, export_dataset, import_dataset
from synthoma.formats.metaimage import read_mha

#: BraTS's own orientation: x to the left, y to the back, z to the head.
BRATS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: x, y, z of a small head.
SIZE = (20, 24, 10)


def head(seed: int = 0, brightness: int = 100) -> np.ndarray:
    """A brain of noise in a margin of 0, (x, y, z); no brain in the lowest slice."""
    rng = np.random.default_rng(seed)
    values = np.zeros(SIZE, np.int16)
    values[3:17, 4:20, 1:] = rng.integers(brightness, 4 * brightness, (14, 16, 9))
    return values


def tumour() -> np.ndarray:
    """(x, y, z): 4 x 5 in slices 4 and 5, two parts in slice 5, one voxel in slice 7."""
    mask = np.zeros(SIZE, np.uint8)
    mask[5:9, 6:11, 4:6] = 4
    mask[12:14, 12:15, 5] = 1
    mask[10, 10, 7] = 2
    return mask


def save_mha(path: Path, values: np.ndarray, *, deflated: bool = True, **fields: str) -> None:
    """A .mha as ITK writes them; fields replace those of the header."""
    kinds = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}
    data = values.tobytes(order="F")
    data = zlib.compress(data) if deflated else data
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(deflated),
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": " ".join(map(str, values.shape)),
        "ElementType": kinds[values.dtype.name],
    } | fields
    text = "".join(f"{name} = {value}\n" for name, value in header.items())
    end = "" if "ElementDataFile" in fields else "ElementDataFile = LOCAL\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((text + end).encode() + data)


def save(path: Path, values: np.ndarray, affine: np.ndarray = BRATS) -> None:
    if path.suffix == ".mha":
        save_mha(path, values)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), path)


#: By year: the case's folder, its files by role, and the patient.
VSD = "VSD.Brain.XX.O.MR_{0}.{1}/VSD.Brain.XX.O.MR_{0}.{1}.mha"
YEARS: dict[str, tuple[str, Mapping[str, str], str]] = {
    "2012": (
        "HG/BRATS_HG0001",
        {"T1": "BRATS_HG0001_T1.mha", "T1c": "BRATS_HG0001_T1C.mha", "T2": "BRATS_HG0001_T2.mha",
         "FLAIR": "BRATS_HG0001_FLAIR.mha", "mask": "BRATS_HG0001_truth.mha"},
        "BRATS_HG0001",
    ),
    "2013": (
        "BRATS-2/Image_Data/HG/0001",
        {"T1": "VSD.Brain.XX.O.MR_T1/VSD.Brain.XX.O.MR_T1.685.mha",
         "T1c": "VSD.Brain.XX.O.MR_T1c/VSD.Brain.XX.O.MR_T1c.686.mha",
         "T2": "VSD.Brain.XX.O.MR_T2/VSD.Brain.XX.O.MR_T2.687.mha",
         "FLAIR": "VSD.Brain.XX.O.MR_Flair/VSD.Brain.XX.O.MR_Flair.684.mha",
         "mask": "VSD.Brain_3more.XX.XX.OT/VSD.Brain_3more.XX.XX.OT.6560.mha"},
        "HGG-0001",
    ),
    "2015": (
        "HGG/brats_tcia_pat101_0001",
        {"T1": VSD.format("T1", 54513), "T1c": VSD.format("T1c", 54514),
         "T2": VSD.format("T2", 54515), "FLAIR": VSD.format("Flair", 54512),
         "mask": "VSD.Brain_3more.XX.O.OT.54517/VSD.Brain_3more.XX.O.OT.54517.mha"},
        "brats_tcia_pat101",
    ),
    **{
        year: (
            f"{folder}/{case}",
            {role: f"{case}{sign}{word}{end}" for role, word in words.items()},
            patient,
        )
        for year, folder, case, patient, sign, end, words in [
            ("2017", "HGG", "Brats17_TCIA_101_1", "Brats17_TCIA_101", "_", ".nii.gz",
             {"T1": "t1", "T1c": "t1ce", "T2": "t2", "FLAIR": "flair", "mask": "seg"}),
            ("2019", "LGG", "BraTS19_TMC_06290_1", "BraTS19_TMC_06290", "_", ".nii.gz",
             {"T1": "t1", "T1c": "t1ce", "T2": "t2", "FLAIR": "flair", "mask": "seg"}),
            ("2020", "MICCAI_BraTS2020_TrainingData", "BraTS20_Training_001",
             "BraTS20_Training_001", "_", ".nii",
             {"T1": "t1", "T1c": "t1ce", "T2": "t2", "FLAIR": "flair", "mask": "seg"}),
            ("2021", "training", "BraTS2021_00000", "BraTS2021_00000", "_", ".nii.gz",
             {"T1": "t1", "T1c": "t1ce", "T2": "t2", "FLAIR": "flair", "mask": "seg"}),
            ("2023", "GLI", "BraTS-GLI-00000-000", "BraTS-GLI-00000", "-", ".nii.gz",
             {"T1": "t1n", "T1c": "t1c", "T2": "t2w", "FLAIR": "t2f", "mask": "seg"}),
        ]
    },
}  # fmt: skip
ROLES = ("T1", "T1c", "T2", "FLAIR")


def make_case(root: Path, folder: str, files: Mapping[str, str], seed: int = 0) -> None:
    for i, (role, name) in enumerate(files.items()):
        values = tumour() if role == "mask" else head(4 * seed + i, 50 * (i + 1))
        save(root / folder / name, values)


def modern(root: Path, case: str = "BraTS2021_00000", seed: int = 0) -> Path:
    """A case of 2021; its folder."""
    names = {"T1": "t1", "T1c": "t1ce", "T2": "t2", "FLAIR": "flair", "mask": "seg"}
    make_case(root, case, {r: f"{case}_{n}.nii.gz" for r, n in names.items()}, seed)
    return root / case


def read(source: Path, **fields: object) -> tuple[ImportSummary, Dataset]:
    out = source.parent / f"out-{len(list(source.parent.iterdir()))}"
    clear = {"least_area_mm2": 5.0, "least_brain": 0.05} | fields
    settings = BratsSettings.model_validate(clear)
    return import_dataset(source, out, format="brats", settings=settings), Dataset.open(out)


@pytest.mark.parametrize("year", YEARS)
def test_a_case_of_every_year_is_found_with_its_sequences_mask_grade_and_patient(
    tmp_path: Path, year: str
) -> None:
    folder, files, patient = YEARS[year]
    make_case(tmp_path / "in", folder, files)
    (tmp_path / "in" / "LICENSE.txt").write_text("please cite")
    summary, dataset = read(tmp_path / "in", sequences=ROLES)
    assert (summary.errors, summary.dropped["not a volume"]) == ((), 1)
    assert dataset.patients == [patient]
    grade = {"H": "HGG", "L": "LGG"}.get(patient[0] if year == "2013" else folder[0])
    assert {case.traits.get("grade") for case in dataset} == {grade}
    by_name = {case.case_id: case for case in dataset}
    for i, role in enumerate(ROLES):
        case = by_name[f"{folder}/{files[role]}#axial-005"]
        assert case.traits["sequence"] == role
        assert (case.label, case.traits["tumour_mm2"]) == ("tumour", 26.0)
        assert case.boxes is not None
        assert sorted(case.boxes.tolist()) == [[6, 5, 11, 9], [12, 12, 15, 14]]
        own = head(i, 50 * (i + 1))[:, :, 5].T
        assert np.corrcoef(own[own > 0], case.image.values[0][own > 0])[0, 1] > 0.999


def test_visits_are_one_patient_and_a_number_of_two_grades_is_two() -> None:
    names = [
        "HGG/brats_tcia_pat105_0001/VSD.Brain.XX.O.MR_T1c.1/VSD.Brain.XX.O.MR_T1c.1.mha",
        "HGG/brats_tcia_pat105_0180/VSD.Brain.XX.O.MR_T1c.2/VSD.Brain.XX.O.MR_T1c.2.mha",
        "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1c.3/VSD.Brain.XX.O.MR_T1c.3.mha",
        "LGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1c.4/VSD.Brain.XX.O.MR_T1c.4.mha",
        "x/BraTS-GLI-00003-000/BraTS-GLI-00003-000-t1c.nii.gz",
        "x/BraTS-GLI-00003-001/BraTS-GLI-00003-001-t1c.nii.gz",
        "y/BraTS20_Training_001/BraTS20_Training_001_t1ce.nii",
        "y/BraTS20_Training_002/BraTS20_Training_002_t1ce.nii",
    ]
    cases, strays = find_cases(names)
    assert strays == []
    assert sorted(case.patient for case in cases) == sorted(
        ["brats_tcia_pat105"] * 2
        + ["HGG-brats_2013_pat0001", "LGG-brats_2013_pat0001"]
        + ["BraTS-GLI-00003"] * 2
        + ["BraTS20_Training_001", "BraTS20_Training_002"]
    )


def test_files_in_one_folder_bare_names_and_the_odd_mask_of_2020_are_told_apart() -> None:
    flat, _ = find_cases(["BraTS19_A_1_1_t1.nii.gz", "BraTS19_B_1_1_t1.nii.gz"], "HGG")
    assert [(case.name, case.grade) for case in flat] == [
        ("BraTS19_A_1_1", "HGG"), ("BraTS19_B_1_1", "HGG"),
    ]  # fmt: skip
    bare, _ = find_cases(["p1/t1.nii.gz", "p1/seg.nii.gz", "p2/t1.nii.gz"])
    assert [(case.name, sorted(case.files)) for case in bare] == [
        ("p1", ["T1", "mask"]), ("p2", ["T1"]),
    ]  # fmt: skip
    own, _ = find_cases(["03/Pre_Scan_T1.nii.gz", "03/Pre_Mask.nii.gz", "03/Post_Scan_T1.nii.gz",
                         "04/Pre_Scan_T1.nii.gz", "HGG/x_t1.nii.gz"])  # fmt: skip
    assert [(case.name, case.patient, sorted(case.files)) for case in own] == [
        ("03/Post", "03", ["T1"]), ("03/Pre", "03", ["T1", "mask"]), ("04/Pre", "04", ["T1"]),
        ("HGG/x", "x", ["T1"]),
    ]  # fmt: skip
    folder = "BraTS20_Training_355"
    odd, strays = find_cases(
        [f"{folder}/{folder}_t1ce.nii", f"{folder}/W39_1998.09.19_Segm.nii",
         f"{folder}/x_brain_mask.nii"]
    )  # fmt: skip
    assert [(case.name, sorted(case.files)) for case in odd] == [(folder, ["T1c", "mask"])]
    assert strays == [f"{folder}/x_brain_mask.nii"]


def test_slices_of_little_tumour_are_ambiguous_and_counted(tmp_path: Path) -> None:
    modern(tmp_path / "in")
    summary, dataset = read(tmp_path / "in", least_area_mm2=21.0)
    labels = {case.traits["slice"]: case.label for case in dataset}
    assert labels == {1: "normal", 2: "normal", 3: "normal", 5: "tumour", 6: "normal",
                      8: "normal", 9: "normal"}  # fmt: skip
    assert summary.dropped == {
        "slice with little or no brain": 1,
        "ambiguous slice: some tumour, less than least_area_mm2": 2,
    }
    _, all_slices = read(tmp_path / "in", least_area_mm2=0.0)
    assert [case.label for case in all_slices if case.traits["slice"] == 7] == ["tumour"]
    _, core = read(tmp_path / "in", lesion_values=(1,), least_area_mm2=5.0)
    assert [case.traits["slice"] for case in core if case.label == "tumour"] == [5]


def test_area_is_of_millimetres_not_of_pixels(tmp_path: Path) -> None:
    thick = BRATS @ np.diag([2.0, 2.0, 1.0, 1.0])
    save(tmp_path / "in/p/t1c.nii.gz", head(), thick)
    save(tmp_path / "in/p/seg.nii.gz", tumour(), thick)
    _, dataset = read(tmp_path / "in", least_area_mm2=60.0)
    areas = {case.traits["slice"]: case.traits["tumour_mm2"] for case in dataset}
    assert (areas[4], areas[5]) == (80.0, 104.0)
    assert 7 not in areas


@pytest.mark.parametrize(
    ("fields", "slices"),
    [
        ({"slices": (3, 6)}, [3, 4, 5, 6]),
        ({"slices": (3, 600), "every": 3}, [3, 6, 9]),
        ({"extent": (0.35, 0.6)}, [4, 5]),
        ({"axis": "coronal", "slices": (6, 8)}, [6, 7, 8]),
        ({"axis": "sagittal", "extent": (0.25, 0.35)}, [5, 6]),
    ],
)
def test_slices_are_chosen_by_number_or_share(
    tmp_path: Path, fields: dict[str, object], slices: list[int]
) -> None:
    modern(tmp_path / "in")
    _, dataset = read(tmp_path / "in", least_area_mm2=0.0, intensity="keep", **fields)
    assert [case.traits["slice"] for case in dataset] == slices
    axis = fields.get("axis", "axial")
    assert {case.traits["axis"] for case in dataset} == {axis}
    if axis == "sagittal":  # x = 5, superior up, anterior on the left
        np.testing.assert_array_equal(dataset[0].image.values[0], head(1, 100)[5].T[::-1])


def test_pooled_sequences_come_in_equal_parts(tmp_path: Path) -> None:
    folder = modern(tmp_path / "in")
    modern(tmp_path / "in", "BraTS2021_00002", seed=1)
    blank = head(3)
    blank[:, :, 8] = 7  # one of four is blank there: the others go too
    save(folder / "BraTS2021_00000_flair.nii.gz", blank)
    (tmp_path / "in/BraTS2021_00002/BraTS2021_00002_t2.nii.gz").unlink()
    summary, dataset = read(tmp_path / "in", sequences=ROLES)
    counts = [len(dataset.where(sequence=role)) for role in ROLES]
    assert counts == [counts[0]] * 4
    assert counts[0] == 7
    assert summary.dropped["blank slice"] == 1
    (error,) = summary.errors
    assert "BraTS2021_00002: 0 files are its T2" in error


def test_stacked_sequences_are_channels_with_a_scale_each(tmp_path: Path) -> None:
    modern(tmp_path / "in")
    _, pooled = read(tmp_path / "in", sequences=("FLAIR", "T1"))
    _, stacked = read(tmp_path / "in", sequences=("FLAIR", "T1"), combine="stack")
    assert 2 * len(stacked) == len(pooled)
    for case in stacked:
        assert case.traits["sequence"] == "FLAIR+T1"
        assert case.case_id == f"BraTS2021_00000#axial-{case.traits['slice']:03}"
        for channel, name in enumerate(("FLAIR", "T1")):
            (same,) = (other for other in pooled if other.traits["sequence"] == name
                       and other.traits["slice"] == case.traits["slice"])  # fmt: skip
            np.testing.assert_array_equal(case.image.values[channel], same.image.values[0])
            assert case.image.values[channel].max() > 200


def test_slices_of_a_volume_share_its_scale_which_prepare_keeps(tmp_path: Path) -> None:
    folder = modern(tmp_path / "in")
    values = head(1)
    values[:, :, 6] //= 4  # a dark slice stays dark
    save(folder / "BraTS2021_00000_t1ce.nii.gz", values)
    low, high = np.percentile(values[values != 0], (1, 99))
    expected = np.clip(np.rint((values - low) * 255 / (high - low)), 0, 255)
    expected[values == 0] = 0
    _, scaled = read(tmp_path / "in", canvas_px=24)
    assert scaled.about["value_range"] == (0.0, 255.0)
    _, kept = read(tmp_path / "in", canvas_px=24, intensity="keep")
    assert kept[0].image.values.dtype == np.int16
    assert kept.about["value_range"] is None
    same = Prepare(side_px=24, crop=False)
    for i, dataset in enumerate((scaled, kept)):
        done = prepare(dataset, tmp_path / f"prepared-{i}", same)
        for before, case in zip(dataset, done, strict=True):
            slice_of = expected[:, :, case.traits["slice"]].T
            inside = case.image.values[0, :, 2:22].astype(int)
            assert np.abs(inside - slice_of).max() <= 1
            if dataset is scaled:
                np.testing.assert_array_equal(before.image.values, case.image.values)


def test_a_canvas_pads_or_crops_without_resizing_and_boxes_and_affine_follow(
    tmp_path: Path,
) -> None:
    modern(tmp_path / "in")
    _, plain = read(tmp_path / "in", slices=(5, 5))
    for side, top, left in [(32, 4, 6), (21, -2, 0), (14, -5, -3)]:
        _, moved = read(tmp_path / "in", slices=(5, 5), canvas_px=side)
        image, origin = moved[0].image, plain[0].image
        assert image.space == (side, side)
        assert image.affine is not None
        assert origin.affine is not None
        for y, x in [(8, 9), (12, 11)]:
            there = (y + top, x + left)
            assert image.values[0, there[0], there[1]] == origin.values[0, y, x]
            np.testing.assert_allclose(
                image.affine @ (there[1], there[0], 0, 1), origin.affine @ (x, y, 0, 1)
            )
        assert moved[0].boxes is not None
        assert plain[0].boxes is not None
        expected = np.clip(plain[0].boxes + (top, left) * 2, 0, side)
        np.testing.assert_array_equal(moved[0].boxes, expected)


def test_a_case_without_a_mask_has_neither_label_nor_boxes(tmp_path: Path) -> None:
    (modern(tmp_path / "in") / "BraTS2021_00000_seg.nii.gz").unlink()
    summary, dataset = read(tmp_path / "in")
    assert (dataset[0].label, dataset[0].boxes) == (None, None)
    assert summary.noted["case without a mask: its slices have no label and no boxes"] == 1


def test_what_is_wrong_with_a_case_is_said_once_and_the_rest_goes_on(tmp_path: Path) -> None:
    folders = {n: modern(tmp_path / "in", f"BraTS2021_0000{n}", seed=n) for n in range(7)}
    files = {n: (f / f"{f.name}_t1ce.nii.gz", f / f"{f.name}_seg.nii.gz")
             for n, f in folders.items()}  # fmt: skip
    files[1][0].write_bytes(files[1][0].read_bytes()[:-200])
    save(files[2][1], tumour()[:, :, :-1])
    save(files[3][1], tumour() * np.float32(0.5))
    save(files[4][1], tumour(), BRATS + np.eye(4)[3] * np.array([[9, 0, 0, 0]]).T)
    shutil.copy(files[5][0], folders[5] / "BraTS2021_00005_t1gd.nii.gz")
    save(files[6][0], np.full(SIZE, 7, np.int16))
    summary, dataset = read(tmp_path / "in")
    assert dataset.patients == ["BraTS2021_00000"]
    said = ["truncated|damaged", "shape .9, 24, 20.", "fractions", "9 mm apart",
            "2 files are its T1c", "no range of values"]  # fmt: skip
    assert len(summary.errors) == len(said)
    for number, (message, pattern) in enumerate(zip(summary.errors, said, strict=True), 1):
        with pytest.raises(DataError, match=pattern):
            raise DataError(message)
        assert f"BraTS2021_0000{number}" in message


def test_settings_that_contradict_are_refused() -> None:
    for wrong in (
        {"slices": (5, 3)},
        {"slices": (1, 2), "extent": (0.1, 0.5)},
        {"sequences": ()},
        {"sequences": ("T1", "T1")},
        {"combine": "stack", "intensity": "keep"},
        {"percentiles": (99, 1)},
        {"axis": "volume"},
    ):
        with pytest.raises(ValidationError):
            BratsSettings.model_validate(wrong)


def test_a_folder_of_other_files_is_no_brats_and_nothing_is_exported(tmp_path: Path) -> None:
    save(tmp_path / "in/scan.nii.gz", head())
    with pytest.raises(DataError, match="called as in BraTS"):
        read(tmp_path / "in")
    modern(tmp_path / "real")
    _, dataset = read(tmp_path / "real")
    with pytest.raises(DataError, match="only read"):
        export_dataset(dataset, tmp_path / "files", format="brats")
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("deflated", [True, False])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_metaimage_lies_where_simpleitk_says(tmp_path: Path, deflated: bool, dtype: str) -> None:
    import SimpleITK

    values = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)  # z, y, x
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    image = SimpleITK.GetImageFromArray(values)
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((-10.0, 20.0, 5.0))
    SimpleITK.WriteImage(image, tmp_path / "x.mha", useCompression=deflated)
    volume = read_mha(tmp_path / "x.mha")
    assert volume.values.dtype == dtype
    np.testing.assert_array_equal(volume.values, values)  # LPS+ already
    for x, y, z in [(0, 0, 0), (6, 5, 4), (1, 2, 3)]:
        left, back, up = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(volume.affine @ (x, y, z, 1), (-left, -back, up, 1), atol=1e-4)


def test_a_metaimage_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mha"
    for fields, said in [
        ({"ElementDataFile": "/etc/hostname\n"}, "another file"),
        ({"ElementDataFile": "LIST\n"}, "another file"),
        ({"DimSize": "20 24 11"}, "damaged or truncated"),
        ({"DimSize": "20 24 9"}, "damaged or truncated"),
        ({"DimSize": "60000 60000 60000"}, "at most 320 MiB"),
        ({"DimSize": "20 24"}, "3 numbers"),
        ({"DimSize": "20 24 -10"}, "none empty"),
        ({"NDims": "4"}, "NDims"),
        ({"ElementNumberOfChannels": "3"}, "ElementNumberOfChannels"),
        ({"ElementType": "MET_STRING"}, "ElementType"),
        ({"ElementSpacing": "1 nan 1"}, "ElementSpacing"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "no place in a scanner"),
        ({"HeaderSize": "-1"}, "HeaderSize"),
    ]:
        save_mha(path, head(), **fields)
        with pytest.raises(DataError, match=said):
            read_mha(path)
    save_mha(path, head())
    good = path.read_bytes()
    for content, said in [
        (good[:-300] + bytes([good[-300] ^ 255]) + good[-299:], "damaged"),
        (good[:-2] + b"ab", "damaged"),
        (good[:-50], "damaged or truncated"),
        (b"\0" * 5000, "not MetaImage"),
        (b"", "not MetaImage"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            read_mha(path)
    save_mha(path, head(), deflated=False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="9600 bytes are declared and 9599"):
        read_mha(path)


def test_a_real_case_in_brats_space_is_one_patient_with_four_sequences(
    tmp_path: Path, real_data: Path
) -> None:
    source = real_data / "brain_tcga_lgg_multiseq"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    (tmp_path / "LGG").mkdir()
    for word in ("t1", "t1c", "t2", "fla"):
        name = f"TCGA-DU-7294_{word}_bet.nii.gz"
        (tmp_path / "LGG" / name).symlink_to(source / "TCGA-DU-7294/sri24" / name)
    copies = tmp_path / "in" / "LGG"
    shutil.copytree(tmp_path / "LGG", copies)
    mask = source / "TCGA-DU-7294/sri24/auto_segmentation/mav.nii.gz"
    shutil.copy(mask, copies / "TCGA-DU-7294_seg.nii.gz")
    summary, dataset = read(
        tmp_path / "in", sequences=ROLES, slices=(30, 130), every=20, canvas_px=256,
        least_area_mm2=50.0,
    )  # fmt: skip
    assert summary.errors == ()
    assert dataset.patients == ["TCGA-DU-7294"]
    assert {case.traits["grade"] for case in dataset} == {"LGG"}
    assert {case.image.values.shape for case in dataset} == {(1, 256, 256)}
    assert set(dataset.labels) == {"normal", "tumour"}
