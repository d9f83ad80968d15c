"""A dataset folder gives back what was put in, appears whole or not at all, and says what is
damaged."""

import gc
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthoma.data import dataset as reading
from synthoma.data import store as writing
from synthoma.data.case import DTYPES, Case, Image, Real, Synthetic, no_boxes
from synthoma.data.dataset import Dataset, resplit
from synthoma.data.store import DatasetWriter, new_folder, read_json, write_json
from synthoma.errors import DataError, LeakError, SettingsError


def picture(seed: int, *shape: int, dtype: str = "uint8") -> np.ndarray:
    chance = np.random.default_rng(seed)
    return chance.integers(0, 256, shape or (1, 4, 5)).astype(dtype)


def case(i: int, **fields: Any) -> Case:
    given = {"patient_id": f"p{i}", "image": Image(picture(i))} | fields
    return Case(case_id=f"c{i}", **given)


def write(out: Path, cases: list[Case], **fields: Any) -> Dataset:
    with DatasetWriter(out, patients_from="a test", **fields) as writer:
        for one in cases:
            writer.add(one)
    return Dataset.open(out)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def same(a: Case, b: Case) -> None:
    assert a.image.values.dtype == b.image.values.dtype
    np.testing.assert_array_equal(a.image.values, b.image.values)
    np.testing.assert_array_equal(a.image.affine, b.image.affine)
    assert (a.image.spacing_mm, a.image.unit) == (b.image.spacing_mm, b.image.unit)
    assert (a.boxes is None) == (b.boxes is None)
    if a.boxes is not None:
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert a.boxes.shape == b.boxes.shape
    for name in ("case_id", "patient_id", "label", "box_labels", "traits", "origin"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("space", [(4, 5), (3, 4, 5)])
def test_every_type_and_shape_of_image_comes_back(tmp_path, dtype, space):
    cases = [
        case(0, image=Image(picture(0, 1, *space, dtype=dtype))),
        case(1, image=Image(picture(1, 3, *space, dtype=dtype))),
        case(2, image=Image(picture(2, 1, *(2 * s for s in space), dtype=dtype))),
        case(3, image=Image(picture(3, 1, *space, dtype=dtype)[..., ::2])),  # not contiguous
        case(4, image=Image(picture(4, 1, *space, dtype=dtype))),
    ]
    for before, after in zip(cases, write(tmp_path / "d", cases), strict=True):
        same(before, after)


def test_big_endian_images_come_back_as_the_same_numbers(tmp_path):
    values = picture(0, dtype="uint16") * 200
    data = write(tmp_path / "d", [case(0, image=Image(values.astype(">u2")))])
    np.testing.assert_array_equal(data.values(0), values)
    assert data.values(0).dtype == np.uint16


@pytest.mark.parametrize("d", [2, 3])
def test_everything_known_of_a_case_comes_back(tmp_path, d):
    chance = np.random.default_rng(0)
    low = chance.uniform(0, 2, (3, d)).astype(np.float32)
    boxes = np.concatenate([low, low + chance.uniform(0.01, 2, (3, d)).astype(np.float32)], axis=1)
    image = Image(
        picture(0, 1, *[5] * d),
        spacing_mm=tuple(chance.uniform(0.3, 3, d).tolist()),
        affine=chance.normal(size=(4, 4)),
        unit="hu",
    )
    about = {"size": "large", "mm": 3.25, "scanner": {"tesla": 3}, "日本": ["語", None, True]}
    drawn = Synthetic("run-1", 7, {"boxes_of": "c0"}, ("p1", "p2"))
    cases = [
        case(0, image=image, label="tumour", boxes=boxes, box_labels=("a", "b", "a"), traits=about),
        case(1, image=Image(picture(1, 1, *[5] * d)), boxes=no_boxes(d)),
        case(2, image=Image(picture(2, 1, *[5] * d)), boxes=None, origin=Real("a/b.png")),
        case(3, image=Image(picture(3, 1, *[5] * d)), boxes=boxes, box_labels=("a",) * 3),
        case(4, image=Image(picture(4, 1, *[5] * d)), origin=drawn),
    ]
    data = write(tmp_path / "d", cases, value_range=(-1000, 400), about={"more": 1})
    for before, after in zip(cases, data, strict=True):
        same(before, after)
    assert data.about["n_cases"] == 5
    assert data.about["n_synthetic"] == 1
    assert data.about["value_range"] == (-1000, 400)
    assert data.about["more"] == 1
    assert data.generators_saw == {"run-1": ["p1", "p2"]}
    assert data.real_patients == ["p0", "p1", "p2", "p3"]
    assert (data.labels, data.box_labels) == (["tumour"], ["a", "b"])
    assert [data.label(i) for i in range(5)] == ["tumour", None, None, None, None]
    assert [data.box_classes(i).tolist() for i in range(3)] == [[0, 1, 0], [], []]


def test_boxes_without_classes_have_one_nameless_class(tmp_path):
    boxes = np.array([[0, 0, 1, 1], [1, 1, 2, 2]], np.float32)
    data = write(tmp_path / "d", [case(0, boxes=boxes)])
    assert data.box_labels == ["lesion"]
    assert data.box_classes(0).tolist() == [0, 0]
    assert data[0].box_labels == ()


def test_the_same_cases_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, [case(i) for i in range(5)])
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# -- selecting ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path) -> Dataset:
    cases = [
        case(i, patient_id=f"p{i // 3}", label=("x", "y", None)[i % 3], traits={"mm": i % 2})
        for i in range(30)
    ]
    return write(tmp_path / "mixed", cases)


