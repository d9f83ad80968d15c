"""Whose image it is, what is the same twice, and what importing does not load."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from synthoma.data.case import Synthetic
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.formats import FORMATS, load_format
from synthoma.formats.convert import ImportSummary, export_dataset, import_dataset
from synthoma.formats.csv import Settings
from synthoma.formats.voc import VocSettings


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (5, 6)).astype(np.uint8)
        Pillow.fromarray(values).save(folder / name)
    return folder


def read(folder: Path, **more: object) -> tuple[ImportSummary, Dataset]:
    out = folder.parent / f"out-{len(list(folder.parent.iterdir()))}"
    return (
        import_dataset(folder, out, format="folder", **more),  # type: ignore[arg-type]
        Dataset.open(out),
    )


def test_importing_the_package_loads_no_reader() -> None:
    code = (
        "import sys, synthoma.formats\n"
        "print([m for m in ('PIL', 'nibabel', 'scipy', 'defusedxml', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FORMATS)
def test_every_setting_of_every_format_is_documented(name: str) -> None:
    fields = load_format(name).Settings.model_fields
    assert fields
    assert all(field.description for field in fields.values())


def test_a_set_that_names_no_patients_has_one_an_image(tmp_path: Path) -> None:
    summary, dataset = read(pictures(tmp_path / "f", "a/1.png", "b/1.png"))
    assert (summary.patients_from, summary.n_patients) == ("one an image", 2)
    assert dataset.patient_ids == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (("1.png", "2.png"), "CLASS/PICTURE"),
        (("train/1.png", "test/2.png"), "SPLIT/CLASS/PICTURE"),
        (("a/1.png", "2.png"), None),
        (("train/a/1.png", "test/2.png"), None),
        (("train/unlabelled/1.png", "test/unlabelled/2.png"), None),
    ],
)
def test_a_folder_without_class_folders_says_so(
    tmp_path: Path, names: tuple[str, ...], form: str | None
) -> None:
    summary, _ = read(pictures(tmp_path / "f", *names))
    said = "no class folders were found, so there are no labels; they are read from"
    assert summary.hints == (() if form is None else (f"{said} {form}",))


def test_a_block_is_the_number_in_the_name_divided(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "x0.png", "x12.png", "x13.png", "x0026.png")
    summary, dataset = read(folder, patient_block=13)
    assert summary.patients_from == dataset.about["patients_from"] == "blocks of 13 ids"
    assert dict(zip([c.case_id for c in dataset], dataset.patient_ids, strict=True)) == {
        "x0.png": "block-00000",
        "x12.png": "block-00000",
        "x13.png": "block-00001",
        "x0026.png": "block-00002",
    }
    with pytest.raises(DataError, match="one number"):
        read(pictures(tmp_path / "g", "1-2.png"), patient_block=13)
    with pytest.raises(SettingsError, match="allowed: 1 or more"):
        read(folder, patient_block=0)


@pytest.mark.parametrize(
    "pattern", [r"person(\d+)_", r"(x)?person(?P<patient>\d+)", r"(?<=person)\d+"]
)
def test_a_pattern_finds_the_patient_in_the_path(tmp_path: Path, pattern: str) -> None:
    folder = pictures(tmp_path / "f", "person7_a.png", "person7_b.png", "person8_a.png")
    summary, dataset = read(folder, patient_pattern=pattern)
    assert dataset.patient_ids == ["7", "7", "8"]
    assert summary.patients_from == f"pattern {pattern!r}"


def test_a_wrong_pattern_stops_the_import(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "person7_a.png", "x.png")
    with pytest.raises(SettingsError, match="unterminated"):
        read(folder, patient_pattern="(")
    with pytest.raises(DataError, match=r"x\.png: the patient pattern .* does not match"):
        read(folder, patient_pattern=r"person(\d+)")
    with pytest.raises(SettingsError, match="one is allowed"):
        read(folder, patient_pattern="x", patient_block=3)


def test_a_pattern_that_joins_two_splits_is_a_leak(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "train/a/p1-1.png", "test/a/p1-2.png")
    with pytest.raises(LeakError, match="patient p1 is in two splits"):
        read(folder, patient_pattern=r"p\d")


def test_patients_that_a_table_names_are_not_overruled(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "1.png")
    (folder / "t.csv").write_text("image,patient\n1.png,p\n")
    with pytest.raises(SettingsError, match="column 'patient'"):
        import_dataset(folder, tmp_path / "out", format="csv", patient_block=3)


def test_what_is_not_allowed_is_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "1.png")
    with pytest.raises(SettingsError, match="allowed: csv, folder, coco"):
        import_dataset(folder, tmp_path / "out", format="gif")
    with pytest.raises(SettingsError, match="--map"):
        read(folder, mapping={"image": "x"})
    with pytest.raises(SettingsError, match="VocSettings"):
        import_dataset(folder, tmp_path / "out", format="voc", settings=Settings())
    (tmp_path / "out").mkdir()
    with pytest.raises(SettingsError, match="nothing is overwritten"):
        import_dataset(folder, tmp_path / "out", format="folder")
    for name in FORMATS:
        with pytest.raises(DataError):
            import_dataset(tmp_path / "gone", tmp_path / "new", format=name)
    assert not (tmp_path / "new").exists()
    assert VocSettings().drop_difficult is False


def test_the_same_files_make_the_same_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "b/1.png", "a/1.png", "a/2.png")
    first, second = read(folder)[1], read(folder)[1]
    assert (first.folder / "cases.jsonl").read_bytes() == (
        second.folder / "cases.jsonl"
    ).read_bytes()
    assert first.about["digest"] == second.about["digest"]


def test_an_export_that_a_person_edits_is_believed(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "a/1.png", "b/2.png")
    _, dataset = read(folder)
    export_dataset(dataset, tmp_path / "files", format="csv")
    table = tmp_path / "files" / "cases.csv"
    table.write_text(table.read_text().replace("a/1.png", "the same").replace("b/2.png", "the same")
                     .replace("train", "test").replace("validation", "test"))  # fmt: skip
    summary = import_dataset(tmp_path / "files", tmp_path / "again", format="csv")
    assert (summary.n_patients, summary.patients_from) == (1, "column 'patient'")


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    export_dataset(read(pictures(tmp_path / "f", "1.png"))[1], tmp_path / "files", format="folder")
    rows = tmp_path / "files" / "synthoma.jsonl"
    content = json.loads(rows.read_text())
    for damaged in ("{", json.dumps({**content, "traits": 3}), "\xff"):
        rows.write_text(damaged + "\n", encoding="latin-1")
        with pytest.raises(DataError, match=r"synthoma\.jsonl"):
            read(tmp_path / "files")


def test_a_synthetic_set_keeps_whom_its_generator_saw(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "f", "1.png")
    export_dataset(read(folder)[1], tmp_path / "files", format="folder")
    about = json.loads((tmp_path / "files/synthoma.json").read_text())
    about["generators"] = {"run-7": ["p1", "p2"]}
    (tmp_path / "files/synthoma.json").write_text(json.dumps(about))
    row = json.loads((tmp_path / "files/synthoma.jsonl").read_text())
    (tmp_path / "files/synthoma.jsonl").write_text(json.dumps(row | {"run": "run-7"}) + "\n")
    _, dataset = read(tmp_path / "files")
    assert dataset[0].origin == Synthetic("run-7", 0, {}, ("p1", "p2"))
    assert dataset.generators_saw == {"run-7": ["p1", "p2"]}
