"""Synthetic images as DICOM: valid, said to be synthetic, of nobody, and the same when read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import only_series, rotation

from synthoma.data.case import Case, Image, Real, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError
from synthoma.formats.convert import export_dataset, import_dataset
from synthoma.formats.dicom import DicomSettings

#: A patient whose name must not be found in any file.
PATIENT = "LIDC-IDRI-0001"
UPRIGHT = np.diag([-0.7, -0.6, 1.25, 1.0])
UPRIGHT[:3, 3] = (100, 120, -200)
TURNED = UPRIGHT.copy()
TURNED[:3, :2] = np.reshape(rotation(25), (2, 3)).T * (0.6, 0.7)
TURNED[:3, 2] = np.cross(TURNED[:3, 0], TURNED[:3, 1]) / 0.42 * 1.5
TURNED = np.diag([-1.0, -1.0, 1.0, 1.0]) @ TURNED


def noise(dtype: str, *shape: int, low: int = 0, high: int = 250) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, shape).astype(dtype)


CHEST = noise("int16", 1, 5, 12, 10, low=-1024, high=3000)
IMAGES = {
    "CT volume": Image(CHEST, (1.25, 0.6, 0.7), UPRIGHT, "hu"),
    "oblique CT volume": Image(CHEST, (1.5, 0.7, 0.6), TURNED, "hu"),
    "CT volume without a place": Image(CHEST, (1.25, 0.6, 0.7), None, "hu"),
    "CT slice": Image(CHEST[:, 2], (0.6, 0.7), UPRIGHT, "hu"),
    "MR volume": Image(noise("uint8", 1, 5, 12, 10), (1.25, 0.6, 0.7), UPRIGHT),
    "slice with a place": Image(noise("int16", 1, 12, 10, low=-9), (0.6, 0.7), UPRIGHT),
    "grey": Image(noise("uint8", 1, 13, 11)),
    "grey of 16 bits": Image(noise("uint16", 1, 13, 11, high=60000), (0.5, 0.4)),
    "colours": Image(noise("uint8", 3, 13, 11)),
}


def dataset_of(folder: Path, *cases: Case) -> Dataset:
    with DatasetWriter(folder, patients_from="made up") as writer:
        writer.about["value_range"] = None
        for case in cases:
            writer.add(case)
    return Dataset.open(folder)


def synthetic(image: Image, number: int = 0) -> Case:
    box = [1.5, 2, 4, 5.25] if len(image.space) == 2 else [1, 1.5, 2, 4, 5.25, 3]
    boxes = np.array([box], np.float32)
    origin = Synthetic("mcgan-7", 40 + number, {}, (PATIENT,))
    name = f"{PATIENT}-{number}"
    return Case(name, PATIENT, image, boxes=boxes, box_labels=("nodule",), origin=origin)


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Image:
    return IMAGES[request.param]


def exported(folder: Path, *cases: Case) -> Path:
    export_dataset(dataset_of(folder / "D", *cases), folder / "E", format="dicom")
    return folder / "E"


def test_a_validator_finds_no_error(tmp_path: Path, image: Image) -> None:
    validator = Path(sys.executable).with_name("dciodvfy")
    files = sorted(exported(tmp_path, synthetic(image)).rglob("*.dcm"))
    for path in (files[0], files[-1]):
        done = subprocess.run([validator, path], capture_output=True, text=True, check=False)
        assert "Error" not in done.stdout + done.stderr, done.stdout + done.stderr
        assert "Image" in done.stdout + done.stderr  # which kind it took the file for


def test_every_file_says_that_it_is_synthetic_and_is_of_nobody(
    tmp_path: Path, image: Image
) -> None:
    out = exported(tmp_path, synthetic(image, 0), synthetic(with_noise(image), 1))
    files = sorted(out.rglob("*.dcm"))
    series = {}
    for path in files:
        elements = pydicom.dcmread(path)
        assert elements[0x0008001C].value == "YES"
        assert elements.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert "run mcgan-7" in elements.DerivationDescription
        assert PATIENT.encode() not in path.read_bytes()
        assert PATIENT not in str(path.relative_to(out))
        series.setdefault(elements.SeriesInstanceUID, set()).add(elements.SOPInstanceUID)
    assert len(series) == 2
    assert sum(len(uids) for uids in series.values()) == len(files)


def with_noise(image: Image) -> Image:
    return Image(image.values[..., ::-1].copy(), image.spacing_mm, image.affine, image.unit)


def test_an_export_comes_back_as_it_was(tmp_path: Path, image: Image) -> None:
    case = synthetic(image)
    out = exported(tmp_path, case)
    for name in ("synthoma.json", "synthoma.jsonl"):
        (out / name).unlink()  # so that the files speak for themselves
    settings = DicomSettings(axis="volume" if len(image.space) == 3 else "axial")
    import_dataset(out, tmp_path / "back", format="dicom", settings=settings)
    (back,) = Dataset.open(tmp_path / "back")
    assert back.image.values.dtype == image.values.dtype
    assert np.array_equal(back.image.values, image.values)
    assert back.image.unit == image.unit
    assert back.image.spacing_mm == (
        None if image.spacing_mm is None else pytest.approx(image.spacing_mm)
    )
    if image.affine is not None:
        assert back.image.affine == pytest.approx(image.affine, abs=1e-6)
    assert np.array_equal(back.boxes, case.boxes)
    assert isinstance(back.origin, Synthetic)
    assert (back.origin.run, back.origin.seed) == ("mcgan-7", 40)
    assert back.patient_id.startswith("SYNTHETIC-")


def test_with_its_manifest_an_export_keeps_patients_too(tmp_path: Path) -> None:
    out = exported(tmp_path, synthetic(IMAGES["CT volume"]))
    import_dataset(out, tmp_path / "back", format="dicom", settings=DicomSettings(axis="volume"))
    (back,) = Dataset.open(tmp_path / "back")
    assert (back.case_id, back.patient_id) == (f"{PATIENT}-0", PATIENT)
    assert isinstance(back.origin, Synthetic)


@pytest.mark.parametrize("name", ["CT volume", "oblique CT volume", "MR volume"])
def test_simpleitk_reads_the_same_geometry(tmp_path: Path, name: str) -> None:
    image = IMAGES[name]
    out = exported(tmp_path, synthetic(image))
    reader = sitk.ImageSeriesReader()
    folder = out / "synthetic-00001"
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    assert image.affine is not None
    assert np.array_equal(sitk.GetArrayFromImage(theirs), image.values[0])
    assert theirs.GetSpacing()[::-1] == pytest.approx(image.spacing_mm)
    for index in ((0, 0, 0), (9, 0, 0), (0, 11, 0), (9, 11, 4)):
        x, y, z = (image.affine @ (*index, 1))[:3]
        assert theirs.TransformIndexToPhysicalPoint(index) == pytest.approx((-x, -y, z), abs=1e-5)
    ours = only_series(folder)
    assert np.array_equal(ours.volume.values, image.values[0])


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    case = synthetic(IMAGES["CT volume"])
    one, other = exported(tmp_path / "a", case), exported(tmp_path / "b", case)
    for path in sorted(one.rglob("*")):
        if path.is_file() and path.name != "synthoma.json":
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path.name


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    chest = IMAGES["CT volume"]
    real = Case("a", "b", chest, origin=Real("scan.dcm"))
    with pytest.raises(DataError, match="case 'a' is real"):
        exported(tmp_path / "real", real)
    fractions = Image(np.linspace(0, 1, 120, dtype=np.float32).reshape(1, 10, 12))
    with pytest.raises(DataError, match="float32"):
        exported(tmp_path / "fractions", synthetic(fractions))
    sheared = UPRIGHT.copy()
    sheared[0, 2] = 0.5
    tilted = Image(CHEST, (1.35, 0.6, 0.7), sheared, "hu")
    with pytest.raises(DataError, match="right angles"):
        exported(tmp_path / "tilted", synthetic(tilted))
    mirrored = Image(CHEST, (1.25, 0.6, 0.7), np.diag([-1, -1, -1, 1]) @ UPRIGHT, "hu")
    with pytest.raises(DataError, match="not in LPS"):
        exported(tmp_path / "mirrored", synthetic(mirrored))


def test_fractions_of_a_hu_are_rounded_and_counted(tmp_path: Path) -> None:
    values = np.linspace(-1000, 200, 120, dtype=np.float32).reshape(1, 10, 12)
    data = dataset_of(tmp_path / "D", synthetic(Image(values, (1.0, 1.0), UPRIGHT, "hu")))
    summary = export_dataset(data, tmp_path / "E", format="dicom")
    assert summary.noted == {"rounded to whole HU": 1}
    elements = pydicom.dcmread(tmp_path / "E" / "synthetic-00001.dcm")
    assert np.array_equal(elements.pixel_array, np.rint(values[0]))