def ids(data: Dataset) -> list[str]:
    return [c.case_id for c in data]


def test_splits_divide_the_cases_by_patient(mixed):
    parts = {name: mixed.split(name) for name in ("train", "validation", "test")}
    assert sorted(i for part in parts.values() for i in ids(part)) == sorted(ids(mixed))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 21,
        "validation": 3,
        "test": 6,
    }
    for name, part in parts.items():
        assert set(part.patients) == set(mixed.splits[name]) == set(part.patient_ids)
    with pytest.raises(SettingsError, match="no split 'val'; there are train, validation, test"):
        mixed.split("val")


def test_where_finds_labels_and_traits_and_both(mixed):
    assert ids(mixed.where(label="y")) == [f"c{i}" for i in range(1, 30, 3)]
    assert ids(mixed.where(mm="1")) == [f"c{i}" for i in range(1, 30, 2)]
    assert ids(mixed.where(label="y", mm="1")) == [f"c{i}" for i in range(1, 30, 6)]
    assert ids(mixed.of_patients({"p0"}).where(label="y")) == ["c1"]


def test_where_says_which_values_there_are(mixed):
    with pytest.raises(DataError, match="no case has label=z; there are labels: x, y"):
        mixed.where(label="z")
    with pytest.raises(DataError, match=r"no case has mm=7; there are .* mm: 0, 1"):
        mixed.where(mm="7")
    with pytest.raises(DataError, match="label=None"):  # an absent label is not one called None
        mixed.where(label="None")


def test_take_keeps_the_order_that_was_asked_for(mixed):
    assert ids(mixed.take(np.array([5, 0, 5]))) == ["c5", "c0", "c5"]
    assert mixed.take(np.array([5, 0, 4])).patients == ["p1", "p0"]
    assert len(mixed.of_patients(["nobody"])) == 0
    assert mixed[-1].case_id == "c29"
    with pytest.raises(IndexError):
        mixed[30]


def test_resplit_shares_the_images_and_changes_the_split(mixed, tmp_path):
    patients = mixed.patients
    splits = {"train": patients[:1], "validation": patients[1:2], "test": patients[2:]}
    again = resplit(mixed, tmp_path / "again", splits)
    assert len(again.split("test")) == 24
    assert ids(again) == ids(mixed)
    shard = "shards/00000.npy"
    assert (again.folder / shard).samefile(mixed.folder / shard)
    with pytest.raises(DataError, match="is in no split"):
        resplit(mixed, tmp_path / "third", {"train": patients[1:]})
    assert not (tmp_path / "third").exists()


def test_a_dataset_travels_to_another_process(mixed):
    assert ids(pickle.loads(pickle.dumps(mixed.where(label="x")))) == ids(mixed.where(label="x"))


# -- what is refused ------------------------------------------------------------------------------

