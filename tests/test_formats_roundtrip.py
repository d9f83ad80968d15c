"""What is exported comes back: images, boxes, patients, splits, provenance."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from synthoma.data.case import Case, Image, Real, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError
from synthoma.formats import FORMATS
from synthoma.formats.convert import export_dataset, import_dataset

#: brats, lidc and luna are only read; the others have tests of their own: medmnist holds images of
#: one size, dicom is written of synthetic cases alone.
OTHERS = ("brats", "lidc", "luna", "medmnist", "dicom")
ANY_IMAGE = [name for name in FORMATS if name not in OTHERS]
PICTURES = [name for name in ANY_IMAGE if name != "nifti"]
#: Pixels that a box may move on its way.
TOLERANCE = {"csv": 1e-4, "coco": 1e-4, "yolo": 1e-3, "nifti": 1e-4, "voc": 0.0}


def make_dataset(folder: Path, seed: int, *, whole: bool, dtype: str = "uint8") -> Dataset:
    """Cases of odd sizes with 0 to 3 boxes, one patient with two images, one synthetic."""
    rng = np.random.default_rng(seed)
    with DatasetWriter(folder, patients_from="made up", value_range=(0.0, 255.0)) as writer:
        for i in range(6):
            height, width = (int(n) for n in rng.integers(8, 40, 2))
            corners = rng.uniform(0, 1, (int(rng.integers(0, 4)), 2, 2)) * (height - 2, width - 2)
            boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1).astype(np.float32)
            boxes = np.rint(boxes).astype(np.float32) if whole else boxes
            values = rng.integers(0, np.iinfo(dtype).max, (1, height, width)).astype(dtype)
            synthetic = Synthetic("run-7", 3, {"size": "large"}, ("patient 1", "patient 2"))
            writer.add(
                Case(
                    f"a/b {i}.jpg",
                    f"patient {i // 2}",
                    Image(values),
                    label=("tumour", "normal")[i % 2],
                    boxes=boxes,
                    box_labels=tuple(f"class {int(n)}" for n in rng.integers(0, 3, len(boxes))),
                    traits={"sequence": "T1c", "number": i},
                    origin=synthetic if i == 5 else Real("b.jpg"),
                )
            )
    return Dataset.open(folder)


def there_and_back(dataset: Dataset, folder: Path, format: str) -> Dataset:
    export_dataset(dataset, folder / "files", format=format)
    import_dataset(folder / "files", folder / "again", format=format)
    return Dataset.open(folder / "again")


@pytest.mark.parametrize("format", ANY_IMAGE)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), dtype=st.sampled_from(["uint8", "uint16"]))
def test_every_format_brings_back_what_was_exported(format: str, seed: int, dtype: str) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        before = make_dataset(folder / "before", seed, whole=format == "voc", dtype=dtype)
        after = there_and_back(before, folder, format)
        assert after.splits == before.splits
        assert after.generators_saw == before.generators_saw
        for key in ("patients_from", "value_range", "labels", "n_synthetic"):
            assert after.about[key] == before.about[key]
        cases = {case.case_id: case for case in after}
        assert len(cases) == len(before)
        for case in before:
            same = cases[case.case_id]
            np.testing.assert_array_equal(same.image.values, case.image.values)
            assert same.image.values.dtype == case.image.values.dtype
            assert (same.image.spacing_mm, same.image.affine) == (None, None)
            assert (same.patient_id, same.label) == (case.patient_id, case.label)
            assert same.traits == case.traits
            assert isinstance(same.origin, type(case.origin))
            if isinstance(case.origin, Synthetic):
                assert same.origin == case.origin
            if format == "folder":
                assert same.boxes is None
            else:
                np.testing.assert_allclose(same.boxes, case.boxes, rtol=0, atol=TOLERANCE[format])
                assert same.box_labels == case.box_labels


def test_voc_rounds_fractions_outward_and_counts_them(tmp_path: Path) -> None:
    before = make_dataset(tmp_path / "before", 1, whole=False)
    summary = export_dataset(before, tmp_path / "files", format="voc")
    n_boxes = sum(len(case.boxes) for case in before)
    assert summary.noted["box rounded outward to whole pixels"] == n_boxes > 0
    import_dataset(tmp_path / "files", tmp_path / "again", format="voc")
    after = {case.case_id: case.boxes for case in Dataset.open(tmp_path / "again")}
    for case in before:
        np.testing.assert_array_equal(after[case.case_id][:, :2], np.floor(case.boxes[:, :2]))
        np.testing.assert_array_equal(after[case.case_id][:, 2:], np.ceil(case.boxes[:, 2:]))


@pytest.mark.parametrize("format", PICTURES)
def test_a_synthetic_picture_says_so_but_not_in_its_pixels(tmp_path: Path, format: str) -> None:
    before = make_dataset(tmp_path / "before", 2, whole=True)
    export_dataset(before, tmp_path / "files", format=format)
    said = []
    for path in sorted((tmp_path / "files").rglob("*.png")):
        with Pillow.open(path) as picture:
            said.append(picture.info["Synthetic"])
            if said[-1] == "yes":
                assert (picture.info["Run"], picture.info["Seed"]) == ("run-7", "3")
                np.testing.assert_array_equal(np.asarray(picture), before[5].image.values[0])
    assert sorted(said) == ["no"] * 5 + ["yes"]
    assert '"synthetic": "some"' in (tmp_path / "files/synthoma.json").read_text()


def test_a_synthetic_picture_stays_synthetic_when_its_manifest_is_lost(tmp_path: Path) -> None:
    export_dataset(make_dataset(tmp_path / "d", 2, whole=True), tmp_path / "files", format="folder")
    for name in ("synthoma.json", "synthoma.jsonl"):
        (tmp_path / "files" / name).unlink()
    import_dataset(tmp_path / "files", tmp_path / "again", format="folder")
    assert Dataset.open(tmp_path / "again").about["n_synthetic"] == 1


@pytest.mark.parametrize("format", PICTURES)
def test_images_with_fractions_must_be_prepared_before_they_become_pictures(
    tmp_path: Path, format: str
) -> None:
    with DatasetWriter(tmp_path / "d", patients_from="-") as writer:
        writer.add(Case("a", "a", Image(np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 4))))
    with pytest.raises(DataError, match="prepare"):
        export_dataset(Dataset.open(tmp_path / "d"), tmp_path / "files", format=format)
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("format", ["csv", "coco"])
def test_a_table_stands_on_its_own_without_the_manifest(tmp_path: Path, format: str) -> None:
    before = make_dataset(tmp_path / "before", 4, whole=True)
    export_dataset(before, tmp_path / "files", format=format)
    for name in ("synthoma.json", "synthoma.jsonl"):
        (tmp_path / "files" / name).unlink()
    import_dataset(tmp_path / "files", tmp_path / "again", format=format)
    after = Dataset.open(tmp_path / "again")
    assert after.splits == before.splits
    assert after.labels == before.labels
    assert sorted(after.patient_ids) == sorted(before.patient_ids)


def test_colour_pictures_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "d", patients_from="-", value_range=(0.0, 255.0)) as writer:
        for i in range(3):
            image = Image(rng.integers(0, 256, (3, 7, 9)).astype(np.uint8))
            writer.add(Case(f"{i}.tif", str(i), image, label="x"))
    before = Dataset.open(tmp_path / "d")
    after = there_and_back(before, tmp_path, "folder")
    for case in after:
        np.testing.assert_array_equal(case.image.values, before[int(case.patient_id)].image.values)
