"""What `data show` says of a folder is what its cases hold, and no image is read for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthoma.data.case import Case, Image, Real, Synthetic, no_boxes
from synthoma.data.contents import describe, label_counts
from synthoma.data.dataset import Dataset, Index
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError

SPLITS = {"train": ["a", "b"], "validation": [], "test": ["c"]}


def write(out: Path, *cases: dict[str, Any], splits: Any = SPLITS) -> Dataset:
    chance = np.random.default_rng(0)
    with DatasetWriter(out, patients_from="a test", splits=splits) as writer:
        for i, given in enumerate(cases):
            shape = given.pop("shape", (1, 4, 6))
            values = chance.integers(0, 256, shape).astype(np.uint8)
            fields = {"origin": Real(f"{i}.png")} | given
            writer.add(Case(case_id=f"{i}", image=Image(values), **fields))
    return Dataset.open(out)


def of(patient: str, label: str | None = None, **more: Any) -> dict[str, Any]:
    return {"patient_id": patient, "label": label, **more}


def test_classes_are_counted_by_split_with_their_patients(tmp_path: Path) -> None:
    dataset = write(
        tmp_path / "d",
        *[of("a", "tumour") for _ in range(12)],
        of("a", "normal"),
        of("b", "tumour"),
        of("b"),
        of("c", "normal"),
        of("c"),
        of("c"),
    )
    lines = describe(dataset)
    at = next(i for i, line in enumerate(lines) if line.startswith("labels"))
    assert lines[at:] == [
        "labels, cases (patients)   train  validation   test     all",
        "  normal                   1 (1)           0  1 (1)   2 (2)",
        "  tumour                  13 (2)           0      0  13 (2)",
        "  no label                 1 (1)           0  2 (1)   3 (2)",
    ]
    assert label_counts(dataset.split("test")) == {"normal": (1, 1), None: (2, 1)}


def test_a_folder_where_all_cases_or_none_have_a_label_says_so(tmp_path: Path) -> None:
    assert "labels: none" in describe(write(tmp_path / "none", of("a"), of("c")))
    lines = describe(write(tmp_path / "all", of("a", "x"), of("c", "x")))
    assert lines[-1].split() == ["no", "label", "0", "0", "0", "0"]


def test_not_annotated_is_another_thing_than_no_boxes(tmp_path: Path) -> None:
    two = np.array([[0, 0, 2, 2], [1, 1, 3, 4]], np.float32)
    never = describe(write(tmp_path / "never", of("a"), of("c")))
    assert "boxes: not annotated" in never
    assert not any("0 boxes" in line or "box labels" in line for line in never)
    none = describe(write(tmp_path / "none", of("a", boxes=no_boxes(2)), of("c", boxes=two)))
    assert "boxes: 2 in 1 cases" in none
    assert "  train: 1 patients, 1 cases, boxes: 0 in 0 cases" in none
    assert "box labels: none" in none
    some = describe(write(tmp_path / "some", of("a"), of("a", boxes=two), of("c")))
    assert "boxes: 2 in 1 cases (2 cases not annotated)" in some
    assert "  test: 1 patients, 1 cases, boxes: not annotated" in some


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(1, 4, 6)], "4 x 6 px (y, x), 1 channel"),
        ([(3, 4, 6)], "4 x 6 px (y, x), 3 channels"),
        ([(1, 4, 6), (3, 4, 6)], "4 x 6 px (y, x), 1 or 3 channels"),
        ([(1, 4, 6), (1, 8, 6), (1, 5, 6)], "4 to 8 x 6 px (y, x), 3 sizes, 1 channel"),
        ([(1, 2, 4, 6), (1, 3, 4, 7)], "2 to 3 x 4 x 6 to 7 voxels (z, y, x), 2 sizes, 1 channel"),
    ],
)
def test_the_sizes_of_images_are_one_or_a_range(
    tmp_path: Path, shapes: list[tuple[int, ...]], said: str
) -> None:
    dataset = write(tmp_path / "d", *[of("a", shape=shape) for shape in shapes])
    assert f"images: {said}" in describe(dataset)


def test_a_part_of_a_folder_is_described_as_itself(tmp_path: Path) -> None:
    drawn = Synthetic("run", 0, {}, ("b",))
    dataset = write(tmp_path / "d", of("a", "x"), of("c", "y", origin=drawn, shape=(1, 9, 9)))
    lines = describe(dataset.split("test"))
    assert lines[0] == "1 cases (1 synthetic), 2D"
    assert lines[1] == "1 patients (a test)"
    assert "images: 9 x 9 px (y, x), 1 channel" in lines
    assert describe(dataset)[0] == "2 cases (1 synthetic), 2D"


def test_a_damaged_file_of_images_is_named(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", of("a"))
    (tmp_path / "d/shards/00000.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"00000\.npy"):
        describe(dataset)


def test_a_hundred_thousand_cases_are_told_of_without_reading_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 100_000
    folder = write(tmp_path / "d", of("a", "x", boxes=no_boxes(2)), splits=None).folder
    row = json.loads((folder / "cases.jsonl").read_text())
    with (folder / "cases.jsonl").open("w") as file:
        for i in range(n):
            own = {"case_id": f"{i}", "patient_id": f"p{i % 5000}", "label": "xyz"[i % 3]}
            file.write(json.dumps(row | own) + "\n")
    about = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(about | {"n_cases": n}))
    (folder / "splits.json").write_text(json.dumps({"train": [f"p{i}" for i in range(5000)]}))
    dataset = Dataset.open(folder)
    monkeypatch.delattr(Index, "read")
    monkeypatch.delattr(Index, "image")
    lines = describe(dataset)
    assert lines[-4].split() == ["x", *["33334", "(5000)"] * 2]