TWO = np.array([[0, 0, 1, 1], [1, 1, 2, 2]], np.float32)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (case(1, image=Image(picture(1).astype(np.int64))), "dtype int64; allowed: uint8"),
        (case(1, image=Image(picture(1, 4, 5))), r"shape \(4, 5\)"),
        (case(1, image=Image(np.zeros((1, 0, 5), np.uint8))), "none empty"),
        (case(1, image=Image(picture(1, 1, 2, 4, 5))), "3D, but earlier cases are 2D"),
        (case(1, image=Image(picture(1), spacing_mm=(1.0,))), "allowed: 2 numbers above 0"),
        (case(0), "this id is empty or was added already"),
        (case(1, patient_id=""), "the patient id is empty"),
        (case(1, boxes=np.zeros((1, 6), np.float32)), r"boxes \(1, 6\) in a 2D image"),
        (case(1, boxes=TWO[:, [2, 1, 0, 3]]), "a box is empty or not finite"),
        (case(1, boxes=TWO + np.float32(np.inf)), "a box is empty or not finite"),
        (case(1, boxes=TWO, box_labels=("a",)), "1 box labels for 2 boxes"),
        (case(1, boxes=None, box_labels=("a",)), "1 box labels for 0 boxes"),
        (case(1, boxes=TWO), "its boxes have no labels, unlike those of earlier cases"),
        (case(1, traits={"mm": float("nan")}), "cannot be written as JSON"),
        (case(1, traits={"mm": np.float32(1)}), "cannot be written as JSON"),
        (case(1, label="\udcff"), "cannot be written as JSON"),
        (case(1, origin=Synthetic("r", 0, {}, ("q",))), "trained on other patients than earlier"),
    ],
)
def test_a_case_that_breaks_the_contract_is_refused_by_name(tmp_path, wrong, says):
    earlier = [case(0, boxes=TWO, box_labels=("a", "b")), case(9, origin=Synthetic("r", 0))]
    with pytest.raises(DataError, match=f"case '{wrong.case_id}': .*{says}"):
        write(tmp_path / "d", [*earlier, wrong])
    assert list(tmp_path.iterdir()) == []


def test_a_refused_case_leaves_no_trace_if_the_writer_goes_on(tmp_path):
    with DatasetWriter(tmp_path / "d", patients_from="") as writer:
        writer.add(case(0))
        with pytest.raises(DataError, match="JSON"):
            writer.add(case(1, label="no", traits={"bad": {1}}))
        writer.add(case(1, label="yes"))
    data = Dataset.open(tmp_path / "d")
    assert ids(data) == ["c0", "c1"]
    assert data.labels == ["yes"]


def test_one_image_under_two_patients_is_a_leak_unless_it_is_dropped(tmp_path):
    twins = [case(0), case(1, image=Image(picture(0)))]
    with pytest.raises(LeakError, match=r"c1 \(patient p1\) is the same image as c0 \(patient p0"):
        write(tmp_path / "d", twins)
    data = write(tmp_path / "d", [*twins, case(2)], drop_duplicates=True)
    assert ids(data) == ["c0", "c2"]
    (dropped,) = data.about["dropped"].values()
    assert dropped == {"n": 1, "for_example": ["c1"]}


def test_one_image_twice_of_one_patient_and_blank_images_of_two_are_no_leak(tmp_path):
    blank = Image(np.zeros((1, 4, 5), np.uint8))
    write(
        tmp_path / "d",
        [
            case(0),
            case(1, patient_id="p0", image=Image(picture(0))),
            case(2, image=blank),
            case(3, image=blank),
        ],
    )


def test_a_patient_in_two_splits_is_a_leak(tmp_path):
    with pytest.raises(LeakError, match="p0 is in two splits"):
        write(tmp_path / "d", [case(0)], splits={"train": ["p0"], "test": ["p0"]})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_set_or_an_upside_down_range_is_refused(tmp_path):
    with pytest.raises(DataError, match="no case was left to write"):
        write(tmp_path / "d", [])
    with pytest.raises(DataError, match=r"value_range \(1, 1\)"):
        write(tmp_path / "d", [case(0)], value_range=(1, 1))
    assert list(tmp_path.iterdir()) == []


# -- whole or not at all --------------------------------------------------------------------------


def test_an_exception_while_writing_leaves_nothing(tmp_path):
    def fail(error: BaseException) -> None:
        with DatasetWriter(tmp_path / "d", patients_from="") as writer, new_folder(tmp_path / "e"):
            writer.add(case(0))
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            fail(error())
        assert list(tmp_path.iterdir()) == []


def test_what_exists_is_never_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("file", "link", "folder"):
        with pytest.raises(SettingsError, match=f"{name} exists already"):
            write(tmp_path / name, [case(0)])
    with pytest.raises(SettingsError, match="exists already"), new_folder(tmp_path / "late"):
        (tmp_path / "late").mkdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "late", "link"]


def test_of_two_writers_of_one_name_the_first_to_end_wins_whole(tmp_path):
    def write_both() -> None:
        with new_folder(tmp_path / "d") as late:
            (late / "late").write_text("")
            with new_folder(tmp_path / "d") as first:
                (first / "first").write_text("")

    with pytest.raises(SettingsError, match="exists already"):
        write_both()
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_writer_that_is_killed_leaves_no_folder_under_the_final_name(tmp_path):
    program = f"""
import numpy as np, sys
from pathlib import Path
from synthoma.data.case import Case, Image
from synthoma.data.store import DatasetWriter
with DatasetWriter(Path({str(tmp_path / "d")!r}), patients_from="") as writer:
    for i in range(10**9):
        writer.add(Case(f"c{{i}}", "p", Image(np.full((1, 8, 8), i % 251, np.uint8))))
        if i == 2000:
            print("writing", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "d").exists()
    assert all(p.name.startswith(".d.") for p in tmp_path.iterdir())
    write(tmp_path / "d", [case(0)])  # and the name is free


def test_json_is_replaced_whole_and_a_failure_leaves_the_old(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": "日本"})
    with pytest.raises(TypeError):
        write_json(path, {"x": {1}})
    assert read_json(path) == {"x": "日本"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# -- damage ---------------------------------------------------------------------------------------


def damaged(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(change(content))


def set_about(**fields: Any) -> Any:
    return lambda content: json.dumps(json.loads(content) | fields).encode()


ROWS, ABOUT, SHARD = "cases.jsonl", "dataset.json", "shards/00000.npy"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (ROWS, lambda c: c[:-30], "row 3 is damaged"),
        (ROWS, lambda c: c[: c.index(b"\n") + 1], "1 rows, but dataset.json says 3"),
        (ROWS, lambda c: b"\xff" + c, "row 1 is damaged"),
        (ROWS, lambda c: b"[" * 100_000 + c, "row 1 is damaged"),
        (ROWS, lambda c: b"5\n" + c, "row 1 is damaged"),
        (ROWS, lambda c: c.replace(b'"shard": 0', b'"shard": "x"'), "row 1 is damaged"),
        (ROWS, lambda c: c.replace(b'"row": 1', b'"row": 1e99'), "row 2 is damaged"),
        (ROWS, lambda c: c.replace(b"[[0.0, ", b"[["), "row 1 is damaged"),
        (ROWS, lambda c: c.replace(b'["a"]', b'["b"]'), "row 1 is damaged"),
        (ROWS, lambda c: c.replace(b'["a"]', b'["a", "a"]'), "row 1 is damaged"),
        (ROWS, lambda c: c.replace(b'"patient_id"', b'"patient"'), "row 1 is damaged"),
        (ABOUT, lambda c: c[:-5], "not JSON"),
        (ABOUT, lambda c: b"[" * 100_000, "not JSON"),
        (ABOUT, lambda c: b"[]", "format"),
        (ABOUT, set_about(format=2), "format 2; this synthoma reads 1"),
        (ABOUT, set_about(dimensions=4), "dimensions 4; allowed: 2, 3"),
        (ABOUT, set_about(value_range=[1, 1]), "allowed: null or"),
        (ABOUT, set_about(value_range=["a", 1]), "allowed: null or"),
        (ABOUT, set_about(labels=None), "'labels' is missing or of the wrong type"),
        (ABOUT, set_about(generators={"r": 1}), "'generators' is damaged"),
    ],
)
def test_a_damaged_folder_gives_one_error_that_names_the_file(tmp_path, name, change, says):
    boxes = np.array([[0, 0, 1, 1]], np.float32)
    write(tmp_path / "d", [case(i, boxes=boxes, box_labels=("a",)) for i in range(3)])
    damaged(tmp_path / "d", name, change)
    with pytest.raises(DataError, match=f"{name}.*{says}"):
        Dataset.open(tmp_path / "d")


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: b"", lambda c: b"nonsense", lambda c: c[:40]]
)
@pytest.mark.parametrize("mapped", [True, False])
def test_a_damaged_shard_is_named_when_it_is_read(tmp_path, change, mapped, monkeypatch):
    monkeypatch.setattr(reading, "SMALL_SHARD_BYTES", 0 if mapped else 1 << 20)
    data = write(tmp_path / "d", [case(0)])
    damaged(data.folder, SHARD, change)
    with pytest.raises(DataError, match=SHARD):
        data.values(0)


def test_a_missing_file_is_named(tmp_path):
    data = write(tmp_path / "d", [case(0)])
    (data.folder / SHARD).unlink()
    with pytest.raises(DataError, match=f"{SHARD}.*No such file"):
        data.values(0)
    (data.folder / "splits.json").unlink()
    with pytest.raises(DataError, match=r"splits\.json: no such file"):
        data.split("train")
    (data.folder / ROWS).unlink()
    with pytest.raises(DataError, match=f"{ROWS}: No such file"):
        Dataset.open(data.folder)
    with pytest.raises(DataError, match="not a dataset folder"):
        Dataset.open(tmp_path)


def test_a_row_that_points_outside_its_shard_or_a_shard_of_code_is_refused(tmp_path):
    data = write(tmp_path / "d", [case(0)])
    damaged(data.folder, ROWS, lambda c: c.replace(b'"row": 0', b'"row": 7'))
    with pytest.raises(DataError, match="no row 7; there are 1"):
        Dataset.open(data.folder).values(0)
    np.save(data.folder / SHARD, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=SHARD):
        Dataset.open(data.folder).values(0)
    (data.folder / "splits.json").write_text('["train"]')
    with pytest.raises(DataError, match=r"splits\.json: not lists"):
        data.split("train")


# -- many -----------------------------------------------------------------------------------------


def test_images_are_read_only_views_of_mapped_files(tmp_path):
    big = Image(np.arange(2 << 20, dtype=np.uint16).reshape(1, 1024, 2048) % 60_000)
    data = write(tmp_path / "d", [case(0, image=big), case(1, image=Image(picture(1)))])
    values = data.values(0)
    assert isinstance(values, np.memmap)
    assert np.shares_memory(values, data.index.shard(0))
    for i in (0, 1):
        with pytest.raises(ValueError, match="read-only"):
            data.values(i)[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        data.boxes(0)[:] = 1


def test_a_full_shard_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 50)  # two images of 20 bytes
    cases = [case(i) for i in range(5)]
    data = write(tmp_path / "d", cases)
    assert len(list((data.folder / "shards").iterdir())) == 3
    for before, after in zip(cases, data, strict=True):
        same(before, after)


def test_many_sizes_in_any_order_take_one_shard_each_and_few_open_files(tmp_path, monkeypatch):
    sizes = 150
    cases = [case(i, image=Image(picture(i, 1, 4 + i % sizes, 5))) for i in range(2 * sizes)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = open_files()
    monkeypatch.setattr(reading, "SMALL_SHARD_BYTES", 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 100, hard))
    try:
        data = write(tmp_path / "d", cases)
        assert len(list((data.folder / "shards").iterdir())) == sizes
        for before, after in zip(cases, data, strict=True):
            np.testing.assert_array_equal(before.image.values, after.image.values)
        monkeypatch.setattr(reading, "SMALL_SHARD_BYTES", 1 << 20)
        kept = [c.image.values for c in Dataset.open(data.folder)]  # views that live on
        assert len(kept) == 2 * sizes
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_threads_may_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAPPED_SHARDS", 2)
    cases = [case(i, image=Image(picture(i, 1, 4 + i % 9, 5))) for i in range(90)]
    data = write(tmp_path / "d", cases)
    with ThreadPoolExecutor(8) as threads:
        for before, after in zip(cases, threads.map(data.__getitem__, range(90)), strict=True):
            same(before, after)


def test_files_are_closed_when_a_dataset_is_let_go(tmp_path):
    before = open_files()
    data = write(tmp_path / "d", [case(0)])
    _ = data[0]
    del data
    gc.collect()
    assert open_files() == before


def test_a_hundred_thousand_cases_are_written_and_opened_in_seconds(tmp_path):
    """In another process, without the shape checks of tests and with its own memory."""
    program = f"""
import resource, time
import numpy as np
from pathlib import Path
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
out, boxes = Path({str(tmp_path / "d")!r}), np.array([[1, 2, 3.5, 4]], np.float32)
with DatasetWriter(out, patients_from="", value_range=(0, 255)) as writer:
    for i in range(100_000):
        values = np.frombuffer(np.int64([i + 1, 0]).tobytes(), np.uint8).reshape(1, 4, 4)
        writer.add(Case(f"c{{i}}", f"p{{i // 10}}", Image(values), str(i % 2), boxes))
began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Dataset.open(out)
assert len(data.split("train").where(label="1")) == 35_000
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.process_time() - began, (after - before) / 1024)
"""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 5
    assert mebibytes < 150
    assert time.perf_counter() - began < 120
